"""`elutq run --prompt-cache`: what is kept is used, and a file that cannot be used costs nothing but its time."""

import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN

import elutq
from elutq_cli.generation.prompt_cache import MAGIC, PromptCache
from elutq_formats.errors import ElutqError

ELUTQ = Path(sys.executable).with_name("elutq")
SYSTEM = "It was a dark night, and the captain stood on the deck of his ship, and looked at the sea. " * 8
HEADER = len(MAGIC) + 32 + 4


@pytest.fixture
def load(novels_2bit):
    """Returns a function that opens a model with a prompt cache and evaluates a prompt; closed at the end."""
    opened = []

    def load(path, prompt=SYSTEM, n_predict=4, model=novels_2bit, ctx_size=512, cache_type="f16"):
        model = elutq.load(model, ctx_size=ctx_size, threads=1, cache_type=cache_type)
        opened.append(model)
        cache = PromptCache(path, model)
        generation = elutq.generate(model, prompt, n_predict, temp=0)
        generation.read()
        cache.keep(generation)
        return generation

    yield load
    for model in opened:
        model.close()


@pytest.fixture
def cache(load, tmp_path):
    """A sound cache of SYSTEM."""
    load(tmp_path / "prompt.cache")
    return tmp_path / "prompt.cache"


def test_the_same_prompt_is_not_computed_again_and_goes_on_the_same(load, cache):
    with_cache = load(cache)
    assert with_cache.reused_tokens == with_cache.prompt_tokens - 1
    # The last token alone or with others: the kernels' tables round differently, so compare with the same split.
    fresh = load(cache.with_name("none"))
    again = elutq.generate(fresh._model, SYSTEM, 4, temp=0)
    assert again.read() == with_cache.text


def test_another_question_after_the_same_beginning_uses_it_and_leaves_the_file(load, cache):
    before = cache.read_bytes()
    longer = load(cache, SYSTEM + "And then")
    assert longer.reused_tokens > 0.9 * longer.prompt_tokens
    assert cache.read_bytes() == before


def test_another_prompt_replaces_it(load, cache):
    other = load(cache, "My dear " * 40)
    assert other.reused_tokens < 5
    assert load(cache, "My dear " * 40).reused_tokens == other.prompt_tokens - 1


def test_a_shorter_context_takes_what_it_holds(load, cache):
    assert load(cache, SYSTEM[:100], 1, ctx_size=70).reused_tokens > 10


def test_an_interrupted_prompt_keeps_what_was_done(novels_2bit, tmp_path):
    with elutq.load(novels_2bit, ctx_size=1024, threads=1) as model:
        cache = PromptCache(tmp_path / "prompt.cache", model)
        generation = elutq.generate(model, [7] * 600, 1)
        evaluate = model.scheduler.engine.eval

        def cancel_after(runs):
            logits = evaluate(runs)
            generation.cancel()
            return logits

        model.scheduler.engine.eval = cancel_after
        generation.read()
        assert generation.finish_reason == "cancelled"
        cache.keep(generation)
        assert len(model.tokens) == 128
    with elutq.load(novels_2bit, ctx_size=1024, threads=1) as model:
        PromptCache(tmp_path / "prompt.cache", model)
        assert len(model.tokens) == 128


