"""Models, sessions and quantizers after they are closed, beneath running calls too, and used by two threads at once."""

import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from elutq_native import ClosedError, Engine, Model, NativeError, NativeSequence, Run, lib
from elutq_native.quantizer import Quantizer

LONG = [1] * 900
"""A batch that takes seconds with the scalar kernels."""


@pytest.fixture
def session(novels_2bit):
    with Model(novels_2bit, "scalar") as model, model.session(threads=2) as session:
        yield session


def profile(session):
    with session.profile():
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.position,
        lambda session: session.eval([1]),
        lambda session: session.rewind(0),
        lambda session: session.export_state(0, 0),
        lambda session: session.import_state(np.zeros(session.model.state_bytes(1, 1), np.uint8), 1),
        lambda session: session.read_weights(),
        profile,
    ],
)
def test_a_closed_session_says_so(call, session):
    session.close()
    session.close()
    session.cancel()  # nothing runs in it
    with pytest.raises(ClosedError, match="the session is closed"):
        call(session)


def test_a_session_closed_while_it_is_profiled_still_tells_the_times(session):
    with session.profile() as seconds:
        session.eval([1])
        session.close()
    assert seconds["head"] > 0


@pytest.mark.parametrize("call", [lambda model: model.session(8, 1), lambda model: model.kv_bytes_per_token()])
def test_a_closed_model_says_so(call, novels_2bit):
    model = Model(novels_2bit)
    model.close()
    model.close()
    with pytest.raises(ClosedError, match="the model is closed"):
        call(model)


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shows what is mapped")
def test_a_file_stays_mapped_until_its_model_and_the_last_session_are_closed(novels_2bit, tmp_path):
    path = tmp_path / "alone.gguf"
    path.write_bytes(novels_2bit.read_bytes())
    with Model(path) as model:
        session, other = model.session(16, 1), model.session(16, 2)
        before, size = session.eval([1, 2, 3]), model.state_bytes(3, 3)
    other.close()
    session.rewind(0)
    assert (session.eval([1, 2, 3]) == before).all()
    assert session.export_state(0, 3).size == size
    assert is_mapped(path)
    session.close()
    assert not is_mapped(path)


def test_closing_a_session_ends_what_another_thread_computes_in_it(novels_2bit):
    with Model(novels_2bit, "scalar") as model:
        for delay in (0.0, 0.005, 0.05):
            session, begun = model.session(threads=2), threading.Event()
            timer = threading.Timer(delay, lambda: (begun.wait(), session.close()))  # noqa: B023 (ends in this round)
            timer.start()
            with pytest.raises(ClosedError, match="the session is closed"):
                while True:
                    begun.set()
                    session.eval(LONG)
                    session.rewind(0)
            timer.join()


def test_an_engine_closed_as_a_call_begins_ends_it(novels_2bit, monkeypatch):
    """Between the count of calls and the library's own beginning of one."""
    with Model(novels_2bit) as model, NativeSequence(model, 512) as sequence:
        closed_first = Engine(model, 1)

        class Library:
            def __getattr__(self, name):
                return getattr(lib, name)

            def elutq_engine_eval(self, *arguments):
                closed_first.close()
                return lib.elutq_engine_eval(*arguments)

        monkeypatch.setattr("elutq_native.engine.lib", Library())
        with pytest.raises(ClosedError):
            closed_first.eval([Run(sequence, [1] * 500)])
        assert sequence.position == 0


def test_a_session_that_another_thread_uses_is_refused_and_goes_on(session):
    tokens = LONG[:100]
    session.eval([7])
    wanted = session.eval(tokens)
    session.rewind(1)
    results: list[np.ndarray] = []

    def compute():
        while not results:
            try:
                results.append(session.eval(tokens))
            except NativeError as error:  # the other thread came first
                assert error.status == lib.ELUTQ_ERROR_IN_USE

    computing = threading.Thread(target=compute)
    computing.start()
    refused = []
    while computing.is_alive():
        for call in (lambda: session.export_state(0, 1), session.read_weights, lambda: session.eval([])):
            try:
                call()
            except NativeError as error:
                refused += [error] * (error.status == lib.ELUTQ_ERROR_IN_USE)
    computing.join()
    np.testing.assert_array_equal(results[0], wanted)
    assert {str(error) for error in refused} == {"another thread is using this session; open one for each thread"}
    assert not refused[0].bad_input


def test_what_is_in_use_is_said_to_be(novels_2bit):
    """A sequence given twice is no other thread's; one that another engine appends to is, and this engine is free."""
    with (
        Model(novels_2bit, "scalar") as model,
        Engine(model, 1) as busy,
        Engine(model, 1) as engine,
        NativeSequence(model, 1024) as sequence,
    ):
        with pytest.raises(NativeError, match="a sequence is given twice") as caught:
            engine.eval([Run(sequence, [1]), Run(sequence, [2])])
        assert caught.value.bad_input and sequence.position == 0
        with pytest.raises(NativeError, match="another thread is using a sequence"):
            beneath(lambda: evaluate_long(busy, sequence), lambda: engine.eval([Run(sequence, [1])]))
        with pytest.raises(NativeError, match="another thread is using this engine"):
            beneath(lambda: evaluate_long(busy, sequence), lambda: busy.rehearse(0, 1))


def test_no_profile_is_begun_beneath_a_pass(session):
    with pytest.raises(NativeError, match="another thread is using this session"):
        beneath(lambda: (session.rewind(0), session.eval(LONG)), lambda: profile(session))
    session.rewind(0)
    with session.profile() as seconds:
        session.eval([1])
    assert 0 < sum(seconds.values()) < 60


def evaluate_long(engine, sequence):
    sequence.rewind(0)
    engine.eval([Run(sequence, LONG)])


def beneath(run, call):
    """Makes a call, again and again, while another thread runs; which begins anew where it had ended before."""

    def unless_refused():
        with suppress(NativeError):  # the call came first
            run()

    while True:
        running = threading.Thread(target=unless_refused)
        running.start()
        try:
            while running.is_alive():
                call()
        finally:
            running.join()


def weights(rows):
    return np.random.default_rng(3).normal(size=(rows, 128)).astype(np.float32)


def fit(quantizer, rows=64):
    starts = np.array([[0.5, 0.25, 0.0]])
    return quantizer.fit(weights(rows), starts, 128, None, 20, 1e-3)


def test_a_closed_quantizer_says_so():
    quantizer = Quantizer(2)
    fit(quantizer)
    quantizer.close()
    quantizer.close()
    with pytest.raises(ClosedError, match="the quantizer is closed"):
        fit(quantizer)


def test_a_quantizer_closed_beneath_a_call_finishes_it():
    quantizer = Quantizer(2)
    wanted = fit(quantizer, 4096)
    timer = threading.Timer(0.002, quantizer.close)
    timer.start()
    with pytest.raises(ClosedError):
        while True:
            found = fit(quantizer, 4096)
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)
    timer.join()
