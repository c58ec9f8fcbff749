"""Model files of every family, written, read back and listed by another reader; files that contradict themselves."""

import json
import math

import numpy as np
import pytest
from gguf import GGUFReader as PeerReader
from gguf.constants import MODEL_ARCH_NAMES
from samples import GOLDEN, every_family, random_matrix, tensor_sources, write_random_model

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError, FormatError
from elutq_formats.gguf import ValueType
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_writer import GGUFWriter
from elutq_formats.hlq import pack
from elutq_formats.model_file import ModelFile
from elutq_formats.model_writer import write_model
from elutq_formats.names import gguf_name
from elutq_formats.origin import Origin
from elutq_formats.tensor_record import TensorRecord

TYPES = {bool: ValueType.BOOL, int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}


@pytest.fixture(scope="module")
def scaled_model(tmp_path_factory):
    """A model file with RoPE scaling, thus with every kind of tensor."""
    path = tmp_path_factory.mktemp("model") / "scaled.gguf"
    write_random_model(path, GOLDEN / "llama31-rope-scaling")
    return path


X = Origin("x", "x")


def rewrite(source, target, changes=None, drop_tensors=(), extra_tensors=(), dims=None, types=None, alignment=64):
    """Copy a model file with changed metadata or tensors; a None value removes its key."""
    reader = GGUFReader(source)
    metadata = {**reader.metadata, **(changes or {})}
    tensors = {name: info for name, info in reader.tensors.items() if name not in drop_tensors}
    with GGUFWriter(target, alignment) as writer:
        for key, value in metadata.items():
            if key == "general.alignment" or value is None:
                continue
            first = value[0] if isinstance(value, list) and value else value
            writer.add_metadata(key, value, TYPES[type(first)] if not isinstance(first, list) else ValueType.UINT32)
        for name, info in tensors.items():
            writer.add_tensor(name, (dims or {}).get(name, info.dims), (types or {}).get(name, info.ggml_type))
        for name, values in extra_tensors:
            writer.add_tensor(name, values.shape[::-1], 0)
        writer.write_header()
        for name in tensors:
            writer.write_tensor(name, reader.data(name))
        for name, values in extra_tensors:
            writer.write_tensor(name, values)
    return target


@every_family
def test_every_family_comes_back(tmp_path, family):
    path = tmp_path / "model.gguf"
    write_random_model(path, family)
    with Checkpoint.open(family) as checkpoint:
        model = ModelFile.open(path)
        assert model.config == checkpoint.config
        assert model.tokenizer_json == checkpoint.tokenizer_json
        assert (model.name, model.chat_template) == (family.name, "{{ messages }}")
        assert model.provenance == {"source": "golden", "seed": 7, "calibration.files": ["a.txt", "b.txt"]}
        assert model.size_bytes == path.stat().st_size
        for name in checkpoint.names:
            record = model.tensors[gguf_name(name)]
            loaded = model.load(name)
            assert (loaded.dtype, loaded.shape) == (np.float32, checkpoint.shape(name))
            if record.bits == 2:
                expected = random_matrix(*loaded.shape[-2:], 2, 32)
                for number, matrix in enumerate(loaded.reshape(-1, *loaded.shape[-2:])):
                    np.testing.assert_array_equal(matrix, expected.dequantize())
                    np.testing.assert_array_equal(model.hlq(record.name, number).codes, expected.codes)
                np.testing.assert_array_equal(model.hlq(record.name).codes, expected.codes)
                assert record.error == 0.25
            else:
                exact = checkpoint.load(name)
                np.testing.assert_array_equal(loaded, exact.astype(np.float16) if record.bits == 16 else exact)
        assert model.has("lm_head.weight") is not checkpoint.config.tie_word_embeddings


@every_family
def test_gguf_py_lists_every_family(tmp_path, family):
    path = tmp_path / "model.gguf"
    write_random_model(path, family)
    reader = PeerReader(path)
    records = ModelFile.open(path).tensors
    assert {tensor.name: (tensor.n_bytes, tuple(tensor.shape.tolist())) for tensor in reader.tensors} == {
        record.name: (record.n_bytes, record.dims) for record in records.values()
    }
    assert reader.get_field("general.architecture").contents() in MODEL_ARCH_NAMES.values()
    assert reader.get_field("hlq.version").contents() == 1


