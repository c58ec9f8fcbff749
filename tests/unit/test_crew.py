"""The threads behind a backend's map: nested maps, errors, and how many run."""

import threading
import time

import pytest

from elutq_cli.pipeline.compute.crew import Crew


@pytest.fixture(params=[1, 2, 5])
def crew(request):
    crew = Crew(request.param, lambda: None)
    yield crew
    crew.close()


def test_results_are_in_the_order_of_the_items(crew):
    assert crew.map(lambda number: number * number, range(100)) == [number * number for number in range(100)]
    assert crew.map(str, []) == []


def test_an_item_may_map_itself(crew):
    """Deeper than there are threads: nobody waits for an item that no thread has begun."""

    def total(depth):
        return 1 if depth == 0 else sum(crew.map(total, [depth - 1] * 4))

    assert crew.map(total, [5] * 4) == [4**5] * 4


@pytest.mark.parametrize("n_threads", [1, 3])
def test_no_more_threads_run_than_there_are(n_threads):
    crew = Crew(n_threads, lambda: None)
    running, most, lock = 0, 0, threading.Lock()

    def item(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    crew.map(lambda _: crew.map(item, range(7)), range(7))
    crew.close()
    assert 1 <= most <= n_threads


def test_the_first_error_is_raised_and_ends_the_map(crew):
    seen = []

    def item(number):
        seen.append(number)
        if number >= 3:
            raise ValueError(f"item {number}")

    with pytest.raises(ValueError, match="item 3"):
        crew.map(item, range(1000))
    assert len(seen) < 10 + 5
    assert crew.map(str, range(3)) == ["0", "1", "2"]


def test_every_helper_is_prepared():
    prepared = []
    crew = Crew(3, lambda: prepared.append(threading.get_ident()))
    barrier = threading.Barrier(3, timeout=20)
    crew.map(lambda _: barrier.wait(), range(3))
    crew.close()
    assert len(set(prepared)) == 2
    assert threading.get_ident() not in prepared
