"""The scheduler on the bundled model: texts that share passes, who gets which slot, and what ends a pass."""

import random

import pytest

import elutq
from elutq_cli.generation import Generation, Sampler, SamplingOptions, Scheduler, TextOptions
from elutq_cli.generation.context import Context, Reuse
from elutq_native import PIECE_TOKENS, CancelledError, Engine, NativeError, NativeSequence

PROMPT = "It was a dark night, and"
CONTEXT = 512


@pytest.fixture(scope="module")
def model(novels_2bit):
    with elutq.load(novels_2bit, ctx_size=CONTEXT, threads=1) as model:
        yield model


@pytest.fixture
def make_scheduler(model):
    """Returns a function that makes a scheduler of so many slots."""
    schedulers = []

    def make(n_slots):
        sequences = [NativeSequence(model.native, CONTEXT) for _ in range(n_slots)]
        schedulers.append(Scheduler(Engine(model.native, 1, n_slots), [Context(sequence) for sequence in sequences]))
        return schedulers[-1]

    yield make
    for scheduler in schedulers:
        scheduler.close()


def generation(model, prompt=PROMPT, n_predict=8, temp=0.0, seed=0, **options):
    tokens = model.encode(prompt) if isinstance(prompt, str) else prompt
    sampler = Sampler(SamplingOptions(temp=temp, seed=seed))
    return Generation(tokens, sampler, TextOptions(n_predict, **options), model.tokenizer, CONTEXT)


def run(scheduler, *generations, reuse=Reuse.ALL):
    """Makes texts to their ends; returns them."""
    for made in generations:
        scheduler.submit(made, reuse)
    while scheduler.generations:
        scheduler.step()
    return [text(made) for made in generations]


def text(made):
    while made.take() is not None:
        pass
    assert made.error is None
    return made.text


def mixed_work(model, n):
    """Returns what makes texts of many kinds: short and long prompts, greedy and drawn, of a few tokens and of many."""
    shuffled = random.Random(7)
    words = model.encode("It was a dark night, and the captain stood on the deck of his ship; the sea was calm. " * 12)
    kinds = []
    for seed in range(n):
        start = shuffled.choice([0, 0, 0, 17])
        length = shuffled.choice([1, 20, 127, 128, 129, 200, 256, 257, 270])
        kinds.append(
            {
                "prompt": words[start : start + length],
                "n_predict": shuffled.randrange(1, 25),
                "temp": 0.9 * (seed % 2),
                "seed": seed,
                "ignore_eos": True,
            }
        )
    return [lambda kind=kind: generation(model, **kind) for kind in kinds]


@pytest.mark.parametrize("reuse", [Reuse.NOTHING, Reuse.EXACT])
@pytest.mark.parametrize("n_slots", [1, 3])
def test_texts_in_company_are_those_that_come_alone(model, make_scheduler, n_slots, reuse):
    """Whoever else is there, whenever they arrive, whoever of them is cancelled, and whatever the slots held before."""
    work = mixed_work(model, 20)
    alone_in, shared = make_scheduler(1), make_scheduler(n_slots)
    alone = [run(alone_in, make(), reuse=Reuse.NOTHING)[0] for make in work]
    chance = random.Random(n_slots)
    made, waiting = {}, list(range(len(work)))
    chance.shuffle(waiting)
    cancelled = set(waiting[::4])
    while waiting or shared.generations:
        if waiting and chance.random() < 0.4:
            index = waiting.pop()
            made[index] = work[index]()
            shared.submit(made[index], reuse)
        if chance.random() < 0.05 and (going := cancelled & made.keys()):
            made[chance.choice(sorted(going))].cancel()
        shared.step()
    for index, whole in enumerate(alone):
        if reuse is Reuse.NOTHING:
            assert made[index].reused_tokens == 0
        if index in cancelled:
            assert whole.startswith(text(made[index]))
        else:
            assert text(made[index]) == whole
    n_reused = sum(one.reused_tokens for one in made.values())
    assert (n_reused > 0, n_reused % PIECE_TOKENS) == (reuse is Reuse.EXACT, 0)


def test_texts_get_their_slots_in_the_order_in_which_they_came(model, make_scheduler):
    scheduler = make_scheduler(2)
    made = [generation(model, n_predict=3) for _ in range(6)]
    ended = []
    for one in made:
        scheduler.submit(one)
    assert scheduler.n_waiting == 6
    while scheduler.generations:
        scheduler.step()
        ended += [one for one in made if one.ended and one not in ended]
    assert ended == made


