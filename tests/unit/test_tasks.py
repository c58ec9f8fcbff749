"""Multiple-choice questions: the rule of lm-evaluation-harness, against whole sequences in the numpy reference."""

import json
import math
import statistics

import numpy as np
import pytest
from conftest import GOLDEN, NOVELS

from elutq_cli.evaluation import continuations
from elutq_cli.evaluation.continuations import NativeContinuations, ReferenceContinuations, Request
from elutq_cli.evaluation.score import log_softmax
from elutq_cli.evaluation.tasks import (
    Question,
    answer_questions,
    cut,
    encode_pair,
    log_likelihoods,
    read_questions,
)
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_native import PIECE_TOKENS, Engine, Model

LETTERS = " abcdefghijklmnopqrstuvwxyz"


class LetterTokenizer:
    """A token a letter, and two that only names have."""

    def __init__(self, prefix=(), special_tokens=None):
        self.prefix = prefix
        self.special_tokens = special_tokens or {}

    def encode(self, text):
        return [LETTERS.index(letter) for letter in text]

    def token_id(self, token):
        return {"<s>": 27, "</s>": 28}.get(token)


class Unigram:
    """Predicts a token by itself, whatever stands before it; remembers what it was asked."""

    def __init__(self, **log_probabilities):
        self.row = np.full(29, -20.0, dtype=np.float32)
        for letter, value in log_probabilities.items():
            self.row[LETTERS.index(letter)] = value
        self.requests = []

    def continuation_logits(self, requests, advance):
        self.requests += requests
        for request in requests:
            advance(1.0)
            yield np.tile(self.row, (len(request.continuation), 1))


def question(context, *choices, gold=0, delimiter=" "):
    return Question("questions.jsonl, line 1", context, choices, gold, delimiter)


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_acc_takes_the_likeliest_choice_and_acc_norm_the_likeliest_per_character():
    # log-likelihoods, the space being a token of both: -2.0 and -2.6, so the short one; per character -2.0 and -0.65.
    # All of it is shifted by what log_softmax takes off, the same for every token.
    model = Unigram(**{" ": -1.0, "a": -1.0, "b": -0.4})
    shift = float(-log_softmax(model.row[None])[0][0] - 1.0)
    sums = [-2.0 - 2 * shift, -2.6 - 5 * shift]
    assert sums[0] > sums[1]
    assert sums[0] / 1 < sums[1] / 4
    questions = [question("ask", "a", "bbbb", gold=0), question("ask", "a", "bbbb", gold=1)]
    progress = []
    result = answer_questions(model, LetterTokenizer(), [questions[0]] * 3 + [questions[1]], 99, progress.append)
    assert (result.acc, result.acc_norm) == (0.75, 0.25)
    right = [1, 1, 1, 0]
    assert result.acc_stderr == pytest.approx(statistics.stdev(right) / math.sqrt(4), rel=1e-12)
    assert result.acc_norm_stderr == pytest.approx(result.acc_stderr, rel=1e-12)
    assert (result.n_questions, result.n_cut, sum(progress)) == (4, 0, 8)
    assert log_likelihoods(model, model.requests[:2], lambda _: None) == pytest.approx(sums, rel=1e-6)


def test_of_choices_that_are_as_likely_the_first_is_taken():
    model = Unigram(a=-1.0, b=-1.0)
    questions = [question("ask", "a", "b", gold=gold) for gold in (0, 1)]
    assert answer_questions(model, LetterTokenizer(), questions, 99).acc == 0.5


def test_the_error_of_one_question_is_not_known():
    result = answer_questions(Unigram(), LetterTokenizer(), [question("ask", "a", "b")], 99)
    assert (result.acc, result.acc_stderr, result.acc_norm_stderr) == (1.0, None, None)


def test_space_behind_the_context_goes_to_the_continuation():
    with Checkpoint.open(NOVELS) as checkpoint:
        tokenizer = checkpoint.tokenizer()
    pair = encode_pair(tokenizer, question("It was a dark night, and  \n", "", delimiter=" "), "the wind blew")
    whole = tokenizer.encode("It was a dark night, and  \n the wind blew", add_special_tokens=True)
    context = tokenizer.encode("It was a dark night, and", add_special_tokens=True)
    assert pair == Request(tuple(context), tuple(whole[len(context) :]))
    assert tokenizer.decode(pair.continuation) == "  \n the wind blew"


def test_bos_comes_first_where_the_tokenizer_adds_one_and_only_there():
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    adds, does_not = LetterTokenizer((27,), special), LetterTokenizer((), special)
    assert encode_pair(adds, question("ab"), "c") == Request((27, 1, 2), (0, 3))
    assert encode_pair(does_not, question("ab"), "c") == Request((1, 2), (0, 3))


@pytest.mark.parametrize(
    ("special", "expected"),
    [({"bos_token": "<s>", "eos_token": "</s>"}, 27), ({"eos_token": "</s>"}, 28)],
)
def test_without_a_context_bos_or_else_eos_stands_for_it(special, expected):
    tokenizer = LetterTokenizer((), special)
    assert encode_pair(tokenizer, question("", delimiter=""), "ab") == Request((expected,), (1, 2))
    assert encode_pair(tokenizer, question("  ", delimiter=""), "ab") == Request((expected,), (0, 0, 1, 2))
    with pytest.raises(ElutqError, match="line 1 has no context, and the tokenizer neither BOS nor EOS"):
        encode_pair(LetterTokenizer(), question(""), "ab")


