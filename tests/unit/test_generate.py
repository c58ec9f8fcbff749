"""The generation loop and the Python interface on the bundled model: where texts end, what is kept, what repeats."""

import threading
from pathlib import Path

import numpy as np
import pytest

import elutq
from elutq_cli.generation import TextOptions
from elutq_cli.generation.context_size import (
    ContextOverflowError,
    check_context,
    choose_context,
    choose_parallel,
    fit_context,
)
from elutq_cli.pipeline.recipe import Recipe
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import tensor_bytes

PROMPT = "It was a dark night, and"


@pytest.fixture(scope="module")
def model(novels_2bit):
    with elutq.load(novels_2bit, ctx_size=512, threads=1) as model:
        yield model


def text(model, prompt=PROMPT, n_predict=40, **options):
    model.clear()
    return elutq.generate(model, prompt, n_predict, **options).read()


def test_text_is_that_of_the_tokens(model):
    generation = elutq.generate(model, PROMPT, 40, seed=3)
    tokens = list(generation)
    assert [token.token_id for token in tokens] == generation.tokens
    assert "".join(token.text for token in tokens) == generation.text == model.tokenizer.decode(generation.tokens)
    assert generation.finish_reason == "length"
    assert generation.prompt_tokens == len(model.tokenizer.encode(PROMPT, add_special_tokens=True))
    assert generation.tokens_per_second > 0


def test_exactly_one_bos(model):
    assert model.encode(PROMPT).count(model.tokenizer.bos_token_id) == 1
    spelled = model.tokenizer.token(model.tokenizer.bos_token_id) + PROMPT
    assert model.encode(spelled) == model.encode(PROMPT)


def test_same_seed_same_text_with_any_number_of_threads(novels_2bit):
    texts = set()
    for threads in (1, 2, 1):
        with elutq.load(novels_2bit, ctx_size=256, threads=threads) as model:
            texts.add(text(model, seed=11, n_predict=100))
    assert len(texts) == 1


def test_another_seed_another_text(model):
    assert text(model, seed=1) != text(model, seed=2)


def test_greedy_takes_the_likeliest_of_logits_computed_afresh(model):
    generation = elutq.generate(model, PROMPT, 5, temp=0)
    generation.read()
    tokens = model.encode(PROMPT)
    with model.native.session(64, 1) as session:
        for expected in generation.tokens:
            session.rewind(0)
            assert int(np.argmax(session.eval(tokens))) == expected
            tokens.append(expected)


def test_nothing_is_computed_before_it_is_asked_for(model):
    generation = elutq.generate(model, PROMPT, 5)
    assert generation.tokens == []
    assert generation.prompt_seconds == 0
    assert generation.tokens_per_second == 0


def test_no_tokens_asked_for(model):
    generation = elutq.generate(model, PROMPT, 0)
    assert generation.read() == ""
    assert generation.finish_reason == "length"


def test_context_that_fills_up_ends_the_text(model):
    prompt = model.encode(PROMPT) * 20
    generation = elutq.generate(model, prompt, -1, ignore_eos=True)
    generation.read()
    assert generation.finish_reason == "context"
    assert len(model.tokens) == model.ctx_size
    # The last token was drawn, and there is no room to go on from it.
    assert len(prompt) + len(generation.tokens) == model.ctx_size + 1


def test_prompt_as_long_as_the_context_gives_one_token(model):
    generation = elutq.generate(model, [5] * model.ctx_size, 10)
    generation.read()
    assert len(generation.tokens) == 1


def test_prompt_longer_than_the_context(model):
    with pytest.raises(ContextOverflowError, match="513 tokens, the context holds 512"):
        elutq.generate(model, [5] * 513)


@pytest.mark.parametrize("prompt", [np.array([], np.int64), ()], ids=["array", "tuple"])
def test_prompt_without_tokens(model, prompt):
    with pytest.raises(ElutqError, match="no tokens"):
        elutq.generate(model, prompt)


def test_messages_need_a_chat_template(model):
    with pytest.raises(ElutqError, match="no chat template"):
        elutq.generate(model, [{"role": "user", "content": "Hello"}])
    with pytest.raises(ElutqError, match="either token ids or messages"):
        elutq.generate(model, [1, {"role": "user", "content": "Hello"}])


