"""The spool: what a run keeps beside its output, and what is left of it."""

import errno
import os

import numpy as np
import pytest

from elutq_cli.pipeline.spool import Spool
from elutq_formats.errors import ElutqError
from elutq_formats.tensor_record import TensorRecord


def test_spool_gives_back_what_it_was_given_and_leaves_nothing(tmp_path):
    matrix = np.arange(12, dtype=np.float16).reshape(3, 4)
    with Spool(tmp_path / "out.gguf") as spool:
        spool.add(TensorRecord("b", 16, 3, 4), matrix)
        spool.add(TensorRecord("a", 32, 2), np.ones(2, dtype=np.float32))
        assert [record.name for record, _ in spool.sources()] == ["b", "a"]
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


def test_spool_clears_what_a_killed_run_left_and_nothing_else(tmp_path):
    folder = tmp_path / "out.gguf.work"
    folder.mkdir()
    (folder / "blk.0.attn_q.weight.npy").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    with Spool(tmp_path / "out.gguf"):
        assert sorted(path.name for path in folder.iterdir()) == ["fingerprint.json", "lock", "notes.txt"]
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_two_runs_cannot_share_a_spool(tmp_path):
    with (
        Spool(tmp_path / "out.gguf") as spool,
        pytest.raises(ElutqError, match="another run is writing"),
        Spool(tmp_path / "out.gguf"),
    ):
        pass
    assert not spool.folder.exists()
