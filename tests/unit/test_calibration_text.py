"""Calibration sequences: which ones a recipe chooses of a text, what they begin with, and texts that are of no use."""

import hashlib
import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT

from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

DATA = Path(__file__).parent.parent / "data"
FOLDER = DATA / "golden" / "llama1-mha"
SMALL = Recipe(num_samples=6, sequence_length=24)


def read_text(path, checkpoint, recipe=SMALL):
    return CalibrationText.read([path], checkpoint, recipe)


def test_calibration_sequences_are_the_seeds_choice_of_the_text(text):
    with Checkpoint.open(FOLDER) as checkpoint:
        one = read_text(text, checkpoint)
        tokens = Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config).encode(TEXT)
        assert one.tokens.shape == (6, 24)
        assert one.sha256 == (hashlib.sha256(TEXT.encode()).hexdigest(),)
        pieces = [tokens[start : start + 24] for start in range(0, len(tokens) - 23, 24)]
        places = [pieces.index(sequence) for sequence in one.tokens.tolist()]
        assert places == sorted(places)
        np.testing.assert_array_equal(read_text(text, checkpoint).tokens, one.tokens)
        other = read_text(text, checkpoint, Recipe(num_samples=6, sequence_length=24, seed=1))
        assert not np.array_equal(other.tokens, one.tokens)


@pytest.mark.parametrize(("n_wanted", "of_short"), [(6, 3), (12, 4), (7, 4)])
def test_every_file_gives_as_many_sequences_as_far_as_it_has_them(tmp_path, text, n_wanted, of_short):
    short = tmp_path / "short.txt"
    short.write_bytes(TEXT[::-1].encode())
    with Checkpoint.open(FOLDER) as checkpoint:
        n_short = len(read_text(short, checkpoint, replace(SMALL, num_samples=10**4)).tokens)
        tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config)
        tokens = tokenizer.encode(short.read_text())
        short.write_text(tokenizer.decode(tokens[: 4 * 24 + 3]))
        whole = read_text(short, checkpoint, replace(SMALL, num_samples=4)).tokens.tolist()
        assert n_short > len(whole) == 4
        found = CalibrationText.read([text, short], checkpoint, replace(SMALL, num_samples=n_wanted))
    assert len(found.tokens) == n_wanted
    assert sum(sequence in whole for sequence in found.tokens.tolist()) == of_short
    assert found.used_up == ((short,) if of_short == 4 else ())


def test_files_with_more_to_give_are_not_used_up_where_little_is_held_out(tmp_path, text, caplog):
    other, tiny = tmp_path / "other.txt", tmp_path / "tiny.txt"
    other.write_bytes(b"zyxwvuts " * 400)
    tiny.write_bytes(b"few")
    with Checkpoint.open(FOLDER) as checkpoint, caplog.at_level(logging.WARNING):
        found = CalibrationText.read([text, other, tiny], checkpoint, SMALL)
    assert len(found.held_out) == 1
    assert found.used_up == ()
    assert re.search(r"tiny.txt has \d+ tokens, less than a sequence of 24: nothing of it is used", caplog.text)


def test_what_is_held_out_has_not_been_seen_in_a_text_that_says_a_thing_twice(tmp_path, text):
    again = tmp_path / "again.txt"
    again.write_bytes(text.read_bytes() + b" the end")
    with Checkpoint.open(FOLDER) as checkpoint:
        found = CalibrationText.read([text, again], checkpoint, replace(SMALL, num_samples=16, tune=("e2e",)))
    seen, held_out = ({sequence.tobytes() for sequence in some} for some in (found.tokens, found.held_out))
    assert held_out and not seen & held_out
    assert len(found.fresh) and not {sequence.tobytes() for sequence in found.fresh} & (seen | held_out)


def test_a_text_is_given_once(tmp_path, text):
    again = tmp_path / "again.txt"
    again.write_bytes(text.read_bytes())
    with Checkpoint.open(FOLDER) as checkpoint, pytest.raises(ElutqError, match=r"text.* and .*again.txt are the same"):
        CalibrationText.read([text, again], checkpoint, SMALL)


def test_a_text_that_memory_cannot_hold_is_refused_before_it_is_encoded(text, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode", None)
    with Checkpoint.open(FOLDER) as checkpoint, pytest.raises(ElutqError, match=r"limit of 1e-06 GB .*: use a shorter"):
        CalibrationText.read([text], checkpoint, SMALL, max_memory=1e-6)


def test_a_short_text_is_used_whole_with_a_warning(text, caplog):
    with Checkpoint.open(FOLDER) as checkpoint, caplog.at_level(logging.WARNING):
        n_tokens = len(Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config).encode(TEXT))
        calibration = read_text(text, checkpoint, Recipe(num_samples=10**6, sequence_length=50))
        assert len(calibration.tokens) == n_tokens // 50
        assert f"has {n_tokens // 50} calibration sequences of 50 tokens, not 1000000: all are used" in caplog.text


def test_calibration_sequences_begin_with_bos_where_the_tokenizer_adds_one(tmp_path):
    folder, sampled = DATA / "novels-6m", DATA / "sampled.txt"
    recipe = Recipe(num_samples=6, sequence_length=24)
    with Checkpoint.open(folder) as checkpoint:
        tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config)
        found = CalibrationText.read([sampled], checkpoint, recipe).tokens
    assert found.shape == (6, 24)
    assert set(found[:, 0].tolist()) == {0} and tokenizer.token(0) == "<|begin_of_text|>"
    text = tokenizer.encode(sampled.read_text(encoding="utf-8"))
    pieces = [text[start : start + 23] for start in range(0, len(text), 23)]
    assert all(sequence in pieces for sequence in found[:, 1:].tolist())


def test_a_sequence_needs_room_after_what_the_tokenizer_puts_first(tmp_path):
    folder = shutil.copytree(DATA / "novels-6m", tmp_path / "long prefix")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    template = tokenizer["post_processor"]
    template["single"].insert(0, template["single"][0])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with Checkpoint.open(folder) as checkpoint, pytest.raises(ElutqError, match="no room for text after BOS"):
        CalibrationText.read([DATA / "sampled.txt"], checkpoint, Recipe(sequence_length=2))


@pytest.mark.parametrize(
    ("content", "recipe", "message"),
    [
        (b"", SMALL, "has 0 tokens, less than one calibration sequence of 24"),
        (b"fox", SMALL, "use a longer text or a smaller sequence length"),
        (b"\xff\xfe", SMALL, "is not UTF-8 text"),
        (TEXT.encode(), Recipe(sequence_length=65), "longer than the model's context of 64"),
    ],
)
def test_unfit_calibration_texts_are_refused(tmp_path, content, recipe, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with Checkpoint.open(FOLDER) as checkpoint, pytest.raises(ElutqError, match=message):
        read_text(path, checkpoint, recipe)
    with Checkpoint.open(FOLDER) as checkpoint, pytest.raises(ElutqError, match="cannot read"):
        read_text(tmp_path / "nowhere.txt", checkpoint)