def test_every_eos_token_ends_the_text_and_is_not_shown(model, monkeypatch):
    model.clear()
    plain = elutq.generate(model, PROMPT, 20, temp=0)
    plain.read()
    eos = plain.tokens[6]
    first = plain.tokens.index(eos)
    monkeypatch.setattr(model.tokenizer, "eos_token_ids", (9999, eos))
    model.clear()
    generation = elutq.generate(model, PROMPT, 20, temp=0)
    assert generation.read() == model.tokenizer.decode(plain.tokens[:first])
    assert generation.finish_reason == "stop"
    assert generation.tokens == plain.tokens[: first + 1]
    assert not generation.stop_string_found
    assert text(model, temp=0, n_predict=20, ignore_eos=True) == plain.text


def test_stop_strings_end_the_text_before_them(model):
    whole = text(model, temp=0, n_predict=60)
    for stop in (whole[20:23], whole[11:12], whole[30:50]):
        model.clear()
        generation = elutq.generate(model, PROMPT, 60, temp=0, stop=[stop, "never seen"])
        assert generation.read() == whole[: whole.index(stop)]
        assert generation.finish_reason == "stop"
        assert generation.stop_string_found


def test_text_held_back_for_a_stop_string_comes_at_the_end(model):
    whole = text(model, temp=0, n_predict=10)
    assert text(model, temp=0, n_predict=10, stop=[whole[-4:] + "\x00"]) == whole


def test_context_is_reused_and_the_text_the_same(novels_2bit):
    with elutq.load(novels_2bit, ctx_size=256, threads=1) as model:
        first = elutq.generate(model, PROMPT, 30, temp=0)
        first.read()
        longer = [*model.encode(PROMPT), *first.tokens]
        second = elutq.generate(model, longer, 10, temp=0)
        second.read()
        assert second.reused_tokens == len(longer) - 1
        other = elutq.generate(model, "Quite another text", 5)
        other.read()
        assert other.reused_tokens == 1  # BOS
    with elutq.load(novels_2bit, ctx_size=256, threads=1) as model:
        assert elutq.generate(model, PROMPT, 40, temp=0).read() == first.text + second.text


def test_texts_that_take_turns_do_not_mix(model):
    alone = [text(model, prompt, 6, temp=0) for prompt in ("The sea", "My dear")]
    model.clear()
    pair = [elutq.generate(model, prompt, 6, temp=0) for prompt in ("The sea", "My dear")]
    for _ in range(6):
        for generation in pair:
            next(generation)
    assert [generation.text for generation in pair] == alone


def test_logprobs_are_those_of_the_model_before_the_sampler(model):
    made = list(elutq.generate(model, PROMPT, 4, seed=5, temp=1.5, top_k=0, logprobs=3))
    tokens = model.encode(PROMPT)
    with model.native.session(64, 1) as session:
        for token in made:
            session.rewind(0)
            logits = session.eval(tokens).astype(np.float64)
            expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            # One batch here, one token at a time there: equal within the error of the kernels' 8-bit tables.
            assert token.logprob == pytest.approx(expected[token.token_id], abs=0.2)
            assert token.alternatives[0].token_id == int(np.argmax(expected))
            assert token.alternatives[0].logprob >= token.alternatives[1].logprob >= token.alternatives[2].logprob
            tokens.append(token.token_id)


def test_echo_hands_out_the_prompt_first(model):
    prompt, plain = model.encode(PROMPT), text(model, temp=0, n_predict=6)
    model.clear()
    whole = elutq.generate(model, PROMPT, 6, temp=0, echo=True)
    made = list(whole)
    assert [token.token_id for token in made] == prompt + whole.tokens
    assert (whole.text, whole.tokens_per_second > 0, whole.prompt_tokens) == (PROMPT + plain, True, len(prompt))
    assert {token.logprob for token in made} == {None}
    scored = list(elutq.generate(model, PROMPT, 6, temp=0, echo=True, logprobs=1))
    assert [token.text for token in scored] == [token.text for token in made]
    assert [token.logprob is None for token in scored] == [True] + [False] * (len(made) - 1)
    for token in scored[len(prompt) :]:
        assert token.alternatives[0].token_id == token.token_id


def test_logprobs_of_the_chosen_token_alone(model):
    (token,) = elutq.generate(model, PROMPT, 1, logprobs=0)
    assert token.alternatives == ()
    assert token.logprob < 0


def test_stop_tokens_end_the_text_and_are_not_shown(model):
    plain = text(model, temp=0, n_predict=20)
    tokens = model.tokenizer.encode(plain)
    for options in ({}, {"ignore_eos": True}):
        model.clear()
        generation = elutq.generate(model, PROMPT, 20, temp=0, stop_token_ids=[tokens[6]], **options)
        assert generation.read() == model.tokenizer.decode(tokens[: tokens.index(tokens[6])])
        assert generation.finish_reason == "stop"
        assert generation.tokens[-1] == tokens[6]


