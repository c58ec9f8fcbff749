"""Threads that share a map's items with the thread that calls it, even where that is one of theirs."""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """A number of threads, the caller of ``map`` counted among them.

    What an item of a map does may call map again: the thread that does so takes items like the others, so that it never
    waits for one that nobody has begun.

    Attributes:
        threads: items that are worked on at the same time.
    """

    def __init__(self, threads: int, begin_thread: Callable[[], None] = lambda: None) -> None:
        """Start all but the caller; each first calls begin_thread."""
        self.threads = threads
        self._n_helpers = threads - 1
        self._executor = ThreadPoolExecutor(threads - 1, initializer=begin_thread) if threads > 1 else None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return the function's results for all items, in their order.

        Raises:
            Exception: what the function raised for the first item for which it did; no others are begun then.
        """
        todo = list(items)
        if self._executor is None or len(todo) < 2:
            return [function(item) for item in todo]
        results: dict[int, Result] = {}
        errors: dict[int, BaseException] = {}
        numbers = itertools.count()  # its steps are atomic

        def work() -> None:
            while not errors and (number := next(numbers)) < len(todo):
                try:
                    results[number] = function(todo[number])
                except BaseException as error:
                    errors[number] = error

        helpers = [self._executor.submit(work) for _ in range(min(self._n_helpers, len(todo) - 1))]
        try:
            work()
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        except BaseException as error:  # an interruption while others work
            errors[len(todo)] = error
        if errors:
            raise errors[min(errors)]
        return [results[number] for number in range(len(todo))]

    def close(self) -> None:
        """Stop the threads."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
