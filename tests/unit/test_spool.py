"""The spool: what a run keeps beside its output, and what is left of it."""

import errno
import json
import os

import numpy as np
import pytest

from elutq_cli.pipeline.run.spool import Spool
from elutq_cli.pipeline.run.work_folder import work_folder
from elutq_formats.errors import (
    CalibrationError,
    CheckpointError,
    DamagedWeightsError,
    ElutqError,
    UnsupportedModelError,
)
from elutq_formats.tensor_record import TensorRecord


def test_spool_gives_back_what_it_was_given_and_leaves_nothing(tmp_path):
    matrix = np.arange(12, dtype=np.float16).reshape(3, 4)
    with Spool(tmp_path / "out.gguf") as spool:
        spool.add(TensorRecord("token_embd.weight", 16, 3, 4), matrix)
        spool.add(TensorRecord("blk.0.attn_q.bias", 32, 2), np.ones(2, dtype=np.float32))
        assert [record.name for record, _ in spool.sources()] == ["token_embd.weight", "blk.0.attn_q.bias"]
        for (_, contents), expected in zip(spool.sources(), (matrix, np.ones(2)), strict=True):
            np.testing.assert_array_equal(contents(), expected)
    assert list(tmp_path.iterdir()) == []


def test_room_on_disk_has_no_name(tmp_path):
    with Spool(tmp_path / "out.gguf") as spool:
        before = sorted(spool.folder.iterdir())
        room = spool.make_room((3, 5, 7))
        room[...] = np.arange(105).reshape(3, 5, 7)
        assert (room.dtype, room.sum()) == (np.float32, 104 * 105 / 2)
        assert sorted(spool.folder.iterdir()) == before


def test_room_that_the_disk_has_not_is_refused_before_it_is_used(tmp_path, monkeypatch):
    def refuse(descriptor, first, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with Spool(tmp_path / "out.gguf") as spool:
        before = sorted(spool.folder.iterdir())
        with pytest.raises(ElutqError, match=r"cannot write .*out\.gguf\.work: No space left on device"):
            spool.make_room((3, 5))
        assert sorted(spool.folder.iterdir()) == before


def stop_a_run(output, fingerprint=None):
    """Leave the folder of a run that was stopped after its first unit."""
    with pytest.raises(KeyboardInterrupt), Spool(output, fingerprint) as spool:
        spool.add(TensorRecord("output_norm.weight", 32, 2), np.ones(2, dtype=np.float32))
        spool.finish_unit()
        raise KeyboardInterrupt
    return spool.folder


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (DamagedWeightsError, []),
        (UnsupportedModelError, []),
        (CalibrationError, []),
        (CheckpointError, ["out.gguf.work"]),  # such as one that cannot be read just now
        (ElutqError, ["out.gguf.work"]),  # such as a full disk
        (MemoryError, ["out.gguf.work"]),
    ],
)
def test_what_is_finished_is_kept_unless_the_next_run_would_end_in_the_same_error(tmp_path, error, left):
    with pytest.raises(error), Spool(tmp_path / "out.gguf") as spool:
        spool.add(TensorRecord("output_norm.weight", 32, 2), np.ones(2, dtype=np.float32))
        spool.finish_unit()
        raise error("refused")
    assert [path.name for path in tmp_path.iterdir()] == left


def test_only_files_that_a_spool_writes_are_removed(tmp_path):
    folder = stop_a_run(tmp_path / "out.gguf")
    (folder / "blk.0.attn_q.weight.npy").write_bytes(b"half a tensor that a killed run left")
    others = ["activations.npy", "blk.npy", "found.json.orig", "my.stream", "new.unit", "notes.txt"]
    for name in others:
        (folder / name).write_text("mine")
    with Spool(tmp_path / "out.gguf", resume=False):
        assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "fingerprint.json", "lock"])
    assert sorted(path.name for path in folder.iterdir()) == others


@pytest.mark.parametrize(
    "names", [["weights.npy"], ["lock", "blk.0.attn_q.weight.npy"], ["lock"], ["fingerprint.json"]]
)
def test_a_folder_that_no_spool_made_is_refused_and_left_alone(tmp_path, names):
    folder = tmp_path / "out.gguf.work"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    for options in ({}, {"resume": False}, {"force": True}):
        with (
            pytest.raises(ElutqError, match=r"out\.gguf\.work is in the way, and not a work folder of elutq: move it"),
            Spool(tmp_path / "out.gguf", **options),
        ):
            pass
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(names, "{}")


