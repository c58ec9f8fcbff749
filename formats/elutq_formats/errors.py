"""Errors of the file layer: one line each, saying what is wrong and what to do about it."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class ElutqError(Exception):
    """Base of every error that is told; its text is one line fit for a user.

    Attributes:
        bad_input: whether what the user gave is at fault, as it nearly always is.
        recurs: whether a run on the same input ends so again, and what it had finished is of no use.
    """

    bad_input = True
    recurs = False


class FailureError(ElutqError):
    """A disk, a network or a cluster fails, and nothing is wrong with what the user gave: it may do another time."""

    bad_input = False


class FormatError(ElutqError):
    """A model file is damaged, truncated, or not one of ours."""


class CheckpointError(ElutqError):
    """A checkpoint folder is incomplete, damaged, or contradicts its own configuration."""


class UnsupportedModelError(CheckpointError):
    """A checkpoint is sound but uses something that is not implemented."""

    recurs = True


class DamagedWeightsError(CheckpointError):
    """Weights could be read, and do not make sense."""

    recurs = True


class CalibrationError(ElutqError):
    """What a model computes on a text is nothing that stages can use."""

    recurs = True


def disk_error(what: str, error: OSError) -> ElutqError:
    """Return an error that says what could not be done, and why; a missing folder is the user's to mend."""
    kind = FailureError if error.errno in (*DISK_FULL, errno.EIO) else ElutqError
    return kind(f"{what}: {error.strerror}")
