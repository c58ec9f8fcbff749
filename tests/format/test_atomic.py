"""Output files appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from elutq_formats.atomic import atomic_output, check_output, remove_abandoned
from elutq_formats.errors import ElutqError


def test_the_file_appears_at_the_end(tmp_path):
    target = tmp_path / "model.gguf"
    with atomic_output(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failure_leaves_everything_as_it_was(tmp_path, before):
    target = tmp_path / "model.gguf"
    if before:
        target.write_text(before)
    with pytest.raises(KeyboardInterrupt), atomic_output(target, force=True) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ([before] if before else [])


def test_a_failure_before_the_first_byte_keeps_its_reason(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_output(tmp_path / "model.gguf"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_failure_that_names_no_file_names_this_one(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_output(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "bad_input"),
    [(errno.ENOSPC, False), (errno.EIO, False), (errno.EACCES, True), (errno.ENOENT, True), (errno.EROFS, True)],
)
def test_a_full_or_broken_disk_is_no_bad_input(tmp_path, monkeypatch, code, bad_input):
    def refuse(path, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ElutqError, match=os.strerror(code)) as caught, atomic_output(tmp_path / "out") as temporary:
        temporary.write_text("whole")
    assert caught.value.bad_input is bad_input


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    target = tmp_path / "model.gguf"
    target.write_text("old")
    with pytest.raises(ElutqError, match=r"model\.gguf exists: .*--force"), atomic_output(target):
        pytest.fail("the block must not run")
    assert target.read_text() == "old"
    with atomic_output(target, force=True) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "model.gguf"
    with pytest.raises(ElutqError, match="exists"), atomic_output(target) as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_impossible_places_are_refused_before_any_work(tmp_path):
    with pytest.raises(ElutqError, match=r"folder .* does not exist"):
        check_output(tmp_path / "absent" / "model.gguf")
    with pytest.raises(ElutqError, match="it is a folder"):
        check_output(tmp_path, force=True)


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "n" * 230], ids=["longest", "of two bytes", "near"])
def test_any_name_that_a_file_can_have_is_written(tmp_path, name):
    with atomic_output(tmp_path / name) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_no_file_can_have_is_refused_before_any_work(tmp_path):
    with pytest.raises(ElutqError, match=r"cannot write .*: File name too long"):
        check_output(tmp_path / ("n" * 256))


@pytest.mark.parametrize("before", [None, "old"], ids=["dangling", "there"])
def test_a_symbolic_link_is_written_through(tmp_path, before):
    disk, link = tmp_path / "disk", tmp_path / "model.gguf"
    disk.mkdir()
    if before:
        (disk / "real.gguf").write_text(before)
        with pytest.raises(ElutqError, match=r"model\.gguf exists"):
            check_output(link_to(disk / "real.gguf", link))
    else:
        link_to(disk / "real.gguf", link)
    with atomic_output(link, force=before is not None) as temporary:
        temporary.write_text("new")
        assert temporary.parent == disk  # on the same file system as what it becomes
    assert link.is_symlink()
    assert {path.name: path.read_text() for path in disk.iterdir()} == {"real.gguf": "new"}


def link_to(target, link):
    link.symlink_to(target)
    return link


def test_links_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(ElutqError, match=r"cannot write .*folder .*absent does not exist"):
        check_output(link_to(tmp_path / "absent" / "model.gguf", tmp_path / "one"))
    with pytest.raises(ElutqError, match=r"cannot write .*: Too many levels of symbolic links"):
        check_output(link_to("loop", tmp_path / "loop"))


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(ElutqError, match="it is not a regular file"):
            check_output(path, force=True)


def test_only_what_killed_processes_left_is_removed(tmp_path):
    kept = [".model.gguf.backup.tmp", ".model.gguf.tmp", ".other.gguf.12.tmp", "model.gguf.12.tmp", "model.gguf"]
    for name in (*kept, ".model.gguf.12.tmp", ".model.gguf.4000000.tmp"):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path / "model.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
