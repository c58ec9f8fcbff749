"""A run that is stopped goes on where it was, and what goes wrong on the way leaves an old output as it was."""

import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run.fingerprint import explain_difference
from elutq_cli.pipeline.run.forecast import Forecast
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.run.spool import Spool
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, ElutqError
from elutq_formats.model_file import ModelFile

DATA = Path(__file__).parent.parent / "data"
NOVELS = DATA / "novels-6m"
SHARDED = DATA / "golden" / "llama2-gqa-sharded"
OPTIONS = ["--calibration", DATA / "sampled.txt", "--num-samples", 2, "--sequence-length", 64]
SMALL = Recipe(group_size=32)


class Call(Progress):
    """Calls a function with the number of weights just done."""

    def __init__(self, function):
        self.advance = function


def command(checkpoint, output, *options):
    return [sys.executable, "-m", "elutq_cli", "quantize", str(checkpoint), "-o", str(output), *map(str, options)]


def run(checkpoint, output, *options, **more):
    arguments = command(checkpoint, output, *options)
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, **more)


def test_kills_change_nothing():
    """Three of the kills that scripts/kill_quantize.py was run with by the dozen; it prints its seed."""
    script = DATA.parent.parent / "scripts" / "kill_quantize.py"
    arguments = [sys.executable, str(script), str(NOVELS), "--kills", "3", "--", *map(str, OPTIONS)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    assert result.stdout.count("\nkilled ") == 3


def test_a_run_goes_on_after_each_unit(tmp_path):
    """Stopped by a limit on the number of weights, block after block, in one process each time."""
    output = tmp_path / "out.gguf"
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        quantize(checkpoint, tmp_path / "whole.gguf", SMALL, None, backend)
        n_matrices = 7 * checkpoint.config.num_hidden_layers + 2
        for stop in range(1, n_matrices + 1):
            calls = []

            def count(n_weights, calls=calls, stop=stop):
                calls.append(n_weights)
                if len(calls) == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                quantize(checkpoint, output, SMALL, None, backend, progress=Call(count))
            assert not output.exists()
        quantize(checkpoint, output, SMALL, None, backend)
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "out.gguf.work").exists()


def stop_after_first_block(checkpoint, output, backend, recipe=SMALL, resume=True):
    done = []

    def count(n_weights):
        done.append(n_weights)
        if len(done) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(checkpoint, output, recipe, None, backend, resume=resume, progress=Call(count))