def damaged(contents, how):
    """The file with a fault, its checksum made anew where the fault is a lie and not an accident."""
    n_tokens = int.from_bytes(contents[HEADER : HEADER + 4], "little")
    if how == "cut":
        return contents[:-100]
    if how == "empty":
        return b""
    if how == "longer":
        return contents + b"x"
    if how == "one bit":
        return contents[:5000] + bytes([contents[5000] ^ 1]) + contents[5001:]
    body = bytearray(contents[:-32])
    if how == "another version":
        body[7:8] = b"3"
    elif how == "another model":
        body[20] ^= 1
    elif how == "many tokens":
        body[HEADER : HEADER + 4] = (2**32 - 1).to_bytes(4, "little")
    elif how == "few tokens":
        body[HEADER : HEADER + 4] = (n_tokens - 1).to_bytes(4, "little")
    elif how == "not a number":
        body[-2:] = np.array([np.nan], "<f2").tobytes()
    elif how == "foreign tokens":
        body[HEADER + 8 : HEADER + 12] = b"\xff" * 4
    return bytes(body) + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut", "damaged or cut short"),
        ("empty", "cut short"),
        ("longer", "cut short"),
        ("one bit", "damaged"),
        ("another version", "made by another version"),
        ("another model", "made with another model"),
        ("many tokens", "cut short"),
        ("few tokens", "cut short"),
        ("not a number", "not finite"),
        ("foreign tokens", None),  # of no use for any prompt, and harmless
    ],
)
def test_a_file_of_no_use_is_told_in_one_line_and_replaced(load, cache, capsys, how, reason):
    sound = cache.read_bytes()
    expected = load(cache.with_name("none")).text
    cache.write_bytes(damaged(sound, how))
    generation = load(cache)
    assert generation.text == expected
    assert generation.reused_tokens == 0
    told = capsys.readouterr().err
    assert told == "" if reason is None else (told.count("\n") == 1 and reason in told)
    assert cache.read_bytes() == sound
    assert list(cache.parent.glob(".*.tmp")) == []


def test_a_file_that_is_no_cache_is_refused_and_kept(load, cache, novels_2bit):
    for contents in (novels_2bit.read_bytes(), b"notes of mine", b"el"):
        cache.write_bytes(contents)
        if contents == b"el":  # of a cache whose writing was cut short
            assert load(cache).reused_tokens == 0
            continue
        with pytest.raises(ElutqError, match="is not a prompt cache of elutq, and would be replaced: choose another"):
            load(cache)
        assert cache.read_bytes() == contents


def test_a_file_that_cannot_be_read_is_kept(load, cache, monkeypatch):
    before, opened = cache.read_bytes(), Path.open

    def refuse(path, *arguments, **options):
        if path == cache:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(ElutqError, match=r"cannot read .*: Permission denied"):
        patched.setattr(Path, "open", refuse)
        load(cache)
    assert cache.read_bytes() == before


def test_a_cache_of_another_model_is_not_used(load, cache, make_model, capsys):
    assert load(cache, model=make_model(bits=3)).reused_tokens == 0
    assert "made with another model" in capsys.readouterr().err


def test_a_cache_of_another_type_is_not_used(load, cache, capsys):
    assert load(cache, cache_type="q8").reused_tokens == 0
    assert "made with another cache type" in capsys.readouterr().err
    half = cache.stat().st_size
    again = load(cache, cache_type="q8")
    assert again.reused_tokens == again.prompt_tokens - 1
    load(cache)
    assert half < 0.6 * cache.stat().st_size


def test_a_place_where_nothing_can_be_written_is_told_before_any_work(load, tmp_path):
    with pytest.raises(ElutqError, match="folder"):
        load(tmp_path / "nowhere" / "prompt.cache")
    with pytest.raises(ElutqError, match="it is a folder"):
        load(tmp_path)


def test_through_the_command_line(novels_2bit, tmp_path):
    command = [ELUTQ, "run", novels_2bit, "-p", SYSTEM, "-n", "2", "--json", "--prompt-cache", tmp_path / "cache"]
    first, second = (
        json.loads(subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout)
        for _ in range(2)
    )
    assert (first["n_reused"], second["n_reused"]) == (0, first["n_prompt"] - 1)


def test_keys_that_turned_for_a_longer_context_are_not_taken_for_a_shorter_one(load, make_model, tmp_path, capsys):
    """Phi-3's longrope: contexts of up to 64 tokens turn by other numbers than those beyond."""
    model, path = make_model(GOLDEN / "phi3-short", bits=4, group_size=32), tmp_path / "prompt.cache"
    load(path, "hello there", model=model, ctx_size=40)
    assert load(path, "hello there", model=model, ctx_size=64).reused_tokens == 10
    assert load(path, "hello there", model=model, ctx_size=65).reused_tokens == 0
    assert "made with another size of context, in which positions turn otherwise" in capsys.readouterr().err
    assert load(path, "hello there", model=model, ctx_size=100).reused_tokens == 10
