"""A model of which half the layers have a window: what texts take over, what is kept in files, what memory it takes."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from conftest import NOVELS

import elutq
from elutq_cli.benchmark import measure
from elutq_cli.evaluation.continuations import NativeContinuations, Request
from elutq_cli.generation import Continuation, Generation, Sampler, SamplingOptions, Scheduler, TextOptions
from elutq_cli.generation.context import Context, Reuse
from elutq_cli.generation.context_size import FLOOR, STEP, check_context, choose_parallel, fit_context
from elutq_cli.generation.fitness import PROCESS_BYTES, TOKEN_BYTES, assess, measure_roof
from elutq_cli.generation.prompt_cache import MAGIC, PromptCache
from elutq_cli.generation.terminal import stream_text
from elutq_formats.errors import ElutqError
from elutq_native import PIECE_TOKENS, REWIND_TOKENS, Engine, Model, NativeSequence, Run

WINDOW, CONTEXT = 48, 2048
ROW = 2 * 2 * 64 * 2
"""Bytes of a token's keys and values in one of six layers."""
LONG = [5 + at * at % 300 for at in range(1500)]


@pytest.fixture(scope="module")
def path(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows") / "windows"
    shutil.copytree(NOVELS, folder)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "ministral",
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "max_position_embeddings": CONTEXT,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return make_model(folder)


@pytest.fixture(scope="module")
def model(path):
    with elutq.load(path, ctx_size=CONTEXT, threads=1) as model:
        yield model


@pytest.fixture
def make_scheduler(model):
    """Returns a function that makes a scheduler of so many slots."""
    schedulers = []

    def make(n_slots):
        contexts = [Context(NativeSequence(model.native, CONTEXT)) for _ in range(n_slots)]
        schedulers.append(Scheduler(Engine(model.native, 1, n_slots), contexts))
        return schedulers[-1]

    yield make
    for scheduler in schedulers:
        scheduler.close()


def generation(model, prompt, n_predict=4):
    options = TextOptions(n_predict, ignore_eos=True)
    return Generation(list(prompt), Sampler(SamplingOptions(temp=0)), options, model.tokenizer, CONTEXT)


def run(scheduler, *generations, reuse=Reuse.EXACT):
    for made in generations:
        scheduler.submit(made, reuse)
    while scheduler.generations:
        scheduler.step()
    assert [made.error for made in generations] == [None] * len(generations)
    return [made.tokens for made in generations]


@pytest.mark.parametrize("reuse", [Reuse.ALL, Reuse.EXACT])
@pytest.mark.parametrize("n_common", [1300, 1200, 1100, 800, 30])
def test_a_prompt_takes_over_what_is_still_there(model, make_scheduler, reuse, n_common):
    """Of 1300 tokens the last 512 can be taken back; who goes off before that begins anew, and has the same text."""
    scheduler = make_scheduler(1)
    prompt = [*LONG[:n_common], 9, 8, 7]
    (expected,) = run(make_scheduler(1), generation(model, prompt), reuse=Reuse.NOTHING)
    run(scheduler, generation(model, LONG[:1300], 1))
    again = generation(model, prompt)
    (tokens,) = run(scheduler, again, reuse=reuse)
    within = n_common if reuse is Reuse.ALL else n_common // PIECE_TOKENS * PIECE_TOKENS
    assert again.reused_tokens == (within if within >= 1300 - REWIND_TOKENS else 0)
    assert reuse is Reuse.ALL or tokens == expected


def test_a_reply_of_some_hundred_tokens_that_a_template_writes_otherwise_costs_no_more_than_itself(
    model, make_scheduler
):
    scheduler = make_scheduler(1)
    run(scheduler, generation(model, LONG[:1000], 400), reuse=Reuse.ALL)
    again = generation(model, [*LONG[:1000], 1, 2, 3])
    run(scheduler, again, reuse=Reuse.ALL)
    assert again.reused_tokens == 1000


def test_texts_of_one_prompt_that_come_together_have_it_computed_once(model, make_scheduler):
    scheduler, n_evaluated = make_scheduler(3), []
    (expected,) = run(make_scheduler(1), generation(model, LONG[:1056]))
    evaluate = scheduler.engine.eval
    scheduler.engine.eval = lambda runs: (n_evaluated.extend(len(run.tokens) for run in runs), evaluate(runs))[1]
    assert run(scheduler, *(generation(model, LONG[:1056]) for _ in range(3))) == [expected] * 3
    assert sum(n for n in n_evaluated if n > 1) <= 1056 + PIECE_TOKENS


def test_what_another_slot_has_gone_on_from_too_far_is_not_copied(model, make_scheduler):
    scheduler = make_scheduler(2)
    run(scheduler, generation(model, LONG))
    late = generation(model, LONG[:600])
    (expected,) = run(make_scheduler(1), generation(model, LONG[:600]))
    assert run(scheduler, late, reuse=Reuse.ALL) == [expected]
    assert late.reused_tokens == 0
    assert [len(context) for context in scheduler.contexts] == [len(LONG) + 3, 603]  # the long text stays


def test_a_text_that_is_cancelled_in_a_pass_can_go_on(model, make_scheduler):
    scheduler = make_scheduler(1)
    run(scheduler, generation(model, LONG[:1000], 1))
    evaluate, made = scheduler.engine.eval, generation(model, [*LONG[:1000], *range(5, 300)])

    def fail(runs):
        evaluate(runs)
        raise KeyboardInterrupt

    scheduler.engine.eval = fail
    scheduler.submit(made, Reuse.ALL)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    scheduler.engine.eval = evaluate
    run(scheduler)
    fresh = make_scheduler(1)
    run(fresh, generation(model, LONG[:1000], 1))
    assert [made.tokens] == run(fresh, generation(model, made.wants[:1295]), reuse=Reuse.ALL)


def keep(path, cache, prompt, n_predict=4, ctx_size=CONTEXT):
    """Makes a text as ``elutq run --prompt-cache`` does."""
    with elutq.load(path, ctx_size=ctx_size, threads=1) as model:
        kept = PromptCache(cache, model)
        options = TextOptions(n_predict, ignore_eos=True)
        made = Continuation(model, list(prompt), Sampler(SamplingOptions(temp=0)), options)
        stream_text(made, quiet=True, cache=kept)
        kept.keep(made)
        return made


def test_a_prompt_is_kept_before_its_reply_overwrites_some_of_it(path, tmp_path):
    cache = tmp_path / "prompt.cache"
    first = keep(path, cache, LONG[:700], REWIND_TOKENS + 200)
    n_bytes = cache.stat().st_size
    assert n_bytes < 700 * 3 * ROW + (WINDOW + REWIND_TOKENS + 64) * 3 * ROW + 4096
    again = keep(path, cache, LONG[:700], 4)
    assert (first.reused_tokens, again.reused_tokens) == (0, 699)
    assert again.tokens == first.tokens[:4]
    assert keep(path, cache, [*LONG[:600], 7, 8], 1).reused_tokens == 600
    assert cache.stat().st_size == n_bytes  # it holds most of that prompt too
    assert keep(path, cache, [*LONG[:100], 7, 8], 1).reused_tokens == 0


@pytest.mark.parametrize("ctx_size", [300, 600, 800])
def test_a_file_made_in_a_longer_context_does_no_harm_in_a_shorter_one(path, tmp_path, ctx_size):
    cache, empty = tmp_path / "prompt.cache", tmp_path / "none"
    keep(path, cache, LONG)
    prompt = LONG[: ctx_size - 10]
    assert keep(path, cache, prompt, 4, ctx_size).tokens == keep(path, empty, prompt, 4, ctx_size).tokens


@pytest.mark.parametrize("oldest", [0, 1, len(LONG), 2**32 - 1])
def test_a_file_that_lies_about_what_windows_hold_is_told_in_one_line(path, tmp_path, capsys, oldest):
    cache = tmp_path / "prompt.cache"
    expected = keep(path, cache, LONG).tokens
    body, at = bytearray(cache.read_bytes()[:-32]), len(MAGIC) + 32 + 8
    assert int.from_bytes(body[at : at + 4], "little") == len(LONG) - WINDOW - REWIND_TOKENS
    body[at : at + 4] = oldest.to_bytes(4, "little")
    cache.write_bytes(bytes(body) + hashlib.sha256(body).digest())
    made = keep(path, cache, LONG)
    assert (made.tokens, made.reused_tokens) == (expected, 0)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "cut short" in told


def test_a_sound_file_of_which_windows_hold_too_little_is_of_no_use(path, tmp_path):
    cache = tmp_path / "prompt.cache"
    expected = keep(path, cache, LONG[:100]).tokens
    contents, start = cache.read_bytes(), len(MAGIC) + 32 + 12 + 4 * 100
    rows = [
        np.frombuffer(contents, np.uint8, 6 * n * ROW, start + 6 * at * ROW).reshape(6, -1)
        for at, n in ((0, 64), (64, 36))
    ]
    body = bytearray(contents[:start])
    body[len(MAGIC) + 40 : len(MAGIC) + 44] = (100).to_bytes(4, "little")
    body += b"".join(piece[1::2].tobytes() for piece in rows)
    cache.write_bytes(bytes(body) + hashlib.sha256(body).digest())
    made = keep(path, cache, LONG[:100])
    assert (made.tokens, made.reused_tokens) == (expected, 0)
    assert cache.read_bytes() == contents


def test_files_of_another_version_are_told_as_such(path, tmp_path, capsys):
    cache = tmp_path / "prompt.cache"
    keep(path, cache, LONG[:100])
    cache.write_bytes(cache.read_bytes().replace(MAGIC, b"elutqkv3", 1))
    assert keep(path, cache, LONG[:100]).reused_tokens == 0
    assert "made by another version; the prompt is computed" in capsys.readouterr().err


@pytest.mark.parametrize("ctx_size", [1, WINDOW, WINDOW + REWIND_TOKENS, WINDOW + REWIND_TOKENS + 1, CONTEXT])
def test_everyone_says_what_is_allocated(path, ctx_size):
    n_bytes = 3 * ROW * (ctx_size + min(ctx_size, WINDOW + REWIND_TOKENS))
    with elutq.load(path, ctx_size=ctx_size, threads=1, parallel=2) as model:
        assert model.kv_bytes == 2 * n_bytes
    with Model(path) as native:
        fitness = assess(native, ctx_size, 1)
        assert fitness.kv_bytes == n_bytes
        beside = PROCESS_BYTES + TOKEN_BYTES * native.vocab_size
        assert fitness.needed_bytes == native.info.file_bytes + n_bytes + beside
        assert fitness.full_kv_bytes == 3 * ROW * (ctx_size + min(ctx_size, WINDOW))
        assert measure.token_bytes(native, ctx_size, "f16") == native.info.bytes_per_token + fitness.full_kv_bytes
        measured = measure_roof(native, fitness)
        full = measured.bytes_per_token + measured.full_kv_bytes
        assert measured.roof_full_ts * full == pytest.approx(measured.roof_ts * measured.bytes_per_token)


def test_contexts_are_as_long_as_windows_let_them_be():
    """8192 tokens of one layer in six, and 1024 of five: less than a third of what all of them would take."""

    def cache_bytes(n_tokens):
        return 1000 * n_tokens + 5000 * min(n_tokens, 1024)

    room = 2 * cache_bytes(8192) + 100
    assert fit_context(131072, cache_bytes, 100, room) == 8192
    assert fit_context(131072, cache_bytes, 100, room - 2) == 8192 - STEP
    assert fit_context(131072, cache_bytes, 100, 2 * room - 100, n_contexts=2) == 8192
    assert fit_context(8100, cache_bytes, 100, room) == 8100
    assert fit_context(131072, cache_bytes, 100, 200) == FLOOR
    assert choose_parallel(8192, 131072, cache_bytes, 100, 5 * room - 400, 64) == 5
    check_context(8192, 131072, cache_bytes, cache_bytes(8192))
    with pytest.raises(ElutqError, match="use at most 8192 tokens"):
        check_context(131072, 131072, cache_bytes, 2 * cache_bytes(8192))


def test_bench_comes_back_to_its_depth_however_far_that_is(path):
    with Model(path) as native, measure.Texts(native, measure.Test(600, 0, 1000, 1), CONTEXT, "f16") as texts:
        texts.append(LONG[:1000])
        for n_tokens in (600, 3, 900):
            texts.append(LONG[:n_tokens])
            texts.rewind(1000)
            assert texts.n_tokens == 1000
        state = texts._sequences[0].export_state(900, 100)
        with NativeSequence(native, CONTEXT) as sequence:
            texts.engine.eval([Run(sequence, LONG[:1000])])
            assert np.array_equal(sequence.export_state(900, 100), state)


def test_questions_about_a_long_context_have_the_answers_of_an_empty_one(path):
    """The second goes off within reach, the third is too far back."""
    contexts = [LONG[:1400], [*LONG[:1200], 3, 4], [*LONG[:300], 5, 6]]
    requests = [Request(tuple(context), (7, 8)) for context in contexts]
    with Model(path) as native:
        ask = NativeContinuations(native, 1, "f16").continuation_logits
        together = list(ask(requests, lambda n: None))
        for request, logits in zip(requests, together, strict=True):
            assert np.array_equal(next(ask([request], lambda n: None)), logits)
