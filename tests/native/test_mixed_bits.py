"""Files whose matrices differ in bits and group size, as `quantize` makes them by default, against the reference."""

import json
import shutil
import struct

import numpy as np
import pytest
from conftest import DATA, NOVELS
from safetensors.numpy import save_file

import elutq
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.reference import Transformer
from elutq_formats.block_kind import FREE16
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_file import ModelFile
from elutq_formats.tokenizer import Tokenizer
from elutq_native import Model, supported_kernels

N_LAYERS = 2
EVERY_KIND = (
    *("attn_q=1g128", "attn_k=16", "attn_v=4g32", "attn_output=3g64", "ffn_gate=2g128", "ffn_up=16", "ffn_down=1g64"),
    *("blk.1.attn_k=2g32", "blk.1.attn_v=16", "blk.1.ffn_gate=3g32", "blk.1.ffn_up=4g128", "blk.1.ffn_down=16"),
)
"""In matrices that share an input too: 1 to 4 bits, fp16, and all group sizes."""


def first_blocks(folder, n_layers):
    """Writes the bundled checkpoint's first blocks as a checkpoint of its own."""
    shutil.copytree(NOVELS, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": n_layers}))
    raw = (folder / "model.safetensors").read_bytes()
    end = 8 + struct.unpack_from("<Q", raw)[0]
    kept, data = {}, b""
    for name, entry in json.loads(raw[8:end]).items():
        parts = name.split(".")
        if name != "__metadata__" and not (parts[1] == "layers" and int(parts[2]) >= n_layers):
            first, last = entry["data_offsets"]
            kept[name] = entry | {"data_offsets": [len(data), len(data) + last - first]}
            data += raw[end + first : end + last]
    header = json.dumps(kept).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return folder


def with_a_tiny_matrix(folder):
    """Scales a matrix of a checkpoint down to what bytes cannot hold."""
    name = "model.layers.0.mlp.down_proj.weight"
    with Checkpoint.open(folder) as checkpoint:
        tensors = {each: checkpoint.load(each) for each in checkpoint.names}
    (folder / "model.safetensors").unlink()
    save_file(tensors | {name: tensors[name] * np.float32(2.0**-20)}, folder / "model.safetensors")


@pytest.fixture(scope="module", params=["by default", "every kind", "float16 scales", "a tiny matrix"])
def mixed(request, tmp_path_factory):
    """A model file and the reference's logits of a prompt, with the file's own weights."""
    folder = tmp_path_factory.mktemp("mixed")
    checkpoint, path = first_blocks(folder / "checkpoint", N_LAYERS), folder / "mixed.gguf"
    text = DATA / "sampled.txt"
    if request.param == "by default":
        recipe = Recipe(num_samples=2, sequence_length=48)
        elutq.quantize(checkpoint, path, recipe, calibration=text, threads=2)
    else:
        if request.param == "a tiny matrix":
            with_a_tiny_matrix(checkpoint)
        scale_bits = 16 if request.param == "float16 scales" else 8
        elutq.quantize(checkpoint, path, Recipe(scale_bits=scale_bits, tensor_types=EVERY_KIND), threads=2)
    file = ModelFile.open(path)
    blocks = [record for record in file.tensors.values() if record.name.startswith("blk.") and record.bits != 32]
    layouts = {(record.bits, record.group_size) for record in blocks}
    print(sorted(layouts, key=str))
    assert len(layouts) >= (3 if request.param == "by default" else 9)
    free16 = {record.name for record in file.tensors.values() if record.group_size and record.kind == FREE16}
    n_hlq = sum(1 for record in file.tensors.values() if record.group_size)
    assert len(free16) == {"float16 scales": n_hlq, "a tiny matrix": 1}.get(request.param, 0)
    tokens = Tokenizer.from_json(file.tokenizer_json, file.config).encode(text.read_text()[:2000])[:48]
    return path, tokens, Transformer(file).logits(np.array(tokens))


@pytest.mark.parametrize("isa", supported_kernels())
@pytest.mark.parametrize("step", [48, 3, 1], ids=["batch", "threes", "tokens"])
def test_mixed_bits_give_what_the_reference_gives_with_the_same_weights(mixed, step, isa):
    """Within half of the bound of `test_novels_within_two_percent_of_the_reference`: a third of its blocks."""
    path, tokens, wanted = mixed
    with Model(path, isa) as model, model.session(len(tokens), threads=2) as session:
        parts = [session.eval(tokens[at : at + step], all_logits=True) for at in range(0, len(tokens), step)]
    found = np.concatenate(parts)
    error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
    print(f"relative RMS {error:.4f}")
    assert error < 0.01
    assert np.mean(found.argmax(-1) == wanted.argmax(-1)) >= 0.95
