"""Requests in a queue, one thread that generates for them in turn."""

import asyncio
import queue
import random
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from elutq_cli.generation import GeneratedToken, Generation, LanguageModel, Sampler, SamplingOptions, TextOptions


class BusyError(Exception):
    """The queue is full."""


@dataclass
class Job:
    """One text to make.

    Attributes:
        tokens: the prompt.
        sampling: how tokens are chosen. The seed is used when ``seeded``.
        options: where the text ends.
        seeded: the request named a seed and wants the same text again: it begins with an empty context.
        generation: the text in the making, once its turn has come.
    """

    tokens: list[int]
    sampling: SamplingOptions
    options: TextOptions
    seeded: bool = False
    generation: Generation | None = None
    _cancelled: bool = False
    _made: "asyncio.Queue[GeneratedToken | Exception | None]" = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def stream(self) -> AsyncIterator[GeneratedToken]:
        """Yield the tokens as they are made. A reader that leaves ends the text."""
        try:
            while (item := await self._made.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the text, or take the job out of the queue."""
        self._cancelled = True
        if self.generation is not None:
            self.generation.cancel()

    def run(self, model: LanguageModel) -> None:
        """Make the text; in the engine's thread."""
        if self._cancelled:
            return
        try:
            if self.seeded:
                model.clear()
            self.generation = Generation(model, self.tokens, Sampler(self.sampling), self.options)
            if self._cancelled:  # between the question above and the line before this one
                return
            for token in self.generation:
                self._hand_over(token)
            self._hand_over(None)
        except Exception as error:  # the request gets it, the next one its turn
            self._hand_over(error)

    def refuse(self, error: Exception) -> None:
        """Tell the client that the text will not be made."""
        self._hand_over(error)

    def _hand_over(self, item: GeneratedToken | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._made.put_nowait, item)
        except RuntimeError:  # the server has shut down
            self._cancelled = True
            if self.generation is not None:
                self.generation.cancel()


class Engine:
    """One model that serves jobs in the order in which they came; a context manager around its thread."""

    def __init__(self, model: LanguageModel, max_queue: int) -> None:
        """Prepare.

        Args:
            model: generates, its session started; the engine is its only user.
            max_queue: jobs that may wait, beside the one that runs.
        """
        self.model = model
        self._jobs: queue.Queue[Job | None] = queue.Queue(max_queue)
        self._running: Job | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="elutq-engine")

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything, and wait for the thread."""
        self.end_texts()
        self._jobs.put(None)
        self._thread.join()

    def end_texts(self) -> None:
        """End the running text and refuse those that wait, and all that come. Safe in any thread."""
        self._closing = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.refuse(_leaving())
        if (running := self._running) is not None:
            running.cancel()

    @property
    def n_waiting(self) -> int:
        """Jobs in the queue."""
        return self._jobs.qsize()

    def submit(self, tokens: list[int], sampling: SamplingOptions, options: TextOptions, seed: int | None) -> Job:
        """Put a text into the queue.

        Args:
            tokens: the prompt.
            sampling: how tokens are chosen, but for the seed.
            options: where the text ends.
            seed: of the draws; None: a new one, and what the context holds may be reused.

        Raises:
            BusyError: the queue is full.
        """
        if self._closing:
            raise _leaving()
        chosen = replace(sampling, seed=random.getrandbits(32) if seed is None else seed)
        job = Job(tokens, chosen, options, seeded=seed is not None)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise BusyError(f"{self._jobs.maxsize} requests are waiting: try again later") from None
        return job

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._running = job
            if self._closing:  # end_texts may have come between the two lines above and not have seen this job
                job.refuse(_leaving())
            else:
                job.run(self.model)
            self._running = None


def _leaving() -> BusyError:
    return BusyError("the server is shutting down")