def test_bos_that_is_spelled_or_added_is_there_once():
    class Spells(LetterTokenizer):
        def encode(self, text):  # as one whose special token is "<s>" and whose post-processor adds it
            spelled = text.startswith("<s>")
            return [27] * (spelled or not text.startswith("x")) + super().encode(text.removeprefix("<s>"))

    tokenizer = Spells((27,), {"bos_token": "<s>"})
    assert encode_pair(tokenizer, question("<s>ab"), "c") == Request((27, 1, 2), (0, 3))
    assert encode_pair(tokenizer, question("", delimiter=""), "ab") == Request((27,), (1, 2))
    assert encode_pair(tokenizer, question("xb"), "c") == Request((27, 24, 2), (0, 3))  # not added: put before it


@pytest.mark.parametrize("room", range(2, 9))
def test_a_long_context_loses_its_beginning(room):
    request = Request((1, 2, 3, 4, 5), (6, 7))
    whole = (*request.context, *request.continuation)
    kept = cut(request, room, "here")
    assert (*kept.context, *kept.continuation) == whole[-(room + 1) :]
    assert kept.continuation == request.continuation
    with pytest.raises(ElutqError, match="here: a choice has 2 tokens, and a context has room for 1"):
        cut(request, 1, "here")


def test_questions_that_were_cut_are_counted():
    questions = [question("abcdef", "a", "b"), question("a", "b", "c")]
    model = Unigram()
    assert answer_questions(model, LetterTokenizer(), questions, 4).n_cut == 1
    assert model.requests[0] == Request(tuple(LetterTokenizer().encode("def")), (0, 1))


def random_requests(vocab_size, seed=0):
    """Contexts of several lengths, two of which begin alike, each with several continuations."""
    rng = np.random.default_rng(seed)
    draw = lambda n: tuple(rng.integers(0, vocab_size, n).tolist())  # noqa: E731
    shared = draw(20)
    contexts = [draw(1), draw(9), shared + draw(3), shared + draw(5), shared]
    return [Request(context, draw(length)) for context in contexts for length in (1, 1, 4, 2)]


def whole_sequence_sums(source, requests):
    """Log-likelihoods of continuations from one pass over each whole sequence, in the numpy reference."""
    model, sums = Transformer(source, keep=True), []
    for request in requests:
        tokens = np.array([*request.context, *request.continuation])
        log_p = log_softmax(model.logits(tokens[None])[0])
        at = np.arange(len(request.context), len(tokens))
        sums.append(log_p[at - 1, tokens[at]].sum())
    return sums


@pytest.mark.parametrize("family", ["llama1-mha", "qwen2", "qwen3", "mistral-sliding-window"])
@pytest.mark.parametrize("hidden_bytes", [1, 1 << 28])
def test_a_checkpoint_gives_what_whole_sequences_give(family, hidden_bytes, monkeypatch):
    monkeypatch.setattr(continuations, "HIDDEN_BYTES", hidden_bytes)  # few or all contexts at once
    with Checkpoint.open(GOLDEN / family) as checkpoint:
        requests, progress = random_requests(checkpoint.config.vocab_size), []
        found = log_likelihoods(ReferenceContinuations(Transformer(checkpoint)), requests, progress.append)
        assert found == pytest.approx(whole_sequence_sums(checkpoint, requests), abs=1e-4)
    assert sum(progress) == pytest.approx(len(requests))


def test_the_runtime_gives_what_whole_sequences_give(make_model):
    path = make_model(NOVELS, bits=4, group_size=64)
    file, progress = ModelFile.open(path), []
    requests = random_requests(file.config.vocab_size)
    with Model(path) as model:
        found = log_likelihoods(NativeContinuations(model, 1, "f16"), requests, progress.append)
    expected = whole_sequence_sums(file, requests)
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert np.ptp(expected) > 10  # of which 2 % of any would be seen
    assert progress == [1.0] * len(requests)


def test_a_choice_has_the_logits_that_a_window_of_its_tokens_has(make_model):
    """Bit for bit, whatever was evaluated before: of contexts shorter and longer than a piece."""
    rng = np.random.default_rng(4)
    path = make_model(NOVELS, bits=4, group_size=64)
    contexts = [tuple(rng.integers(4096, size=n).tolist()) for n in (2, 100, 128, 300)]
    contexts.append((*contexts[-1][:280], 7))
    requests = [
        Request(context, tuple(rng.integers(4096, size=n).tolist())) for context in contexts for n in (1, 3, 40)
    ]
    with Model(path) as model:
        found = list(NativeContinuations(model, 2, "f16").continuation_logits(requests, lambda _: None))
        for request, logits in zip(requests, found, strict=True):
            with model.session(400, 1) as session:
                wanted = session.eval(request.context + request.continuation[:-1], all_logits=True)
            assert np.array_equal(logits, wanted[len(request.context) - 1 :])


