"""Text that a model writes to be calibrated on: drawn from what the float32 reference predicts, and repeatable."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from elutq_cli.app import app
from elutq_cli.generation import own_text
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.own_text import AT_ONCE, LENGTH, own_texts
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile

NOVELS = Path(__file__).parent.parent / "data" / "novels-6m"


def written(path, n_tokens, seed=0, threads=1):
    with LanguageModel(path) as model:
        return list(own_texts(model, n_tokens, seed, threads))


def test_what_is_written_surprises_the_model_as_much_as_it_expects(novels_2bit):
    """-log p of tokens that are drawn from p has the entropy of p as its mean: temperature 1, and nothing cut off."""
    file = ModelFile.open(novels_2bit)
    tokenizer, model = file.tokenizer(), Transformer(file)
    texts = written(novels_2bit, 12 * LENGTH)
    assert len(texts) == 12
    surprise, entropy = [], []
    for text in texts:
        tokens = np.array([*tokenizer.prefix, *tokenizer.encode(text)])[:LENGTH]
        assert len(tokens) > 0.9 * LENGTH  # a text may have shorter spellings than the model's own
        logits = model.logits(tokens).astype(np.float64)[1:-1]
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        surprise.append(-log_p[np.arange(len(log_p)), tokens[2:]].mean())
        entropy.append(-(np.exp(log_p) * log_p).sum(axis=1).mean())
    assert np.mean(surprise) == pytest.approx(np.mean(entropy), rel=0.05)


def test_the_seed_chooses_the_text_and_threads_do_not(novels_2bit):
    n_tokens = (AT_ONCE + 1) * LENGTH  # more than are written together
    one = written(novels_2bit, n_tokens)
    assert len(set(one)) == len(one) == AT_ONCE + 1
    assert written(novels_2bit, n_tokens, threads=2) == one
    assert written(novels_2bit, LENGTH, seed=1)[0] != one[0]


def test_more_than_memory_holds_is_refused_and_what_fits_is_written(novels_2bit, tmp_path, monkeypatch):
    with LanguageModel(novels_2bit) as model:
        memory = 4 * model.native.cache_bytes(LENGTH)
    monkeypatch.setattr(own_text, "available_memory", lambda: memory)
    arguments = ["write", str(novels_2bit), "-o", str(tmp_path / "own.txt"), "-t", "1"]
    result = CliRunner().invoke(app, [*arguments, "-n", str(5 * LENGTH)])
    assert isinstance(result.exception, ElutqError)
    assert f"use -n {2 * LENGTH}" in str(result.exception)
    assert not any(tmp_path.iterdir())
    assert CliRunner().invoke(app, [*arguments, "-n", str(2 * LENGTH)]).exit_code == 0


def test_every_other_text_begins_as_a_chat(chat_model):
    with LanguageModel(chat_model) as model:
        user = [{"role": "user", "content": "WHAT A USER SAYS"}]
        before = model.chat_template.render(user, add_generation_prompt=False).partition("WHAT A USER SAYS")[0]
        before = model.tokenizer.decode(model.tokenizer.encode(before)).lstrip()
    assert before
    texts = written(chat_model, 4 * LENGTH)
    assert [text.lstrip().startswith(before) for text in texts] == [True, False, True, False]


def test_a_model_is_calibrated_on_its_own_text_beside_another(novels_2bit, tmp_path):
    own, result = tmp_path / "own.txt", CliRunner()
    arguments = ["write", str(novels_2bit), "-o", str(own), "-n", "4096", "-t", "1"]
    assert result.invoke(app, arguments).exit_code == 0
    texts = own.read_text(encoding="utf-8")
    assert texts == "".join(f"{text}\n\n" for text in written(novels_2bit, 4096))
    assert "<|begin_of_text|>" not in texts[:100]
    refused = result.invoke(app, arguments)
    assert isinstance(refused.exception, ElutqError) and "--force" in str(refused.exception)
    other = shutil.copy(NOVELS.parent / "sampled.txt", tmp_path / "other.txt")
    with Checkpoint.open(NOVELS) as checkpoint:
        recipe = Recipe(num_samples=12, sequence_length=64)
        tokens = CalibrationText.read([Path(other), own], checkpoint, recipe).tokens
        alone = CalibrationText.read([own], checkpoint, Recipe(num_samples=10**4, sequence_length=64)).tokens
    from_own = [sequence for sequence in tokens.tolist() if sequence in alone.tolist()]
    assert len(from_own) == 6