def test_matrices_are_in_place_and_aligned(scaled_model):
    reader = GGUFReader(scaled_model)
    assert all(reader.data(name).ctypes.data % 64 == 0 for name in reader.tensors)


def test_bits_per_weight_counts_everything_but_the_rope_divisors(scaled_model):
    model = ModelFile.open(scaled_model)
    records = [record for record in model.tensors.values() if record.name != "rope_freqs.weight"]
    assert len(records) == len(model.tensors) - 1
    n_weights = sum(math.prod(shape) for shape in model.config.tensor_shapes().values())
    assert sum(record.n_weights for record in records) == n_weights
    assert model.bits_per_weight() == pytest.approx(8 * sum(record.n_bytes for record in records) / n_weights)


def test_rope_divisors_are_stored(scaled_model):
    model = ModelFile.open(scaled_model)
    stored = GGUFReader(scaled_model).data("rope_freqs.weight").view("<f4")
    np.testing.assert_array_equal(stored, model.config.rope_divisors()["rope_freqs.weight"])


def test_a_tied_head_may_be_stored_with_bits_of_its_own(tmp_path):
    path = tmp_path / "model.gguf"
    with Checkpoint.open(GOLDEN / "smollm-tied") as checkpoint:
        shape = checkpoint.shape("model.embed_tokens.weight")
        head = TensorRecord("output.weight", 3, *shape, group_size=32), lambda: pack(random_matrix(*shape, 3, 32))
        write_model(path, checkpoint.config, [*tensor_sources(checkpoint), head], origin=X, tokenizer_json=None)
    model = ModelFile.open(path)
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.load("lm_head.weight"), random_matrix(*shape, 3, 32).dequantize())
    assert model.tensors["output.weight"].error is None
    assert (model.chat_template, model.provenance) == (None, {})
    with pytest.raises(FormatError, match=r"has no tokenizer, so it takes no text"):
        _ = model.tokenizer_json


def test_every_kind_of_provenance_comes_back(tmp_path):
    path = tmp_path / "model.gguf"
    provenance = {"a": "text", "b": -(2**40), "c": 0.1, "d": True, "e": ["x"], "f": []}
    with Checkpoint.open(GOLDEN / "qwen2") as checkpoint:
        sources = list(tensor_sources(checkpoint))
        write_model(path, checkpoint.config, sources, origin=X, tokenizer_json="{}", provenance=provenance)
    assert ModelFile.open(path).provenance == provenance


class TestWriter:
    @pytest.fixture(autouse=True)
    def sources(self, tmp_path):
        self.path = tmp_path / "model.gguf"
        checkpoint = Checkpoint.open(GOLDEN / "smollm-tied")
        self.config, self.sources = checkpoint.config, list(tensor_sources(checkpoint))

    def write(self, sources, **options):
        write_model(self.path, self.config, sources, origin=X, tokenizer_json=None, **options)

    def test_one_tensor_at_a_time(self):
        alive, peak = 0, 0

        class Counted(np.ndarray):
            def __del__(self):
                nonlocal alive
                alive -= 1

        def counted(contents):
            nonlocal alive, peak
            alive, peak = alive + 1, max(peak, alive + 1)
            return contents().view(Counted)

        self.write([(record, lambda contents=contents: counted(contents)) for record, contents in self.sources])
        assert peak <= 2

    def test_a_failing_tensor_leaves_no_file(self):
        record, _ = self.sources[-1]
        broken = [*self.sources[:-1], (record, lambda: 1 / 0)]
        with pytest.raises(ZeroDivisionError):
            self.write(broken)
        assert list(self.path.parent.iterdir()) == []

    def test_an_existing_file_needs_force(self):
        self.path.write_text("old")
        with pytest.raises(ElutqError, match="--force"):
            self.write(self.sources)
        assert self.path.read_text() == "old"
        self.write(self.sources, force=True)
        assert ModelFile.open(self.path).config == self.config

    def test_the_tensors_are_those_of_the_model(self):
        extra = TensorRecord("blk.9.attn_q.bias", 32, 4), lambda: np.zeros(4)
        for wrong in (self.sources[:-1], [*self.sources, self.sources[0]], [*self.sources, extra]):
            with pytest.raises(ValueError, match="tensors missing, unknown, repeated or of the wrong size"):
                self.write(wrong)

    @pytest.mark.parametrize("value", [1e6, math.nan])
    def test_values_that_fp16_cannot_hold_are_refused(self, value):
        record, contents = self.sources[0]
        assert record.bits == 16
        with pytest.raises(FormatError, match=r"token_embd\.weight holds values that 16 bits cannot"):
            self.write([(record, lambda: np.full_like(contents(), value)), *self.sources[1:]])