def test_long_prompts_beside_others_are_taken_in_pieces_and_in_turn(model, make_scheduler):
    scheduler, passes = make_scheduler(3), []
    evaluate = scheduler.engine.eval
    scheduler.engine.eval = lambda runs: (passes.append(sorted(len(run.tokens) for run in runs)), evaluate(runs))[1]
    talking = generation(model, [5, 6], 50, ignore_eos=True)
    scheduler.submit(talking)
    for _ in range(3):
        scheduler.step()
    assert passes == [[2], [1], [1]]
    passes.clear()
    for first in (10, 11):
        scheduler.submit(generation(model, list(range(first, first + 300)), 1))
    n_before = len(talking.tokens)
    for _ in range(6):
        scheduler.step()
    # No pass has more of the prompts than a piece.
    assert passes == [[1, PIECE_TOKENS], [1, PIECE_TOKENS]] * 2 + [[1, 44, 44], [1]]
    assert len(talking.tokens) == n_before + 6


def test_two_users_who_take_turns_have_nothing_computed_twice(model, make_scheduler):
    """Though all of their texts begin alike, and with more slots than users no copy drives a text out."""
    for n_slots in (2, 3):
        scheduler = make_scheduler(n_slots)
        histories = [model.encode(PROMPT + name) for name in (" she", " he")]
        held = [0, 0]
        for turn in range(5):
            for user in range(2):
                made = generation(model, histories[user], 6, ignore_eos=True, seed=turn)
                run(scheduler, made)
                assert made.reused_tokens >= held[user]
                histories[user] = [*histories[user], *made.tokens, 30 + turn, 40 + user]
                held[user] = len(histories[user]) - 3  # the last token made was not evaluated, nor the two after it


def test_what_another_slot_holds_is_copied_and_stays_there(model, make_scheduler):
    scheduler = make_scheduler(2)
    prompt = list(range(10, 200))
    (expected,) = run(make_scheduler(1), generation(model, prompt, 10))
    first, second = generation(model, prompt, 10), generation(model, [*prompt, 7, 8], 3)
    run(scheduler, first)
    before = [context.tokens for context in scheduler.contexts]
    run(scheduler, second)
    assert (first.text, second.reused_tokens) == (expected, len(prompt))
    assert before[0] == scheduler.contexts[0].tokens
    assert scheduler.contexts[1].tokens[: len(prompt) + 2] == (*prompt, 7, 8)
    states = [context.export_state(0, len(prompt)) for context in scheduler.contexts]
    assert (states[0] == states[1]).all()


@pytest.mark.parametrize(("reuse", "n_prompts"), [(Reuse.ALL, 1), (Reuse.EXACT, 1), (Reuse.NOTHING, 3)])
def test_texts_of_one_prompt_that_come_together_have_it_computed_once(model, make_scheduler, reuse, n_prompts):
    """Unless each is to be made as if it were alone."""
    scheduler, n_evaluated = make_scheduler(3), []
    prompt = [5 + at % 300 for at in range(400)]
    (expected,) = run(make_scheduler(1), generation(model, prompt, 4))
    evaluate = scheduler.engine.eval
    scheduler.engine.eval = lambda runs: (n_evaluated.extend(len(run.tokens) for run in runs), evaluate(runs))[1]
    texts = run(scheduler, *(generation(model, prompt, 4) for _ in range(3)), reuse=reuse)
    pieces = sum(n for n in n_evaluated if n > 1)
    # The last piece, which is short, may be computed for several of them in one pass.
    assert n_prompts * len(prompt) <= pieces <= n_prompts * len(prompt) + PIECE_TOKENS
    assert texts[0] == expected


def test_a_conversation_that_takes_over_what_is_exact_has_the_texts_of_an_empty_context(model, make_scheduler):
    scheduler, empty = make_scheduler(2), make_scheduler(1)
    history = [5 + at % 300 for at in range(200)]
    options = {"n_predict": 70, "temp": 0.9, "ignore_eos": True}
    for turn in range(4):
        made = generation(model, history, seed=turn, **options)
        (expected,) = run(empty, generation(model, history, seed=turn, **options), reuse=Reuse.NOTHING)
        assert run(scheduler, made, reuse=Reuse.EXACT) == [expected]
        # All whole pieces of the prompt before this one's.
        assert made.reused_tokens == (len(history) - 80) // PIECE_TOKENS * PIECE_TOKENS * (turn > 0)
        history = [*history, *made.tokens, *range(20, 30)]
        run(scheduler, generation(model, [7] * (100 + turn), 5))


