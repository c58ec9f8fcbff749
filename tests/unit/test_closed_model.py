"""A language model after it is closed: texts begun before it, and new ones, end in one clear error."""

import threading

import pytest

import elutq
from elutq_cli.generation import LanguageModel
from elutq_native import ClosedError, NativeError

PROMPT = "It was a dark night, and"


@pytest.mark.parametrize("n_before", [0, 1, 5])
def test_a_text_read_after_its_with_block_says_that_the_model_is_closed(n_before, novels_2bit):
    with elutq.load(novels_2bit, threads=1) as model:
        generation = elutq.generate(model, PROMPT, temp=0, ignore_eos=True)
        for _ in range(n_before):
            next(generation)
    with pytest.raises(ClosedError, match="the model is closed"):
        generation.read()
    generation.cancel()
    assert len(generation.tokens) == n_before


@pytest.mark.parametrize(
    "call",
    [
        lambda model: elutq.generate(model, PROMPT),
        lambda model: elutq.generate(model, [1, 2, 3]),
        lambda model: model.encode(PROMPT),
        lambda model: model.start(64),
        lambda model: model.scheduler,
        lambda model: model.context,
        lambda model: model.ctx_size,
        lambda model: model.kv_bytes,
        lambda model: model.clear(),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_a_closed_model_computes_nothing(started, call, novels_2bit):
    model = LanguageModel(novels_2bit, ctx_size=64 if started else None, threads=1)
    model.close()
    model.close()
    with pytest.raises(ClosedError, match="the model is closed"):
        call(model)


def test_closing_a_model_ends_the_text_that_another_thread_makes(novels_2bit, monkeypatch):
    monkeypatch.setenv("ELUTQ_ISA", "scalar")
    model = LanguageModel(novels_2bit, ctx_size=1024, threads=2)
    generation, begun = elutq.generate(model, PROMPT, temp=0, ignore_eos=True), threading.Event()
    closing = threading.Thread(target=lambda: (begun.wait(), model.close()))
    closing.start()
    with pytest.raises(ClosedError, match="the model is closed"):
        for _ in generation:
            begun.set()
    closing.join()


def test_a_context_that_cannot_be_had_leaves_a_model_that_can_be_used(novels_2bit, monkeypatch):
    with LanguageModel(novels_2bit, ctx_size=64, threads=1) as model:
        wanted = elutq.generate(model, PROMPT, 3, temp=0).read()

        def fail(*arguments):
            raise NativeError(4, "out of memory", bad_input=False)

        with monkeypatch.context() as patch:
            patch.setattr("elutq_cli.generation.language_model.NativeSequence", fail)
            with pytest.raises(NativeError, match="out of memory"):
                model.start(32)
        assert elutq.generate(model, PROMPT, 3, temp=0).read() == wanted


def test_a_text_whose_model_is_closed_meanwhile_says_so(novels_2bit):
    with elutq.load(novels_2bit, threads=1) as model:
        generation = elutq.generate(model, PROMPT, temp=0, ignore_eos=True)
        next(generation)
        engine, evaluate = model.scheduler.engine, model.scheduler.engine.eval
        # As another thread would, when the call has begun.
        engine.eval = lambda runs: (model.close(), evaluate(runs))[1]
        with pytest.raises(ClosedError, match="the model is closed"):
            next(generation)
