"""A model file that changes beneath a running model: an error in one line, never the end of the process."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from make_models import golden_config, write_random

from elutq_native import Model, NativeError, survive_lost_pages

TOKENS = list(range(1, 9))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.gguf"
    write_random(path, golden_config("llama2-gqa-sharded"), bits=2, group_size=32)
    return path


def cut(path):
    os.truncate(path, 4096)


def overwrite(path):
    change_byte(path, path.stat().st_size - 1)


def change_byte(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def touch(path, later=10):
    """Gives the file another time, whatever the grain of the file system's clock."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + later * 10**9))


@pytest.mark.parametrize(("change", "message"), [(cut, "was cut short while in use"), (overwrite, "was written to")])
def test_a_change_between_calls(change, message, path):
    with Model(path) as model, model.session(context_size=32, threads=2) as session:
        session.eval(TOKENS)
        change(path)
        for _ in range(2):
            with pytest.raises(NativeError, match=message) as refused:
                session.eval(TOKENS)
            assert refused.value.bad_input and session.position == len(TOKENS)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_deleted_or_replaced_is_still_there_for_an_open_model(how, path, tmp_path):
    with Model(path) as model, model.session(context_size=32, threads=1) as session:
        before = session.eval(TOKENS)
        if how == "deleted":
            path.unlink()
        else:
            (tmp_path / "other").write_bytes(b"something else")
            (tmp_path / "other").replace(path)
        session.rewind(0)
        assert (session.eval(TOKENS) == before).all()


@pytest.mark.parametrize("later", [10, -10])
def test_a_touched_file_goes_on(later, path):
    with Model(path) as model, model.session(context_size=32, threads=2) as session:
        before = session.eval(TOKENS)
        for _ in range(2):
            touch(path, later)
            session.rewind(0)
            assert (session.eval(TOKENS) == before).all()
        path.write_bytes(path.read_bytes())  # rewritten, with what it held
        touch(path, later)
        session.rewind(0)
        assert (session.eval(TOKENS) == before).all()
        change_byte(path, path.stat().st_size // 2)
        touch(path, later)
        with pytest.raises(NativeError, match="was written to"):
            session.eval(TOKENS)


def test_every_byte_of_a_small_file_counts_when_its_time_changed(path):
    n_bytes = path.stat().st_size
    places = [0, 8, n_bytes - 1, *np.random.default_rng(4).integers(n_bytes, size=20).tolist()]
    with Model(path) as model, model.session(context_size=32, threads=1) as session:
        for place in places:
            change_byte(path, place)
            touch(path)
            with pytest.raises(NativeError, match="was written to"):
                session.eval([1])
            change_byte(path, place)
            touch(path, -20)
            session.eval([1])


def test_a_large_file_is_compared_in_its_metadata_and_in_places_to_its_end(tmp_path):
    """Above 16 MB, written over in a stretch longer than what lies between two places."""
    config = replace(golden_config("llama2-gqa-sharded"), vocab_size=1 << 18, max_position_embeddings=32)
    path = tmp_path / "large.gguf"
    write_random(path, config, bits=4, group_size=32, half="embed_tokens")
    n_bytes = path.stat().st_size
    assert n_bytes > 24 << 20
    with Model(path) as model, model.session(threads=1) as session:
        session.eval([1])
        touch(path)
        session.eval([1])
        stretch = n_bytes // 100
        for at in (100, n_bytes // 3, n_bytes - stretch):
            with path.open("r+b") as file:
                file.seek(at)
                before = file.read(stretch)
                file.seek(at)
                file.write(bytes(len(before)))
                file.flush()
                touch(path)
                with pytest.raises(NativeError, match="was written to"):
                    session.eval([1])
                file.seek(at)
                file.write(before)
        touch(path)
        session.eval([1])
        change_byte(path, 40)  # in the metadata
        touch(path)
        with pytest.raises(NativeError, match="was written to"):
            session.eval([1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_who_asks_for_it_gets_a_handler_for_lost_pages(path):
    program = f"""
import signal
from pathlib import Path
from elutq_native import Model, survive_lost_pages
def handled():
    caught = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> signal.SIGBUS - 1 & 1)
with Model({str(path)!r}) as model, model.session(8, 1) as session:
    session.eval([1])
    print(handled())
survive_lost_pages()
print(handled())
"""
    # AddressSanitizer, where it is preloaded, handles the signal itself unless it is told not to.
    environment = os.environ | {"ASAN_OPTIONS": f"{os.environ.get('ASAN_OPTIONS', '')}:handle_sigbus=0"}
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (finished.stdout, finished.returncode) == ("False\nTrue\n", 0), finished.stderr


def test_cut_short_beneath_running_calls(path):
    survive_lost_pages()
    sound = path.read_bytes()
    for delay in range(20):
        path.write_bytes(sound)
        with Model(path) as model, model.session(context_size=32, threads=2) as session:
            timer = threading.Timer(delay * 1e-4, cut, [path])
            timer.start()
            with pytest.raises(NativeError, match="cut short"):
                while True:
                    session.rewind(0)
                    session.eval(TOKENS)
            timer.join()


def test_lost_pages_end_a_pass_and_not_the_process(path):
    """Reading the weights takes no look at the file first, so that this meets SIGBUS for certain."""
    program = f"""
import os
from elutq_native import Model, NativeError, survive_lost_pages
survive_lost_pages()
model = Model({str(path)!r})
session = model.session(threads=2)
os.truncate({str(path)!r}, 4096)
session.read_weights()
try:
    session.eval([1])
except NativeError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "cut short" in finished.stdout
