"""Model files that lie, through the C runtime: each is refused in one line that names what is wrong with it."""

import math
import struct
from pathlib import Path

import pytest
from gguf_container import Container
from lying_experts import LYING_EXPERTS, without_tensor
from lying_files import LYING
from make_models import expert_config, golden_config, write_random

from elutq_formats.errors import FormatError
from elutq_formats.model_file import ModelFile
from elutq_native import Model, NativeError

SEEDS = Path(__file__).parents[1] / "fuzz"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    write_random(path, golden_config("llama31-rope-scaling"), bits=2, group_size=32)
    return path.read_bytes()


def test_taking_apart_and_putting_together_changes_nothing(sound, tmp_path):
    assert Container(sound).bytes() == sound


def check_refused(raw, lie, native_message, python_message, path):
    container = Container(raw)
    lie(container)
    path.write_bytes(container.bytes())
    with pytest.raises(NativeError, match=native_message) as refused:
        Model(path)
    assert "\n" not in str(refused.value) and str(refused.value).isprintable()
    with pytest.raises(FormatError, match=python_message) as refused:
        ModelFile.open(path)
    assert "\n" not in str(refused.value) and str(refused.value).isprintable()


@pytest.fixture(scope="module")
def sound_experts(tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "model.gguf"
    write_random(path, expert_config(), bits=2, group_size=32)
    return path.read_bytes()


@pytest.mark.parametrize("change", LYING_EXPERTS)
def test_lies_about_experts_are_refused_by_name(change, sound_experts, tmp_path):
    check_refused(sound_experts, *LYING_EXPERTS[change], tmp_path / "lie.gguf")


def test_one_norm_over_all_heads_without_its_partner_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_random(path, golden_config("olmo2"), bits=2, group_size=32)
    message = "blk.1 has one of attn_q_norm.weight and attn_k_norm.weight"
    for name in ("q", "k"):
        lie = without_tensor(f"blk.1.attn_{name}_norm.weight")
        check_refused(path.read_bytes(), lie, message, f"attn_{name}_norm.weight", tmp_path / "lie.gguf")


@pytest.mark.parametrize("change", LYING)
def test_refused_by_name(change, sound, tmp_path):
    check_refused(sound, *LYING[change], tmp_path / "lie.gguf")


HALVES = {"nan": b"\x00\x7e", "infinite": b"\x00\x7c", "minus infinite": b"\x00\xfc"}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.0.ffn_down.weight", "token_embd.weight"]
)
def test_scales_that_are_not_numbers_are_found_when_they_matter(half, name, sound, tmp_path):
    """Looking at every scale would read the whole file at open, so it happens when a logit is not a number."""
    container, path = Container(sound), tmp_path / "lie.gguf"
    for at in range(64, 128, 2):  # of all rows of the first block, the second plane's scales
        container.patch(name, at, HALVES[half])
    path.write_bytes(container.bytes())
    row = 5  # of the embedding's damaged block
    with Model(path) as model, model.session(context_size=8, threads=1) as session:
        for tokens in [row], [1, 2, 3, row, 4]:
            with pytest.raises(NativeError, match=f"{name} holds a scale or weight that no model has") as refused:
                session.eval(tokens)
            assert refused.value.bad_input and session.position == 0
        if name == "token_embd.weight":
            session.eval([100])  # another row of it
    with pytest.raises(FormatError, match=name):
        ModelFile.open(path).hlq(name)


def test_negative_scales_are_refused_in_large_batches(tmp_path):
    """Tables of them are sound; a large batch rounds scales to whole steps, which they do not have."""
    path = tmp_path / "lie.gguf"
    write_random(path, golden_config("llama31-rope-scaling"), bits=4, group_size=32)
    container = Container(path.read_bytes())
    for at in range(0, 128, 2):
        container.patch("blk.0.attn_q.weight", at, struct.pack("<e", 1.0 if at < 64 else -0.999))
    path.write_bytes(container.bytes())
    with Model(path, "scalar") as model, model.session(context_size=64, threads=1) as session:
        session.eval([1, 2, 3, 4, 5])
        with pytest.raises(NativeError, match=r"blk\.0\.attn_q\.weight holds a scale or weight that no model has"):
            session.eval([1] * 59)
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight"):
        ModelFile.open(path).hlq("blk.0.attn_q.weight")


def test_every_shorter_file_is_refused(sound, tmp_path):
    """Cut at every length in the header and at a few in the data."""
    path = tmp_path / "cut.gguf"
    container = Container(sound)
    _, dims, kind, offset = container.tensors[-1]
    end_of_header = len(sound) - len(container.data)
    end = end_of_header + offset + math.prod(dims) * {0: 4, 1: 2, 24: 1}[kind]
    for length in [*range(0, end_of_header, 7), *range(end_of_header, end, 997), end - 1]:
        path.write_bytes(sound[:length])
        with pytest.raises(NativeError):
            Model(path)


@pytest.mark.parametrize("path", sorted(SEEDS.glob("*/*.gguf")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_inputs_of_the_fuzzer(path):
    """Seeds run, findings are refused or run; neither ends the process."""
    try:
        with Model(path) as model, model.session(context_size=6, threads=1) as session:
            session.eval([1, 2, 3, 4, 5])
            session.eval([0])
    except NativeError:
        assert path.parent.name == "findings"
