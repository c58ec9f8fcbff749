"""Executors: who runs a stage's units of work, each a function of one item that is pure.

A unit is a module-level function, or a partial of one, from arrays and plain records to arrays: it changes nothing that
it is given, so that it may run in this process, in another, or again where that one has died.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

from elutq_cli.pipeline.compute.crew import Crew, Item, Result

NAMES = "threads", "ray"


class Executor(Protocol):
    """Runs units of work; no stage knows which."""

    @property
    def workers(self) -> int:
        """Units that are at work at the same time, each with a backend's threads."""

    @property
    def threads(self) -> int:
        """Those of the backend that a unit has."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], at_once: int = 1) -> Iterator[Result]:
        """Yield the function's results for all items, in their order; closing the iterator cancels what is left.

        Args:
            function: a unit of work.
            items: what it is given, asked for as units begin: those that large arrays belong to need not all exist.
            at_once: units that memory allows on one machine; each has all of its threads.
        """

    def join(self, describe: Callable[[None], str], unit_bytes: int) -> None:
        """Prepare, before the first unit is run.

        Args:
            describe: a unit; says of a machine what the bits of results depend on.
            unit_bytes: memory that a unit may take.

        Raises:
            ElutqError: none has so much memory. That machines differ, ``map`` may tell.
        """

    def close(self) -> None:
        """Leave: no unit is run any more."""


class Threads:
    """This process: a unit runs when its result is asked for, on all threads of a crew."""

    workers = 1

    def __init__(self, crew: Crew) -> None:
        """Use a crew that others may use, too."""
        self._crew = crew
        self.threads = crew.threads

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], at_once: int = 1) -> Iterator[Result]:
        """Run units as their results are asked for, ``at_once`` of them together."""
        todo = iter(items)
        while few := list(islice(todo, at_once)):
            results = self._crew.map(function, few)
            few.clear()  # what belongs to a unit is not held while the next are made
            yield from results

    def join(self, describe: Callable[[None], str], unit_bytes: int) -> None:
        """There is only this process."""

    def close(self) -> None:
        """The crew is its owner's."""