def test_whole_pieces_that_contexts_share_are_evaluated_once(novels_2bit, monkeypatch):
    evaluated, evaluate = [], Engine.eval

    def count(engine, runs):
        evaluated.append(len(runs[0].tokens))
        return evaluate(engine, runs)

    monkeypatch.setattr(Engine, "eval", count)
    with Model(novels_2bit) as model:
        runtime = NativeContinuations(model, 1, "f16")
        log_likelihoods(runtime, [Request((1, 2, 3), (token,)) for token in range(4)], lambda _: None)
        assert evaluated == [3]
        evaluated.clear()
        few_shot = tuple(range(10, 10 + 2 * PIECE_TOKENS + 5))
        requests = [Request((*few_shot, token), (6, 7, 8)) for token in (1, 2, 3)]
        log_likelihoods(runtime, requests, lambda _: None)
        assert evaluated == [len(few_shot) + 3, 8, 8]


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ElutqError, match="weights are damaged"):
        answer_questions(Unigram(a=math.nan), LetterTokenizer(), [question("ask", "a", "b")], 99)


def test_a_choice_that_adds_no_token():
    class Swallows(LetterTokenizer):
        def encode(self, text):
            return super().encode(text.partition(" ")[0])

    with pytest.raises(ElutqError, match="line 1: the choice 'b' adds no token"):
        answer_questions(Unigram(), Swallows(), [question("ask", "b", "c")], 99)


def test_fields_have_the_names_that_data_sets_have(tmp_path):
    line = {"choices": ["no", "yes"], "id": 7, "subject": {"not": "looked at"}}
    path = write(
        tmp_path / "q.jsonl",
        line | {"query": "Is it?", "gold": 1},
        "\n",
        line | {"context": "", "label": "1"},
        line | {"query": "é\u2028", "label": "yes", "target_delimiter": ""},
        line | {"query": "a", "choices": ["3", "4", "5"], "gold": "4"},  # the text of one, the number of none
        line | {"query": "a", "choices": ["0", "1"], "gold": "1"},
    )
    found = read_questions(path)
    assert [(entry.context, entry.gold, entry.delimiter) for entry in found] == [
        ("Is it?", 1, " "), ("", 1, " "), ("é\u2028", 1, ""), ("a", 1, " "), ("a", 1, " ")]  # fmt: skip
    assert [entry.place for entry in found] == [f"{path}, line {number}" for number in (1, 3, 4, 5, 6)]
    assert found[0].choices == ("no", "yes")


GOOD = {"query": "a", "choices": ["b", "c"], "gold": 0}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        (["query"], "line 2 is not a JSON object"),
        ({"choices": ["b", "c"], "gold": 0}, "line 2 has no field query or context"),
        (GOOD | {"context": "a"}, "line 2 has both query and context: give one"),
        (GOOD | {"query": ["a"]}, "line 2: the context is not a string"),
        ({"query": "a", "gold": 0}, "line 2 has no field choices"),
        (GOOD | {"choices": "bc"}, "line 2: choices is not a list of strings"),
        (GOOD | {"choices": ["b", 1]}, "line 2: choices is not a list of strings"),
        (GOOD | {"choices": ["b"]}, "line 2: choices has 1 entries: a question needs two"),
        (GOOD | {"choices": ["b", ""]}, "line 2: choice 1 is empty"),
        ({"query": "a", "choices": ["b", "c"]}, "line 2 has no field gold or label"),
        (GOOD | {"label": 0}, "line 2 has both gold and label: give one"),
        (GOOD | {"gold": 2}, "line 2: the right choice is 2: it must be 0 to 1, or one of the choices"),
        (GOOD | {"gold": -1}, "the right choice is -1"),
        (GOOD | {"gold": True}, "the right choice is True"),
        (GOOD | {"gold": 0.0}, "the right choice is 0.0"),
        (GOOD | {"gold": None}, "the right choice is None"),
        (GOOD | {"gold": [0, 1]}, "the right choice is [0, 1]"),
        (GOOD | {"gold": "d"}, "the right choice is 'd'"),
        (GOOD | {"gold": "9" * 5000}, "the right choice is '999"),
        (GOOD | {"gold": "2"}, "the right choice is 2"),
        (
            {"query": "a", "choices": ["2", "1", "0"], "gold": "2"},
            "line 2: the right choice is '2', the text of choice 0 and the number of another: write 0 or 2, without",
        ),
        (GOOD | {"target_delimiter": 1}, "line 2: target_delimiter is not a string"),
    ],
)
def test_a_line_that_is_no_question_is_named(line, words, tmp_path):
    path = write(tmp_path / "q.jsonl", GOOD, line if isinstance(line, dict | list) else line + "\n")
    with pytest.raises(ElutqError) as caught:
        read_questions(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_file_without_questions(tmp_path):
    with pytest.raises(ElutqError, match="has no question"):
        read_questions(write(tmp_path / "q.jsonl", "\n\n"))
    with pytest.raises(ElutqError, match="cannot read"):
        read_questions(tmp_path / "missing.jsonl")
