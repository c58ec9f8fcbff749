"""The thread that makes the texts of all requests: it owns a scheduler, and hands tokens over as they are made."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from elutq_cli.generation import GeneratedToken, Generation, LanguageModel, Scheduler
from elutq_cli.generation.context import Reuse
from elutq_cli.server.errors import LeavingError, QueueFullError, TextFailedError
from elutq_cli.server.metrics import Metrics
from elutq_formats.errors import ElutqError

Made = tuple[int, GeneratedToken | None]
"""A text, by its index among those of its request, and a token of it; None: it is over."""


class Job:
    """The texts of one request, made for whoever reads ``stream`` in the event loop that it was made in.

    Attributes:
        generations: the texts.
        waiting: indexes of those of them that have had no turn yet.
        reuse: what they may take over of what slots hold.
        cancelled: whether nobody wants them any more.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, generations: Sequence[Generation], reuse: Reuse) -> None:
        self.generations = list(generations)
        self.waiting = deque(range(len(self.generations)))
        self.reuse = reuse
        self.cancelled = False
        self._scheduler, self._metrics = scheduler, metrics
        self._n_over = 0
        self._failed = False
        self._arrived = time.perf_counter()
        self._answering = False
        self._made: asyncio.Queue[Made | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def over(self) -> bool:
        """Whether everything was handed over."""
        return self._n_over == len(self.generations)

    async def stream(self, patience: float | None = None) -> AsyncIterator[Made | None]:
        """Yield the tokens as they are made. A reader that leaves ends the texts.

        Args:
            patience: seconds without a token after which None is yielded, and again as long as none comes; None: never.
        """
        try:
            while True:
                try:
                    item = await asyncio.wait_for(self._made.get(), patience)
                except asyncio.TimeoutError:  # which is not TimeoutError before Python 3.11
                    yield None
                    continue
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the texts, or take them out of the queue. Any thread may."""
        self.cancelled = True
        for generation in self.generations:
            generation.cancel()
        self._scheduler.interrupt()

    def deliver(self, index: int) -> bool:
        """Hand over what was made of a text; return whether it is over. In the engine's thread."""
        generation = self.generations[index]
        if generation.tokens and not self._answering:
            self._answering = True
            self._metrics.first_token_seconds.observe(time.perf_counter() - self._arrived)
        while (token := generation.take()) is not None:
            self._hand_over((index, token))
        if generation.ended:
            self._end(index)
        return generation.ended

    def _end(self, index: int) -> None:
        """Hand over that a text is over, and count it; when it is the last one the request is too."""
        generation = self.generations[index]
        self._n_over += 1
        self._failed |= generation.error is not None
        self._metrics.text(generation)
        if self.over:  # counted before it is told
            cancelled = any(one.finish_reason == "cancelled" for one in self.generations)
            outcome = "failed" if self._failed else "cancelled" if cancelled else "answered"
            self._metrics.requests.labels(outcome).inc()
            self._metrics.request_seconds.observe(time.perf_counter() - self._arrived)
        fault = _fault(generation)
        self._hand_over((index, None) if fault is None else fault)
        if self.over:
            self._hand_over(None)

    def _hand_over(self, item: Made | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._made.put_nowait, item)
        except RuntimeError:  # the server has shut down
            self.cancel()


class Engine:
    """Makes the texts of requests in the order in which they came; a context manager around its thread.

    Requests of several texts take turns with others: each that waits has one text made, then the next one.
    """

    def __init__(self, model: LanguageModel, max_queue: int, max_seconds: float | None = None) -> None:
        """Prepare.

        Args:
            model: its scheduler started; the engine is its only user.
            max_queue: requests that may wait, beside those that there are slots for.
            max_seconds: that one text may have a slot; None: as long as it takes.
        """
        self.model = model
        self.metrics = Metrics(model, lambda: self.n_waiting)
        self._max_queue, self._max_seconds = max_queue, max_seconds
        self._scheduler = model.scheduler
        self._n_slots = len(self._scheduler.contexts)
        self._jobs: list[Job] = []
        self._queue: deque[Job] = deque()
        self._going: list[tuple[Job, int]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="elutq-engine")

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything, and wait for the thread."""
        self.end_texts()
        self._thread.join()

    def drain(self, seconds: float) -> None:
        """Refuse all requests that come, and wait for those that are there. Safe in any thread.

        Args:
            seconds: after which the texts that are left are ended.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._jobs, seconds)
        self.end_texts()

    def end_texts(self) -> None:
        """End the texts under way and those that wait, and refuse all that come. Safe in any thread."""
        with self._changed:
            self._closing = True
            jobs = list(self._jobs)
            self._changed.notify_all()
        for job in jobs:
            job.cancel()

    @property
    def leaving(self) -> bool:
        """Whether requests that come are refused, because the server is told to leave."""
        return self._closing

    @property
    def n_requests(self) -> int:
        """Requests that are not over."""
        with self._changed:
            return len(self._jobs)

    @property
    def n_slots(self) -> int:
        """Texts that can be made at a time."""
        return self._n_slots

    @property
    def n_busy(self) -> int:
        """Texts under way."""
        return self._scheduler.n_busy

    @property
    def n_waiting(self) -> int:
        """Requests that have had no turn yet."""
        with self._changed:
            return sum(len(job.waiting) == len(job.generations) for job in self._jobs)

    def submit(self, generations: Sequence[Generation], reuse: Reuse) -> Job:
        """Put a request's texts into the queue.

        Args:
            generations: the texts.
            reuse: what they may take over of what slots hold of their prompts already.

        Raises:
            QueueFullError: too many wait.
            LeavingError: the server is told to leave.
        """
        with self._changed:
            if self._closing or len(self._jobs) >= self._n_slots + self._max_queue:
                self.metrics.requests.labels("refused").inc()
                full = QueueFullError(f"{self._max_queue} requests are waiting: try again later")
                raise _leaving() if self._closing else full
            job = Job(self._scheduler, self.metrics, generations, reuse)
            self._jobs.append(job)
            self._queue.append(job)
            self._changed.notify_all()
        return job

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                self._fill_slots()
            if self._max_seconds is not None:
                for job, index in self._going:
                    job.generations[index].limit_time(self._max_seconds)
            try:
                self._scheduler.step()
            except Exception as error:  # a bug: whoever waits is told, and those that come are served
                for job, index in self._going:
                    job.generations[index].fail(error)
            self._going = [(job, index) for job, index in self._going if not job.deliver(index)]
            with self._changed:
                self._jobs = [job for job in self._jobs if not job.over]
                self._changed.notify_all()

    def _fill_slots(self) -> None:
        """Give free slots to texts that wait, one of each request in turn; those that were cancelled need none."""
        for job in self._queue:
            while job.cancelled and job.waiting:
                index = job.waiting.popleft()
                job.generations[index].end_cancelled()
                job.deliver(index)
        self._queue = deque(job for job in self._queue if job.waiting)
        for _ in range(self._n_slots - len(self._going)):
            if not self._queue:
                return
            job = self._queue.popleft()
            index = job.waiting.popleft()
            self._scheduler.submit(job.generations[index], job.reuse)
            self._going.append((job, index))
            if job.waiting:
                self._queue.append(job)


def _fault(generation: Generation) -> Exception | None:
    """Return what a client is told instead of a text."""
    if isinstance(generation.error, ElutqError):  # the request was checked before: the model is at fault
        return TextFailedError(str(generation.error))
    if generation.finish_reason == "cancelled":  # by the client, which hears no more, or by the server
        return _leaving()
    return generation.error


def _leaving() -> LeavingError:
    return LeavingError("the server is shutting down")