CONTRADICTIONS = {
    "not ours": ({"hlq.version": None}, "is a GGUF file, but not one of elutq: elutq quantize makes one"),
    "version 3": ({"hlq.version": 3}, "has HLQ version 3: this elutq reads 1 to 2; upgrade"),
    "version 2 without kinds": ({"hlq.version": 2}, "it has no hlq.tensor.kinds"),
    "version text": ({"hlq.version": "1"}, r"hlq\.version is not of type UINT32"),
    "no architecture": ({"general.architecture": None}, r"it has no general\.architecture"),
    "architecture": ({"general.architecture": "gpt2"}, "architecture 'gpt2' of model type 'llama' is unknown"),
    "model type": ({"elutq.model_type": "mamba"}, "model type 'mamba' is unknown"),
    "no width": ({"llama.embedding_length": None}, r"it has no llama\.embedding_length"),
    "width 0": ({"llama.embedding_length": 0}, r"llama\.embedding_length is 0, not an integer from 1"),
    "width of 2^32": ({"llama.embedding_length": 2**32 - 1}, "not an integer from 1"),
    "width": ({"llama.embedding_length": 64}, r"tensor token_embd\.weight has shape"),
    "width float": ({"llama.embedding_length": 64.0}, r"llama\.embedding_length is not of type UINT32"),
    "blocks": ({"llama.block_count": 3}, r"tensor blk\.2\.\w+\.weight is missing"),
    "fewer blocks": ({"llama.block_count": 1}, r"tensor blk\.1\.\w+\.weight is not part of the model"),
    "absurd blocks": ({"llama.block_count": 2**31 - 1}, "num_hidden_layers 2147483647 is more than"),
    "absurd head": (
        dict.fromkeys(
            ["llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"], 2**31 - 2
        ),
        "head_dim 2147483646 is more than 1024",
    ),
    "value length": ({"llama.attention.value_length": 4}, r"value_length differs from llama\.attention\.key_length"),
    "heads": ({"llama.attention.head_count_kv": 3}, "is not a multiple of num_key_value_heads 3"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "is 0.0, not a positive number"),
    "epsilon NaN": ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "is nan, not a positive number"),
    "bos": ({"tokenizer.ggml.bos_token_id": 10**6}, "a special token is not among"),
    "eos": ({"elutq.eos_token_ids": [10**6]}, "a special token is not among"),
    "eos floats": ({"elutq.eos_token_ids": [1.0]}, r"elutq\.eos_token_ids is not an ARRAY of UINT32"),
    "chat template": ({"tokenizer.chat_template": 1}, r"tokenizer\.chat_template is not of type STRING"),
    "rope JSON": ({"elutq.rope_scaling": "{"}, r"elutq\.rope_scaling is not a JSON object"),
    "rope array": ({"elutq.rope_scaling": "[]"}, r"elutq\.rope_scaling is not a JSON object"),
    "rope kind": (
        {"elutq.rope_scaling": '{"rope_type": "yarn"}'},
        "RoPE scaling has no original_max_position_embeddings",
    ),
    "rope dropped": ({"elutq.rope_scaling": None}, r"rope_freqs\.weight is not part of the model"),
    "rope differs": (
        {"elutq.rope_scaling": json.dumps({"rope_type": "linear", "factor": 3})},
        r"rope_freqs\.weight differs from what elutq\.rope_scaling says",
    ),
    "no names": ({"hlq.tensor.names": None}, r"it has no hlq\.tensor\.names"),
    "numbers for names": ({"hlq.tensor.names": [1]}, r"hlq\.tensor\.names is not an ARRAY of STRING"),
    "short bits": ({"hlq.tensor.bits": [2]}, "arrays differ in length"),
    "no errors": ({"hlq.tensor.errors": [0.5]}, "arrays differ in length"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradicting_metadata_are_refused(tmp_path, scaled_model, name):
    changes, message = CONTRADICTIONS[name]
    with pytest.raises(FormatError, match=message) as refusal:
        ModelFile.open(rewrite(scaled_model, tmp_path / "model.gguf", changes))
    assert str(refusal.value).isprintable()
    assert "model.gguf" in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("names", "blk.0.attn_q.bias\n", r"lists 'blk\.0\.attn_q\.bias\\n', which is not there"),
        ("names", "blk.1.attn_q.weight", "names a tensor twice"),
        ("names", "output_norm.weight", "is F32, but hlq.tensor.names says otherwise|is I8, but"),
        ("bits", 5, "5 bits per weight"),
        ("bits", 3, "has dimensions"),
        ("group_sizes", 48, "group size 48"),
        ("group_sizes", 128, "groups of 128 do not divide 32 columns: use group size 32"),
        ("rows", 0, "is empty"),
        ("rows", 2**32 - 1, "has dimensions"),
        ("columns", 2**32 - 32, "has dimensions"),
    ],
)
def test_a_contradicting_record_is_refused(tmp_path, scaled_model, key, value, message):
    key = f"hlq.tensor.{key}"
    values = [value, *GGUFReader(scaled_model).metadata[key][1:]]
    with pytest.raises(FormatError, match=message) as refusal:
        ModelFile.open(rewrite(scaled_model, tmp_path / "model.gguf", {key: values}))
    assert str(refusal.value).isprintable()