def test_another_run_is_refused_naming_the_difference(tmp_path):
    output = tmp_path / "out.gguf"
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        stop_after_first_block(checkpoint, output, backend)
        for recipe, difference in (
            (Recipe(group_size=32, bits=3), "with bits 2, not 3"),
            (Recipe(group_size=32, embedding_bits=16), "with embedding bits 4, not 16"),
            (Recipe(group_size=32, seed=1), "with seed 0, not 1"),
        ):
            with pytest.raises(ElutqError, match=f"{difference}: go back to that, or start over .--no-resume"):
                quantize(checkpoint, output, recipe, None, backend)
        quantize(checkpoint, output, Recipe(group_size=32, bits=3), None, backend, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize(
    ("then", "now", "calibrated", "difference"),
    [
        ({}, {"method": "correct"}, (True, True), "with method allocate, not correct"),
        ({"method": "fit"}, {}, (True, True), "with method fit, not allocate"),
        ({"num_samples": 4}, {}, (True, False), "with calibration"),
        ({}, {}, (False, True), "without calibration"),
        ({}, {"tune": ("e2e",), "tune_minutes": 5.0}, (True, True), "with tune none, not e2e"),
        ({"tune": ("e2e",)}, {"tune": ("e2e",), "tune_minutes": 5.0}, (True, True), "with tune tokens 262144, not the"),
        ({}, {"output_bits": 3}, (True, True), "with output bits the default, not 3"),
    ],
)
def test_the_difference_is_what_the_user_chose_and_not_what_follows(then, now, calibrated, difference):
    prints = []
    for options, is_calibrated in zip((then, now), calibrated, strict=True):
        recipe = Recipe(**options).resolved(is_calibrated)
        prints.append({name.replace("_", " "): str(value) for name, value in asdict(recipe).items()})
        prints[-1] |= {"calibration": "text"} if is_calibrated else {}
    assert explain_difference(*prints).startswith(difference)


@pytest.mark.parametrize("damage", [b'{"bits": 3}', b"[]", b"{", b'{"tune": "("}'])
def test_a_damaged_fingerprint_is_a_line(tmp_path, damage):
    output = tmp_path / "out.gguf"
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        stop_after_first_block(checkpoint, output, backend)
        (tmp_path / "out.gguf.work" / "fingerprint.json").write_bytes(damage)
        with pytest.raises(ElutqError, match=r"start over .--no-resume"):
            quantize(checkpoint, output, SMALL, None, backend)
        quantize(checkpoint, output, SMALL, None, backend, force=True)


def test_what_a_plan_looks_at_is_left_as_it_is(tmp_path):
    output, work = tmp_path / "out.gguf", tmp_path / "out.gguf.work"
    Spool(output).check()
    assert list(tmp_path.iterdir()) == []
    with Spool(output), pytest.raises(ElutqError, match="another run is writing"):
        Spool(output).check()
    work.mkdir()
    Spool(output).check()
    assert list(work.iterdir()) == []
    (work / "notes").write_text("mine")
    with pytest.raises(ElutqError, match="is in the way, and not a work folder"):
        Spool(output).check()
    assert [path.name for path in work.iterdir()] == ["notes"]
    shutil.rmtree(work)
    work.write_text("mine")
    for use in (lambda: Spool(output).check(), lambda: Spool(output).__enter__()):
        with pytest.raises(ElutqError, match="is in the way, and not a work folder"):
            use()


def test_a_plan_needs_nothing_that_is_writable(tmp_path, monkeypatch):
    output = tmp_path / "out.gguf"
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        stop_after_first_block(checkpoint, output, backend)
    opened, modes = Path.open, []
    monkeypatch.setattr(Path, "open", lambda path, mode="r", **more: modes.append(mode) or opened(path, mode, **more))
    with pytest.raises(ElutqError, match="holds a run that was stopped"):
        Spool(output, {"checkpoint": "another"}).check()
    assert "rb" in modes
    assert not any(letter in mode for mode in modes for letter in "aw+x")


def test_an_interrupted_run_says_what_goes_on_after_it(tmp_path, caplog):
    output = tmp_path / "out.gguf"

    def stop(_):
        raise KeyboardInterrupt

    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        with pytest.raises(KeyboardInterrupt):
            quantize(checkpoint, output, SMALL, None, backend, progress=Call(stop))
        assert "is kept" not in caplog.text  # nothing is finished
        stop_after_first_block(checkpoint, output, backend)
        assert "out.gguf.work: the same command goes on after it" in caplog.text
        caplog.clear()
        stop_after_first_block(checkpoint, output, backend, resume=False)
        assert "the same command, without --no-resume, goes on after it" in caplog.text


def test_force_quantizes_another_checkpoint_over_a_stopped_run(tmp_path, caplog):
    output = tmp_path / "out.gguf"
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        stop_after_first_block(checkpoint, output, backend)
    with Checkpoint.open(SHARDED.parent / "smollm-tied") as other, native_backend(1) as backend:
        with pytest.raises(ElutqError, match="whose checkpoint was another"):
            quantize(other, output, SMALL, None, backend)
        quantize(other, output, SMALL, None, backend, force=True)
    assert "out.gguf.work holds a run that was stopped, whose checkpoint was another" in caplog.text
    assert ModelFile.open(output).name == "smollm-tied"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_mount_that_numbers_files_anew_is_no_change(tmp_path, monkeypatch):
    """As NFS and FUSE may: another inode at each opening, the same size and time."""
    status, numbers = os.fstat, itertools.count(1)

    def renumbered(descriptor):
        found = status(descriptor)
        return os.stat_result((found[0], next(numbers), *found[2:]), {"st_mtime_ns": found.st_mtime_ns})

    monkeypatch.setattr(os, "fstat", renumbered)
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        identity = checkpoint.identity()
        stop_after_first_block(checkpoint, tmp_path / "out.gguf", backend)
        quantize(checkpoint, tmp_path / "out.gguf", SMALL, None, backend)
    with Checkpoint.open(SHARDED) as checkpoint:
        assert checkpoint.identity() == identity
    assert ModelFile.open(tmp_path / "out.gguf").tensors


def test_a_link_as_output_stays_and_everything_lies_where_it_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out.gguf"
    link.symlink_to(tmp_path / "disk" / "real.gguf")
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        stop_after_first_block(checkpoint, link, backend)
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.gguf.work"]
        quantize(checkpoint, link, SMALL, None, backend)
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out.gguf"]
    assert ModelFile.open(link).tensors


def test_what_was_measured_before_the_first_unit_is_kept(tmp_path):
    found = []

    def measure():
        found.append({"blk.0.attn_q": [2, 64]})
        return found[-1]

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), Spool(tmp_path / "out.gguf", {"bits": "2"}) as spool:
            assert spool.remember(measure) == found[0]
            raise KeyboardInterrupt
    assert len(found) == 1
    with pytest.raises(ElutqError, match="with bits 2, not 3"), Spool(tmp_path / "out.gguf", {"bits": "3"}):
        pass
    with Spool(tmp_path / "out.gguf", {"bits": "3"}, resume=False) as spool:
        spool.remember(measure)
    assert len(found) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_changed_checkpoint_is_another_run(tmp_path):
    folder, output = copy_of(SHARDED, tmp_path / "checkpoint"), tmp_path / "out.gguf"
    with native_backend(1) as backend:
        with Checkpoint.open(folder) as checkpoint:
            stop_after_first_block(checkpoint, output, backend)
        rewrite(folder / "model-00002-of-00002.safetensors")
        with Checkpoint.open(folder) as checkpoint, pytest.raises(ElutqError, match="checkpoint was another, or has"):
            quantize(checkpoint, output, SMALL, None, backend)


