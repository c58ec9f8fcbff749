"""Window rules: which tokens are scored, each exactly as the rule's own source scores it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from elutq_cli.evaluation import evaluate, evaluate_all
from elutq_cli.evaluation.models import NativeLogits, tokenize_windows
from elutq_cli.evaluation.windows import split_windows
from elutq_formats.errors import ElutqError
from elutq_native import Model


class Bigram:
    """The logits after a token depend on it, and on its distance from the window's start."""

    def __init__(self, seed, vocab_size=13, n_most=64):
        self.table = np.random.default_rng(seed).standard_normal((n_most, vocab_size, vocab_size)).astype(np.float32)

    def logits(self, tokens):
        return self.table[np.arange(len(tokens)), tokens]

    def loss(self, window, at):
        """Minus the log-probability of window[at], given what is before it there."""
        row = [float(value) for value in self.logits(np.asarray(window))[at - 1]]
        return math.log(math.fsum(math.exp(value) for value in row)) - row[window[at]]


TOKENS = np.random.default_rng(5).integers(0, 13, 107).tolist()


@pytest.mark.parametrize(("ctx", "stride", "chunks"), [(16, 16, None), (16, 4, None), (16, 15, 3), (7, 1, None)])
def test_sliding_windows_score_every_token_but_the_first_once(ctx, stride, chunks):
    # As transformers' page on perplexity: the window moves on by the stride, targets before its old end are masked.
    model, expected, end, begin = Bigram(1), [], 0, 0
    n_windows = 0
    while begin + ctx <= len(TOKENS) and n_windows != chunks:
        window = TOKENS[begin : begin + ctx]
        expected += [model.loss(window, at) for at in range(1, ctx) if begin + at >= end]
        end, begin, n_windows = begin + ctx, begin + stride, n_windows + 1
    windows = split_windows(TOKENS, ctx, chunks, stride)
    result = evaluate(model, windows)
    assert result.windows == n_windows
    assert result.n_tokens == len(expected)
    assert result.nll == pytest.approx(np.mean(expected), rel=1e-6)
    if stride < ctx:
        assert result.n_tokens == ctx - 1 + (n_windows - 1) * stride
        assert f"windows {stride} tokens apart" in windows.description
    else:
        assert "papers' rule: no overlap" in windows.description


@pytest.mark.parametrize("bos", [None, 12])
@pytest.mark.parametrize("ctx", [8, 9, 20])
def test_llama_cpp_scores_the_second_half_after_bos(ctx, bos):
    # tools/perplexity: first = n_ctx / 2; the logits of positions first .. n_ctx - 2 are scored against the next token.
    model, expected = Bigram(2), []
    for begin in range(0, len(TOKENS) - ctx + 1, ctx):
        window = TOKENS[begin : begin + ctx]
        if bos is not None:
            window[0] = bos
        expected += [model.loss(window, at + 1) for at in range(ctx // 2, ctx - 1)]
    windows = split_windows(TOKENS, ctx, rule="llama.cpp", bos=bos)
    result = evaluate(model, windows)
    assert result.n_tokens == len(expected) == len(windows) * (ctx - 1 - ctx // 2)
    assert result.nll == pytest.approx(np.mean(expected), rel=1e-6)
    assert ("BOS first" in windows.description) == (bos is not None)
    assert TOKENS[0] != 12 or bos is None  # the text itself is left as it was


@pytest.mark.parametrize(
    ("rule", "expected"),
    [  # llama.cpp puts BOS before the text, cuts it, and puts BOS in the place of each first token
        ("papers", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("llama.cpp", [[0, 1, 2, 3], [0, 5, 6, 7]]),
    ],
)
def test_where_windows_of_a_text_are_cut(rule, expected):
    tokenizer = SimpleNamespace(prefix=(0,), encode=lambda text: [int(digit) for digit in text])
    model = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(vocab_size=10), name="model")
    windows = tokenize_windows([model], None, "123456789", 4, None, None, rule)
    assert windows.tokens.tolist() == expected


@pytest.mark.parametrize("token_by_token", [False, True])
def test_the_runtime_gives_the_logits_of_the_last_tokens(novels_2bit, token_by_token):
    windows = np.random.default_rng(6).integers(0, 4096, (3, 150))
    with Model(novels_2bit) as native:
        model = NativeLogits(native, 1, "f16", token_by_token)
        whole, some = (list(model.window_logits(windows, lambda _: None, n)) for n in ([150] * 3, [1, 9, 140]))
    for logits, all_logits, n_wanted in zip(some, whole, (1, 9, 140), strict=True):
        assert np.array_equal(logits, all_logits[-n_wanted:])


def test_several_models_get_the_figures_they_get_alone():
    models, reference = [Bigram(3), Bigram(4)], Bigram(5)
    windows = split_windows(TOKENS, 10, stride=5)
    progress = []
    together = evaluate_all(models, windows, reference, progress.append)
    assert together[:2] == [evaluate(model, windows, reference) for model in models]
    assert together[2] == evaluate(reference, windows)
    assert together[2].kl is None
    assert sum(progress) == 3 * len(windows)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"stride": 11}, "stride is 11"),
        ({"rule": "llama.cpp", "stride": 5}, "leave out --rule"),
        ({"rule": "llama.cpp", "ctx": 3}, "context size 3"),
        ({"rule": "other"}, "not known"),
    ],
)
def test_impossible_rules(options, word):
    with pytest.raises(ElutqError, match=word):
        split_windows(TOKENS, **({"ctx": 10} | options))
