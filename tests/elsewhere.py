"""An executor that runs units as other processes would: of a text and of arrays that are read-only."""

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.shipping import Shelf, pack_unit, run_unit


def copied(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def read_only(result):
    """Return what another process would: arrays that cannot be written to, in tuples or alone."""
    if isinstance(result, tuple):
        return tuple(map(read_only, result))
    return copied(result) if isinstance(result, np.ndarray) else result


class Elsewhere:
    """Runs units one after the other, with another backend than the driver; counts them and what they are sent.

    Its workers have so many threads, as they say, that light units are theirs, too, unless they say that they have one.
    """

    def __init__(self, backend, workers=3, threads=64):
        self.backend, self.workers, self.threads, self.n_units = backend, workers, threads, 0
        self.shelf = Shelf(copied)

    def map(self, function, items, at_once=1):
        for item in items:
            self.n_units += 1
            text, arrays = pack_unit(function, item)
            yield read_only(run_unit(text, [self.shelf.place(array) for array in arrays], self.backend))

    def join(self, describe, unit_bytes):
        assert describe(None) == run_unit(*pack_unit(describe, None), self.backend)

    def close(self):
        pass


def driver_of(own, executor):
    """Return a backend whose units an executor runs."""
    return Backend(own.arrays, own.loops, own.crew, executor)
