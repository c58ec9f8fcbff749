"""Processes that fork after a model was opened: the threads are not in the child, which is told so and never waits."""

import os
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest

import elutq
from elutq_cli.generation import LanguageModel
from elutq_native import Engine, ForkedError, Model, NativeError, Run, lib
from elutq_native.quantizer import Quantizer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
PROMPT = [1, 2, 3, 4, 5]
PATIENCE = 60
"""Seconds after which a child hangs."""


def in_child(function):
    """Runs a function in a forked process; fails when it raises there, or does not end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + PATIENCE
    while (finished := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.005)
    if finished == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert finished[1] == 0


def refused(call, remedy="open an(other)? [a-z]+"):
    line = f"^this process was forked and has not the [a-z]+'s threads; {remedy} in it$"
    with pytest.raises(ForkedError, match=line) as caught:
        call()
    assert caught.value.status == lib.ELUTQ_ERROR_FORKED and not caught.value.bad_input


def test_a_session_of_several_threads_is_refused_in_a_child_and_another_one_opened(novels_2bit):
    with Model(novels_2bit) as model, model.session(32, 2) as session:
        wanted = session.eval(PROMPT)

        def child():
            refused(lambda: session.eval([1]))
            refused(session.read_weights)
            assert session.position == len(PROMPT)
            session.close()
            with model.session(32, 2) as own:
                np.testing.assert_array_equal(own.eval(PROMPT), wanted)
            model.close()

        in_child(child)
        session.rewind(0)
        np.testing.assert_array_equal(session.eval(PROMPT), wanted)


def test_a_session_of_one_thread_goes_on_in_a_child(novels_2bit):
    with Model(novels_2bit) as model, model.session(32, 1) as session:
        session.eval(PROMPT[:3])
        state = session.export_state(0, 3)
        wanted = session.eval(PROMPT[3:])
        session.rewind(0)
        session.import_state(state, 3)
        in_child(lambda: np.testing.assert_array_equal(session.eval(PROMPT[3:]), wanted))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_in_a_call_at_the_fork_is_free_in_the_child(novels_2bit, threads):
    """The call goes on in the parent, and has nobody to end it in the child."""
    with Model(novels_2bit, "scalar") as model, model.session(1024, threads) as session:
        wanted = session.eval(PROMPT)
        computing = threading.Thread(target=until_it_is_free, args=(lambda: session.eval([1] * 900),))
        computing.start()
        while is_free(lambda: session.export_state(0, 0)):
            pass

        def child():
            refused(lambda: session.eval([1]))
            refused(session.read_weights)
            session.rewind(0)
            with Engine(model, 2) as own:
                np.testing.assert_array_equal(own.eval([Run(session._sequence, PROMPT)])[0][0], wanted)
            assert lib.elutq_engine_destroy(session._engine._handle._pointer) == lib.ELUTQ_OK
            assert lib.elutq_sequence_destroy(session._sequence._handle._pointer) == lib.ELUTQ_OK

        in_child(child)
        computing.join()
        assert session.position == len(PROMPT) + 900


def until_it_is_free(call):
    while not is_free(call):
        pass


def is_free(call):
    try:
        call()
    except NativeError as error:
        assert error.status == lib.ELUTQ_ERROR_IN_USE
        return False
    return True


def test_a_language_model_goes_on_in_a_child_once_its_scheduler_is_started_anew(novels_2bit):
    with LanguageModel(novels_2bit, ctx_size=32, threads=2) as model:

        def text(prompt=PROMPT):
            return elutq.generate(model, prompt, 4, temp=0).read()

        wanted = text()

        def child():
            refused(lambda: text([*PROMPT, 6]), r"call model\.start\(\)")
            model.start(32)
            assert text() == wanted
            model.close()

        in_child(child)
        model.clear()
        assert text() == wanted


def test_a_quantizer_is_refused_in_a_child():
    weights = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    arguments = weights, np.array([[0.5, 0.0]]), 32, None, 4, 1e-3
    with_threads = Quantizer(3)
    fitted = with_threads.fit(*arguments)
    numbers = fitted[0].view("u2"), fitted[1].astype("f2").view("u2")[..., None]

    def child():
        refused(lambda: with_threads.fit(*arguments))
        refused(lambda: with_threads.pack(*numbers, fitted[2], 1, 0))
        with_threads.close()
        own = Quantizer(3)
        np.testing.assert_array_equal(own.fit(*arguments)[2], fitted[2])
        own.close()

    in_child(child)
    with_threads.close()


def test_a_child_that_ends_as_programs_do_does_not_wait_for_threads(novels_2bit):
    """With everything freed by Python's own end, in parent and child."""
    program = f"""
import os
from elutq_native import Model
session = Model({str(novels_2bit)!r}).session(32, 3)
session.eval([1])
child = os.fork()
if child:
    print(os.waitpid(child, 0)[1])
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("0\n", "", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="sets glibc's default")
def test_threads_have_room_for_a_tile_where_the_system_gives_them_little():
    """A default of 128 KB, as under musl, and refine's tile of twice that on every thread."""
    program = """
import ctypes
import numpy as np
from elutq_native.quantizer import Quantizer
libc = ctypes.CDLL(None)
if not hasattr(libc, "pthread_setattr_default_np"):
    raise SystemExit("no glibc")
attributes = ctypes.create_string_buffer(256)
assert libc.pthread_attr_init(attributes) == 0
assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(128 << 10)) == 0
assert libc.pthread_setattr_default_np(attributes) == 0
rows, random = 4096, np.random.default_rng(1)
codes = random.integers(0, 16, (rows, 128), dtype=np.uint8)
residual = random.normal(size=(rows, 128)).astype(np.float32)
scales, centers = np.full((rows, 4), 0.5, np.float16), np.zeros(rows, np.float16)
Quantizer(4).refine(scales, centers, codes, residual, np.eye(128, dtype=np.float32), 1, 1e-3)
print("done")
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    if "no glibc" in finished.stderr:
        pytest.skip("no glibc")
    assert (finished.stdout, finished.returncode) == ("done\n", 0), finished.stderr