def test_nothing_ends_the_text_before_min_tokens(model, monkeypatch):
    model.clear()
    plain = elutq.generate(model, PROMPT, 20, temp=0)
    plain.read()
    first, second = plain.tokens[0], plain.tokens[1]
    monkeypatch.setattr(model.tokenizer, "eos_token_ids", (second,))
    made = elutq.generate(model, PROMPT, 20, temp=0, stop_token_ids=[first], min_tokens=5)
    made.read()
    assert {first, second}.isdisjoint(made.tokens[:5])
    assert len(made.tokens) >= 5
    # Under ignore_eos an end-of-text token is one like any other.
    free = elutq.generate(model, PROMPT, 20, temp=0, stop_token_ids=[first], min_tokens=5, ignore_eos=True, seed=1)
    free.read()
    assert first not in free.tokens[:5]
    assert elutq.generate(model, PROMPT, 5, temp=0, min_tokens=5, ignore_eos=True).read()[:1] == plain.text[:1]


def test_a_stop_string_before_min_tokens_is_text(model):
    whole = text(model, temp=0, n_predict=40)
    assert text(model, temp=0, n_predict=40, stop=[whole[:3]], min_tokens=30).startswith(whole[:3])
    early, late = whole[2:5], whole[-30:-10]
    assert whole.index(early) < 20 < whole.index(late)
    assert text(model, temp=0, n_predict=40, stop=[late, early[0] * 9], min_tokens=10) == whole[: whole.index(late)]
    assert early in text(model, temp=0, n_predict=10, stop=[early], min_tokens=10)


def test_a_bias_bans_a_token_or_forces_it(model):
    model.clear()
    first, second = elutq.generate(model, PROMPT, 2, temp=0, logprobs=2), None
    (token, _) = list(first)
    first, second = (other.token_id for other in token.alternatives)
    made = elutq.generate(model, PROMPT, 20, temp=0, logit_bias={first: -100})
    made.read()
    assert made.tokens[0] == second
    assert first not in made.tokens
    forced = elutq.generate(model, PROMPT, 4, seed=3, logit_bias={second: 100}, logprobs=0)
    logprobs = [token.logprob for token in forced]
    assert forced.tokens == [second] * 4
    assert min(logprobs) < -1  # reported as the model gave them


@pytest.mark.parametrize("options", [{"stop_token_ids": [1 << 20]}, {"logit_bias": {-1: 5.0}}])
def test_options_that_name_a_token_that_is_not_there(model, options):
    with pytest.raises(ElutqError, match=rf"{next(iter(options))} has token \S+, and the model's are 0 to 409\d"):
        elutq.generate(model, PROMPT, 5, **options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_predict": -2}, r"the number of tokens \(-n\) is -2"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop": ("a" * 65536, "b")}, "65537 characters: 65536 are the most"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 9, "n_predict": 8}, "min_tokens is 9, but the text may have no more than 8"),
    ],
)
def test_options_out_of_range(options, word):
    with pytest.raises(ElutqError, match=word):
        TextOptions(**options)


def test_cancel_before_the_first_token(model):
    generation = elutq.generate(model, PROMPT, 50)
    generation.cancel()
    assert generation.read() == ""
    assert generation.finish_reason == "cancelled"
    assert text(model, temp=0, n_predict=3)


@pytest.mark.parametrize("over", [True, False])
def test_cancel_of_a_text_that_does_not_run_leaves_the_running_one_alone(model, monkeypatch, over):
    """Neither of a text that is over nor of one that has not begun: the prompt of another is evaluated once."""
    other = elutq.generate(model, PROMPT, 2)
    if over:
        other.read()
    engine, n_passes, cancelled = model.scheduler.engine, [], []
    evaluate = engine.eval

    def evaluate_and_count(runs):
        n_passes.append(len(runs))
        other.cancel()
        return evaluate(runs)

    monkeypatch.setattr(engine, "cancel", lambda: cancelled.append(True))
    monkeypatch.setattr(engine, "eval", evaluate_and_count)
    generation = elutq.generate(model, PROMPT, 3, temp=0)
    generation.read()
    assert (n_passes, cancelled, generation.finish_reason) == ([1, 1, 1], [], "length")
    assert len(other.tokens) == (2 if over else 0)


def test_cancel_between_tokens_keeps_what_there_is(model):
    whole = text(model, temp=0, n_predict=20)
    model.clear()
    generation = elutq.generate(model, PROMPT, 20, temp=0)
    for _ in range(5):
        next(generation)
    generation.cancel()
    assert whole.startswith(generation.read())
    assert len(generation.tokens) == 5
    assert generation.finish_reason == "cancelled"


