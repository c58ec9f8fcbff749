"""Model files of every kind of block through the C runtime, against the reference with the same weights."""

from dataclasses import replace

import numpy as np
import pytest
from gguf_container import Container
from lies import second_version
from make_models import golden_config, write_random

from elutq_cli.commands.info import describe, tensor_lines
from elutq_cli.reference import Transformer
from elutq_formats.block_kind import KIND_NUMBERS
from elutq_formats.errors import FormatError
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.model_file import ModelFile
from elutq_native import Model, NativeError, supported_kernels

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 300, 100)]
FORMS = [*((kind, bits, 64) for kind, bits in zip(KIND_NUMBERS, (4, 2, 2, 3, 4, 4), strict=True)), ("free16", 3, 256)]


def wide_config():
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 301, "num_attention_heads": 4}
    return replace(golden_config("llama2-gqa-sharded"), **sizes, head_dim=64, num_key_value_heads=2)


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "-".join(map(str, form)))
def model(request, tmp_path_factory):
    """A file with every matrix of one kind, and the reference's logits."""
    kind, bits, group_size = request.param
    path = tmp_path_factory.mktemp("kinds") / f"{kind}.gguf"
    write_random(path, wide_config(), bits, group_size, kind=kind)
    return path, Transformer(ModelFile.open(path)).logits(np.array(TOKENS))


@pytest.mark.parametrize("isa", supported_kernels())
def test_every_kind_gives_what_the_reference_gives_with_the_same_weights(model, isa):
    """Token by token and as a batch large enough for levels, which every set has from 12 to 96 tokens on."""
    path, wanted = model
    with Model(path, isa) as native:
        for step in (1, len(TOKENS)):
            with native.session(len(TOKENS), threads=2) as session:
                parts = [session.eval(TOKENS[at : at + step], all_logits=True) for at in range(0, len(TOKENS), step)]
            found = np.concatenate(parts)
            error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
            print(f"relative RMS {error:.4f}")
            assert error < 0.04  # random weights make more of rounded activations than trained ones


def test_a_file_says_which_version_its_matrices_need(model):
    path, _ = model
    file, metadata = ModelFile.open(path), GGUFReader(path).metadata
    records = [record for record in file.tensors.values() if record.group_size]
    first = path.stem == "free16" and records[0].group_size <= 128
    assert metadata["hlq.version"] == (1 if first else 2)
    assert ("hlq.tensor.kinds" in metadata) is not first
    assert {record.kind.name for record in records} == {path.stem}


def test_info_names_the_kind(model):
    path, _ = model
    file = ModelFile.open(path)
    (line,) = [line for line in tensor_lines(file) if line.startswith("blk.*.ffn_up.weight")]
    record = file.tensors["blk.0.ffn_up.weight"]
    assert f" {record.bits} g{record.group_size} {path.stem} " in line
    kinds = {tensor["name"]: tensor["kind"] for tensor in describe(file)["tensors"]}
    assert kinds["blk.0.ffn_up.weight"] == path.stem and kinds["output_norm.weight"] is None


@pytest.fixture(scope="module")
def first_version(tmp_path_factory):
    path = tmp_path_factory.mktemp("first") / "model.gguf"
    write_random(path, golden_config("llama31-rope-scaling"), bits=2, group_size=32)
    return path


def test_a_file_of_version_2_with_nothing_new_in_it_gives_the_same(first_version, tmp_path):
    container, path = Container(first_version.read_bytes()), tmp_path / "second.gguf"
    second_version()(container)
    path.write_bytes(container.bytes())
    assert ModelFile.open(path).tensors == ModelFile.open(first_version).tensors
    logits = []
    for file in (first_version, path):
        with Model(file) as native, native.session(8, threads=1) as session:
            logits.append(session.eval([1, 2, 3]))
    np.testing.assert_array_equal(*logits)


def test_groups_of_256_are_refused_in_version_1(tmp_path):
    path = tmp_path / "model.gguf"
    write_random(path, wide_config(), 2, 256)
    container = Container(path.read_bytes())
    container.set("hlq.version", "<I", 1)
    path.write_bytes(container.bytes())
    with pytest.raises(NativeError, match="has a group size that is not 32, 64, 128 or in version 2 256"):
        Model(path)
    with pytest.raises(FormatError, match="group size 256, which version 1 does not have"):
        ModelFile.open(path)


@pytest.mark.parametrize("kind", ["even16", "even16c"])
def test_half_scales_of_even_blocks_that_are_not_numbers_are_found(kind, tmp_path):
    path = tmp_path / "lie.gguf"
    write_random(path, wide_config(), 2, 64, kind=kind)
    container = Container(path.read_bytes())
    container.patch("blk.0.attn_v.weight", 0, b"\x00\x7e" * 32)
    path.write_bytes(container.bytes())
    wrong = pytest.raises(NativeError, match=r"blk\.0\.attn_v\.weight holds a scale or weight that no model has")
    with Model(path) as native, native.session(8, threads=1) as session, wrong:
        session.eval([1, 2])
    with pytest.raises(FormatError, match=r"blk\.0\.attn_v\.weight: .* not finite"):
        ModelFile.open(path).hlq("blk.0.attn_v.weight")


def test_any_bytes_are_sound_numbers(tmp_path):
    """Half scales and centers of one byte have no values that must be refused."""
    path = tmp_path / "any.gguf"
    write_random(path, wide_config(), 2, 64, kind="free8")
    container = Container(path.read_bytes())
    container.patch("blk.0.attn_v.weight", 0, bytes(range(160, 256)))
    path.write_bytes(container.bytes())
    assert np.isfinite(ModelFile.open(path).hlq("blk.0.attn_v.weight").dequantize()).all()
    with Model(path) as native, native.session(8, threads=1) as session:
        session.eval([1, 2])