def test_damaged_tensors_are_refused(tmp_path, scaled_model):
    target = tmp_path / "model.gguf"
    bias = np.zeros(32, np.float32)
    n_embedded = ModelFile.open(scaled_model).tensors["token_embd.weight"].n_weights
    for spoiled, message in [
        ({"drop_tensors": ["output_norm.weight"]}, r"tensor output_norm\.weight is missing"),
        ({"drop_tensors": ["blk.0.attn_q.weight"]}, "which is not there"),
        ({"drop_tensors": ["rope_freqs.weight"]}, r"tensor rope_freqs\.weight is missing"),
        ({"extra_tensors": [("blk.1.attn_output.bias", bias)]}, r"blk\.1\.attn_output\.bias is not part of the model"),
        ({"extra_tensors": [("blk.0.attn_output.bias", bias)]}, r"tensor blk\.1\.attn_output\.bias is missing"),
        ({"dims": {"output_norm.weight": (8, 4)}}, r"output_norm\.weight has shape \[4, 8\], the metadata say \[32\]"),
        ({"dims": {"token_embd.weight": (n_embedded,)}}, r"token_embd\.weight has dimensions"),
        ({"types": {"output_norm.weight": 1}, "dims": {"output_norm.weight": (2, 32)}}, "has shape"),
        ({"alignment": 32}, "its alignment is 32, not 64"),
    ]:
        with pytest.raises(FormatError, match=message):
            ModelFile.open(rewrite(scaled_model, target, **spoiled))


def test_an_impossible_scale_is_found_when_the_matrix_is_read(tmp_path, scaled_model):
    path = tmp_path / "model.gguf"
    path.write_bytes(scaled_model.read_bytes())
    contents = bytearray(path.read_bytes())
    start = contents.rindex(GGUFReader(path).data("blk.1.ffn_up.weight").tobytes())
    contents[start : start + 2] = np.array(-1, "<f2").tobytes()
    path.write_bytes(contents)
    with pytest.raises(FormatError, match=r"model\.gguf: tensor blk\.1\.ffn_up\.weight: .* negative half scale"):
        ModelFile.open(path).load("model.layers.1.mlp.up_proj.weight")


def test_a_git_lfs_pointer_is_no_model_file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(FormatError, match="is a Git LFS pointer, not the file itself"):
        ModelFile.open(path)


def test_a_tensor_that_is_not_there(scaled_model):
    model = ModelFile.open(scaled_model)
    assert not model.has("model.layers.9.mlp.up_proj.weight")
    with pytest.raises(FormatError, match=r"has no tensor blk\.9\.ffn_up\.weight"):
        model.load("model.layers.9.mlp.up_proj.weight")
    with pytest.raises(FormatError, match="is not an HLQ matrix"):
        model.hlq("output_norm.weight")


def test_random_damage_is_refused_or_harmless(tmp_path, scaled_model):
    contents = scaled_model.read_bytes()
    header_bytes = contents.index(b"rope_freqs.weight") + 60
    path = tmp_path / "model.gguf"
    seed = 20240818
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(300):
        damaged = bytearray(contents)
        for position in rng.integers(0, header_bytes, 4):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            ModelFile.open(path)
        except FormatError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 100
