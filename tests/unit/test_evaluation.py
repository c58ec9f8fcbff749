"""Windows, perplexity, KL divergence and top-1 agreement against direct sums in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest

from elutq_cli.evaluation import evaluate, log_softmax, score, split_windows
from elutq_formats.errors import ElutqError


class Lookup:
    """A bigram model: the logits after a token are a row of a table."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=np.float32)

    def logits(self, tokens):
        rows = self.table[tokens].copy()
        rows[-1] = np.nan  # predicts past the window: must not count
        return rows


class Streamed(Lookup):
    """The same, asked for all windows at once."""

    def window_logits(self, windows, advance, n_logits):
        for window, n_wanted in zip(windows, n_logits, strict=True):
            advance(0.5)
            advance(0.5)
            yield self.logits(window)[-n_wanted:]


def random_table(seed, vocab_size=11, scale=3.0):
    return scale * np.random.default_rng(seed).standard_normal((vocab_size, vocab_size))


def softmax(row):
    weights = [math.exp(float(value)) for value in np.float32(row)]
    return [weight / math.fsum(weights) for weight in weights]


def test_windows_do_not_overlap_and_drop_the_rest():
    windows = split_windows(list(range(23)), 5).tokens
    assert windows.tolist() == np.arange(20).reshape(4, 5).tolist()
    assert windows.dtype == np.int64


@pytest.mark.parametrize(("chunks", "n_windows"), [(None, 4), (1, 1), (4, 4), (99, 4)])
def test_chunks_take_the_first_windows(chunks, n_windows):
    assert split_windows(list(range(23)), 5, chunks).tokens.tolist() == np.arange(20).reshape(4, 5)[:n_windows].tolist()


@pytest.mark.parametrize(
    ("n_tokens", "ctx", "chunks", "message"),
    [
        (0, 5, None, "text is empty"),
        (4, 5, None, "less than one window"),
        (9, 1, None, "context size 1 is too small"),
        (9, 0, None, "context size 0 is too small"),
        (9, 5, 0, "at least 1"),
        (9, 5, -1, "at least 1"),
    ],
)
def test_windows_refuse(n_tokens, ctx, chunks, message):
    with pytest.raises(ElutqError, match=message) as caught:
        split_windows(list(range(n_tokens)), ctx, chunks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Lookup, Streamed])
@pytest.mark.parametrize("chunk_elements", [1, 30, 1 << 20])
def test_against_direct_sums(kind, chunk_elements, monkeypatch):
    monkeypatch.setattr(score, "CHUNK_ELEMENTS", chunk_elements)
    table, reference_table = random_table(1), random_table(2)
    windows = split_windows(np.random.default_rng(3).integers(0, 11, 64), 9)
    progress = []
    result = evaluate(kind(table), windows, Lookup(reference_table), progress.append)

    losses, divergences, agreements = [], [], []
    for window in windows.tokens:
        for previous, target in pairwise(window):
            p, q = softmax(table[previous]), softmax(reference_table[previous])
            losses.append(-math.log(p[target]))
            divergences.append(math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
            agreements.append(np.argmax(p) == np.argmax(q))
    assert result.n_tokens == len(losses) == 7 * 8
    assert (result.ctx, result.windows) == (9, 7)
    assert result.nll == pytest.approx(np.mean(losses), rel=1e-9)
    assert result.ppl == pytest.approx(math.exp(np.mean(losses)), rel=1e-9)
    assert result.ppl_stderr == pytest.approx(result.ppl * np.std(losses) / math.sqrt(len(losses)), rel=1e-9)
    assert result.kl == pytest.approx(np.mean(divergences), rel=1e-7)
    assert result.top1 == np.mean(agreements)
    assert 0 < result.top1 < 1
    assert sum(progress) == pytest.approx(14)


@pytest.mark.parametrize(("stride", "rule"), [(None, "papers"), (2, "papers"), (None, "llama.cpp")])
def test_logits_that_score_nothing_are_not_asked_for(stride, rule):
    class Counts(Streamed):
        def window_logits(self, windows, advance, n_logits):
            self.n_logits = list(n_logits)
            yield from super().window_logits(windows, advance, n_logits)

    model, windows = Counts(random_table(1)), split_windows(list(range(11)) * 3, 8, None, stride, rule)
    result = evaluate(model, windows)
    assert sum(model.n_logits) == result.n_tokens + len(windows)  # the last of each predicts what is not there
    assert result == evaluate(Lookup(model.table), windows)


def test_uniform_model_has_the_vocabulary_as_perplexity():
    result = evaluate(Lookup(np.zeros((11, 11))), split_windows(list(range(11)) * 4, 11))
    assert result.ppl == pytest.approx(11)
    assert result.to_dict().keys() == {"ppl", "ppl_stderr", "nll", "n_tokens", "ctx", "windows"}


def test_model_against_itself():
    model = Lookup(random_table(4))
    result = evaluate(model, split_windows(list(range(11)) * 4, 11), model)
    assert (result.kl, result.top1) == (0.0, 1.0)
    assert result.to_dict()["kl"] == 0.0


def test_log_softmax_of_large_logits():
    logits = np.float32([[1e4, 1e4 + 1, -1e4]])
    expected = np.array([0.0, 1.0, -2e4]) - math.log(1 + math.e)
    np.testing.assert_allclose(log_softmax(logits)[0], expected, rtol=1e-12)


def test_vocabularies_have_to_agree():
    windows = split_windows([0, 1, 2, 3], 4)
    with pytest.raises(ElutqError, match=r"11 tokens in its vocabulary and the reference 12"):
        evaluate(Lookup(random_table(1)), windows, Lookup(random_table(2, vocab_size=12)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_logits_that_are_not_finite_are_an_error(bad):
    table = random_table(1)
    table[2, 3] = bad
    windows = split_windows([1, 2, 3, 4], 4)
    with pytest.raises(ElutqError, match="not finite"):
        evaluate(Lookup(table), windows)
    with pytest.raises(ElutqError, match="not finite"):
        evaluate(Lookup(random_table(1)), windows, Lookup(table))


def test_absurd_loss_is_an_error():
    table = np.zeros((11, 11))
    table[:, 0] = 1e6
    with pytest.raises(ElutqError, match="absurdly large"):
        evaluate(Lookup(table), split_windows([1, 2, 3, 4], 4))