def test_cancel_from_another_thread_stops_a_prompt(novels_2bit, monkeypatch):
    monkeypatch.setenv("ELUTQ_ISA", "scalar")
    with elutq.load(novels_2bit, ctx_size=1024, threads=1) as model:
        generation = elutq.generate(model, [7] * 1000)
        timer = threading.Timer(0.1, generation.cancel)
        timer.start()
        generation.read()
        timer.join()
        assert generation.finish_reason == "cancelled"
        assert len(model.tokens) < 1024


@pytest.mark.parametrize(
    ("maximum", "memory", "expected"),
    [
        (1024, None, 1024),
        (1024, 1 << 40, 1024),
        (131072, 1_000_000 + 2 * 1000 * 3000, 2816),  # 3000 tokens' worth, in steps of 256
        (131072, 0, 512),
        (64, 0, 64),
    ],
)
def test_context_fits_the_memory(maximum, memory, expected):
    assert fit_context(maximum, of_a_thousand, file_bytes=1_000_000, memory=memory) == expected


def of_a_thousand(n_tokens):
    """Bytes of a context whose tokens take a thousand bytes each."""
    return 1000 * n_tokens


def test_context_larger_than_memory_is_refused_with_one_that_fits():
    with pytest.raises(ElutqError, match=r"needs 0\.10 GB for keys .* only 0\.05 GB .* at most 25000 tokens"):
        check_context(100_000, 131072, of_a_thousand, 50_000_000)
    check_context(100_000, 131072, of_a_thousand, None)
    with pytest.raises(ElutqError, match=r"4 contexts of 20000 .* 0\.08 GB .* 6250 tokens .*, or fewer texts"):
        check_context(20_000, 131072, of_a_thousand, 50_000_000, 4)


@pytest.mark.parametrize(
    ("ctx_size", "maximum", "memory", "n_cores", "expected"),
    [
        (None, 131072, 1 << 40, 2, 4),  # more than cores: the weights are read once for all
        (None, 131072, 1 << 40, 8, 8),
        (None, 131072, 1 << 40, 200, 16),
        (None, 131072, None, 2, 4),
        (None, 131072, 2 * 3 * 4096 * 1000, 2, 3),
        (None, 1024, 2 * 3 * 4096 * 1000, 8, 8),
        (100, 131072, 2 * 3 * 4096 * 1000, 8, 8),
        (12288, 131072, 2 * 3 * 4096 * 1000, 8, 1),
        (None, 131072, 0, 2, 1),
    ],
)
def test_as_many_texts_at_a_time_as_memory_and_cores_allow(ctx_size, maximum, memory, n_cores, expected):
    memory = None if memory is None else memory + 1_000_000
    assert choose_parallel(ctx_size, maximum, of_a_thousand, 1_000_000, memory, n_cores) == expected


@pytest.mark.parametrize(
    ("asked", "n_prompt", "n_predict", "expected"),
    [(77, 10, 5, 77), (None, 10, 5, 15), (None, 10, 0, 11), (None, 10, 5000, 1024), (None, 10, -1, None)],
)
def test_context_for_one_text(asked, n_prompt, n_predict, expected):
    assert choose_context(asked, n_prompt, n_predict, 1024) == expected


def test_quantize_and_load(tmp_path):
    golden = Path(__file__).parent.parent / "data" / "golden" / "qwen3"
    summary = elutq.quantize(golden, tmp_path / "model.gguf", Recipe(bits=3, group_size=32), threads=1)
    assert summary.size_bytes == (tmp_path / "model.gguf").stat().st_size
    with elutq.load(tmp_path / "model.gguf", threads=1) as model:
        record = model.file.tensors["blk.0.attn_q.weight"]
        assert record.n_bytes == tensor_bytes(record.rows, record.columns, 3, 32, record.kind)
        assert elutq.generate(model, "The quick", 4, temp=0).read()
    with pytest.raises(ElutqError, match="--force"):
        elutq.quantize(golden, tmp_path / "model.gguf", Recipe(bits=3, group_size=32))


def test_an_emptied_context_gives_the_logits_of_a_new_one(model, novels_2bit):
    """Whatever it held before, which may move the logits that are computed on top of it."""
    with elutq.load(novels_2bit, ctx_size=model.ctx_size) as new:
        (expected,) = elutq.generate(new, PROMPT, 1, temp=0, logprobs=20)
    prompt = model.encode(PROMPT)
    model.clear()
    for n_tokens in range(1, len(prompt)):
        elutq.generate(model, prompt[:n_tokens], 1).read()
    model.clear()
    assert list(elutq.generate(model, PROMPT, 1, temp=0, logprobs=20)) == [expected]