@pytest.mark.parametrize("left", [[], ["lock"]], ids=["nothing yet", "an unmarked lock"])
def test_a_folder_of_a_run_killed_at_its_start_is_taken_over(tmp_path, left):
    folder = tmp_path / "out.gguf.work"
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    with Spool(tmp_path / "out.gguf"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_force_starts_over_what_another_run_left(tmp_path, caplog):
    stop_a_run(tmp_path / "out.gguf", {"checkpoint": "one"})
    with (
        pytest.raises(ElutqError, match="whose checkpoint was another"),
        Spool(tmp_path / "out.gguf", {"checkpoint": "two"}),
    ):
        pass
    with Spool(tmp_path / "out.gguf", {"checkpoint": "one"}, force=True) as spool:
        assert spool.n_finished == 1  # its own work is not thrown away
        stop_a_run(tmp_path / "other.gguf", {"checkpoint": "one"})
    with Spool(tmp_path / "other.gguf", {"checkpoint": "two"}, force=True) as spool:
        assert (spool.n_finished, spool.records) == (0, [])
    assert "a run that was stopped, whose checkpoint was another, or has changed since: starting over" in caplog.text
    (stop_a_run(tmp_path / "out.gguf") / "00000.unit").write_text("[")
    with pytest.raises(ElutqError, match="is damaged"), Spool(tmp_path / "out.gguf"):
        pass
    with Spool(tmp_path / "out.gguf", force=True) as spool:
        assert spool.n_finished == 0


def test_what_was_measured_for_another_run_is_not_used_when_its_fingerprint_is_gone(tmp_path):
    """As a kill leaves it while a folder is being cleared."""
    with pytest.raises(KeyboardInterrupt), Spool(tmp_path / "out.gguf", {"bits": "2"}) as spool:
        spool.remember(lambda: "old")
        raise KeyboardInterrupt
    (spool.folder / "fingerprint.json").unlink()
    with Spool(tmp_path / "out.gguf", {"bits": "3"}) as spool:
        assert spool.remember(lambda: "new") == "new"


@pytest.mark.parametrize("left", [0, 40, 200])
@pytest.mark.parametrize("name", ["00000.0.stream", "found.json", "output_norm.weight.npy"])
def test_files_that_were_cut_are_damaged(tmp_path, name, left):
    with pytest.raises(KeyboardInterrupt), Spool(tmp_path / "out.gguf") as spool:
        spool.remember(lambda: "x" * 500)
        spool.add(TensorRecord("output_norm.weight", 32, 200), np.ones(200, dtype=np.float32))
        spool.finish_unit([np.ones((3, 5, 64), np.float32)])
        raise KeyboardInterrupt
    path = spool.folder / name
    assert path.stat().st_size > 200
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ElutqError, match=r"is damaged: start over .--no-resume"), Spool(tmp_path / "out.gguf"):
        pass


def test_a_unit_that_names_a_file_elsewhere_is_damaged(tmp_path):
    folder = stop_a_run(tmp_path / "out.gguf")
    np.save(tmp_path / "elsewhere.npy", np.ones(2, dtype=np.float32))
    record = {"name": "../elsewhere", "bits": 32, "rows": 2}
    (folder / "00000.unit").write_text(json.dumps({"records": [record], "streams": []}))
    with pytest.raises(ElutqError, match="is damaged"), Spool(tmp_path / "out.gguf"):
        pass


def test_the_work_lies_beside_the_file_that_a_link_leads_to_under_a_name_that_fits(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.gguf").symlink_to("disk/real.gguf")
    assert work_folder(tmp_path / "link.gguf") == tmp_path / "disk" / "real.gguf.work"
    for name in ("n" * 255, "ä" * 127, "n" * 251):
        with Spool(tmp_path / name) as spool:
            assert spool.folder.is_dir()
    assert work_folder(tmp_path / ("n" * 255)) != work_folder(tmp_path / ("n" * 254 + "m"))


def test_two_runs_cannot_share_a_spool(tmp_path):
    with (
        Spool(tmp_path / "out.gguf") as spool,
        pytest.raises(ElutqError, match="another run is writing"),
        Spool(tmp_path / "out.gguf"),
    ):
        pass
    assert not spool.folder.exists()