def test_a_damaged_work_folder_is_refused(tmp_path):
    output = tmp_path / "out.gguf"
    with Checkpoint.open(SHARDED) as checkpoint, native_backend(1) as backend:
        stop_after_first_block(checkpoint, output, backend)
        (tmp_path / "out.gguf.work" / "blk.0.attn_q.weight.npy").unlink()
        with pytest.raises(ElutqError, match=r"out\.gguf\.work is damaged: start over .--no-resume"):
            quantize(checkpoint, output, SMALL, None, backend)
        quantize(checkpoint, output, SMALL, None, backend, resume=False)


# ---- faults


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def rewrite(path):
    """Replace a file by one with the same bytes, as a new download does."""
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=(0, path.stat().st_mtime_ns + 10**9))
    new.replace(path)


@pytest.mark.parametrize("place", ["scratch files", "output"])
def test_a_full_disk_leaves_the_old_output_and_what_was_done(tmp_path, place):
    """A limit on the size of files stands in for a full disk: like it, it fails a write in the middle."""
    output, options = tmp_path / "out.gguf", ("--bits", 4, "--group-size", 32, "--force")
    assert run(SHARDED, output, *options).returncode == 0
    expected = output.read_bytes()
    output.write_bytes(b"precious")
    limit = 1000 if place == "scratch files" else len(expected) - 1000
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    result = run(SHARDED, output, *options, **limited)
    assert result.returncode == 1
    assert result.stderr.startswith("elutq: cannot write ")
    assert result.stderr.endswith(f": {os.strerror(errno.EFBIG)}\n")
    assert output.read_bytes() == b"precious"
    assert not list(tmp_path.glob(".*.tmp"))
    if place == "output":
        n_units = len(list(tmp_path.glob("out.gguf.work/*.unit")))
        assert n_units > 2
        result = run(SHARDED, output, *options)
        assert f"going on after the {n_units} units" in result.stderr
        assert output.read_bytes() == expected


def test_a_disk_too_small_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 5000, 5000))
    with Checkpoint.open(SHARDED) as checkpoint:
        forecast = Forecast.make(checkpoint.config, Plan.make(checkpoint.config, SMALL), SMALL, 0, 1)
        with pytest.raises(ElutqError, match=r"has 0\.01 MB free, and this run needs 0\.\d\d MB"):
            forecast.check(tmp_path / "out.gguf", None)


def test_an_unreadable_shard_is_named(tmp_path, monkeypatch):
    folder, output = copy_of(SHARDED, tmp_path / "checkpoint"), tmp_path / "out.gguf"
    output.write_bytes(b"precious")
    with Checkpoint.open(folder) as checkpoint, native_backend(1) as backend:
        really, calls = Path.open, []

        def fail(path, *arguments, **options):
            calls.extend([path] * (path.suffix == ".safetensors"))
            if len(calls) == 5:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return really(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", fail)
        with pytest.raises(CheckpointError, match=r"cannot read .*\.safetensors: Input/output error"):
            quantize(checkpoint, output, SMALL, None, backend, force=True)
        monkeypatch.undo()
    assert output.read_bytes() == b"precious"


@pytest.mark.parametrize("change", ["replaced", "truncated", "overwritten", "removed"])
def test_a_shard_that_changes_during_a_run_is_named(tmp_path, change):
    folder, output = copy_of(SHARDED, tmp_path / "checkpoint"), tmp_path / "out.gguf"
    output.write_bytes(b"precious")
    shards = sorted(folder.glob("*.safetensors"))

    def disturb(n_weights):
        for shard in shards:
            if change == "replaced":
                rewrite(shard)
            elif change == "truncated":
                os.truncate(shard, 1000)
            elif change == "overwritten":
                with shard.open("r+b") as file:
                    file.seek(-8, os.SEEK_END)
                    file.write(np.float64(1).tobytes())
                os.utime(shard)
            else:
                shard.unlink(missing_ok=True)

    message = "cannot read" if change == "removed" else "changed while it was being read"
    with (
        Checkpoint.open(folder) as checkpoint,
        native_backend(1) as backend,
        pytest.raises(CheckpointError, match=message),
    ):
        quantize(checkpoint, output, SMALL, None, backend, force=True, progress=Call(disturb))
    assert output.read_bytes() == b"precious"
