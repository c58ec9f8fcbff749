"""Output files appear whole or not at all."""

import pytest

from elutq_formats.atomic import atomic_output, check_output
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