def test_a_fresh_text_takes_nothing_over(model, make_scheduler):
    scheduler = make_scheduler(2)
    first, fresh, reusing = (generation(model, PROMPT, 3) for _ in range(3))
    run(scheduler, first)
    run(scheduler, fresh, reuse=Reuse.NOTHING)
    run(scheduler, reusing)
    assert (first.reused_tokens, fresh.reused_tokens) == (0, 0)
    assert reusing.reused_tokens == reusing.prompt_tokens - 1


def test_the_slot_unused_for_longest_is_given_to_a_text_of_its_own(model, make_scheduler):
    scheduler = make_scheduler(2)
    for prompt in ([5, 6, 7], [8, 9, 10], [5, 6, 7]):
        run(scheduler, generation(model, prompt, 1))
    run(scheduler, generation(model, [20, 21], 1))
    assert sorted(context.tokens for context in scheduler.contexts) == [(5, 6, 7), (20, 21)]


def test_a_waiting_text_that_is_cancelled_leaves_the_queue(model, make_scheduler):
    scheduler = make_scheduler(1)
    first, second, third = (generation(model, n_predict=4) for _ in range(3))
    for one in (first, second, third):
        scheduler.submit(one)
    scheduler.step()
    second.cancel()
    scheduler.step()
    assert (second.finish_reason, second.prompt_seconds, scheduler.n_waiting) == ("cancelled", 0, 1)
    run(scheduler)
    assert first.finish_reason == third.finish_reason == "length"


def test_a_pass_is_ended_only_when_all_its_texts_were_cancelled(model, make_scheduler):
    scheduler = make_scheduler(2)
    first, second = (generation(model, n_predict=4) for _ in range(2))
    engine, evaluate, ended = scheduler.engine, scheduler.engine.eval, []
    engine.cancel = lambda: ended.append(True)

    def cancel_in_between(runs):
        first.cancel()
        scheduler.interrupt()
        assert not ended
        second.cancel()
        scheduler.interrupt()
        assert ended
        return evaluate(runs)

    scheduler.interrupt()  # of no pass
    scheduler.submit(first)
    scheduler.submit(second)
    engine.eval = cancel_in_between
    scheduler.step()
    assert (first.finish_reason, second.finish_reason) == ("cancelled", "cancelled")
    assert scheduler.generations == []
    scheduler.interrupt()
    assert len(ended) == 1


def test_a_pass_that_was_ended_moves_nobody(model, make_scheduler, monkeypatch):
    scheduler = make_scheduler(1)
    made = generation(model, n_predict=4)
    scheduler.submit(made)
    with monkeypatch.context() as patch:

        def cancelled(_):
            raise CancelledError(1, "cancelled", bad_input=False)

        patch.setattr(scheduler.engine, "eval", cancelled)
        scheduler.step()
    assert (made.ended, scheduler.contexts[0].tokens) == (False, ())
    run(scheduler)
    assert text(made) == run(scheduler, generation(model, n_predict=4), reuse=Reuse.NOTHING)[0]


def test_an_error_ends_the_texts_that_it_concerns_and_no_others(model, make_scheduler):
    scheduler = make_scheduler(2)
    good, bad = generation(model, n_predict=4), generation(model, n_predict=4)
    bad.sampler.sample = lambda *_: 1 / 0
    scheduler.submit(good)
    scheduler.submit(bad)
    while scheduler.generations:
        scheduler.step()
    assert isinstance(bad.error, ZeroDivisionError)
    assert (good.finish_reason, good.error) == ("length", None)
    evaluate = scheduler.engine.eval

    def fail(_):
        raise NativeError(4, "out of memory", bad_input=False)

    scheduler.engine.eval = fail
    pair = [generation(model, n_predict=4) for _ in range(2)]
    for one in pair:
        scheduler.submit(one)
    scheduler.step()
    assert [str(one.error) for one in pair] == ["out of memory"] * 2
    scheduler.engine.eval = evaluate
    assert len(run(scheduler, generation(model))[0]) > 0


def test_an_exception_after_a_pass_leaves_no_text_of_wrong_tokens(model, make_scheduler):
    """A second Ctrl-C may come between the end of a pass and what is noted of it."""
    scheduler = make_scheduler(1)
    (expected,) = run(make_scheduler(1), generation(model))
    made, evaluate = generation(model), scheduler.engine.eval
    scheduler.submit(made)
    scheduler.step()

    def interrupted(runs):
        evaluate(runs)
        raise KeyboardInterrupt

    scheduler.engine.eval = interrupted
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    scheduler.engine.eval = evaluate
    run(scheduler)
    assert text(made) == expected
