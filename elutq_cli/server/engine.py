"""Requests in a queue, one thread that generates for them in turn."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from elutq_cli.generation import GeneratedToken, Generation, LanguageModel, Sampler, SamplingOptions, TextOptions
from elutq_cli.server.errors import BusyError, TextFailedError
from elutq_formats.errors import ElutqError


@dataclass
class Job:
    """One text to make.

    Attributes:
        tokens: the prompt.
        sampling: how tokens are chosen.
        options: where the text ends.
        fresh: the same request is to give the same text again: it begins with an empty context.
        generation: the text in the making, once its turn has come.
    """

    tokens: list[int]
    sampling: SamplingOptions
    options: TextOptions
    fresh: bool = False
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
        """Make the text, to its end, to an error, or until it is cancelled; in the engine's thread."""
        try:
            if not self._cancelled and self.fresh:
                model.clear()
            self.generation = Generation(model, self.tokens, Sampler(self.sampling), self.options)
            if self._cancelled:  # perhaps before there was a generation to cancel
                self.generation.cancel()
            for token in self.generation:
                self._hand_over(token)
            # Who cancels is the client, which hears no more, or the server.
            self._hand_over(_leaving() if self.generation.finish_reason == "cancelled" else None)
        except ElutqError as error:  # the request was checked before: the model is at fault
            self._hand_over(TextFailedError(str(error)))
        except Exception as error:  # the request gets it, the next one its turn
            self._hand_over(error)

    def refuse(self, error: Exception) -> None:
        """Tell the client that the text will not be made."""
        self._hand_over(error)

    def _hand_over(self, item: GeneratedToken | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._made.put_nowait, item)
        except RuntimeError:  # the server has shut down
            self.cancel()


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

    def submit(self, tokens: list[int], sampling: SamplingOptions, options: TextOptions, fresh: bool) -> Job:
        """Put a text into the queue.

        Args:
            tokens: the prompt.
            sampling: how tokens are chosen.
            options: where the text ends.
            fresh: begin with an empty context, and not with what it holds of the prompt already.

        Raises:
            BusyError: the queue is full, or the server is leaving.
        """
        if self._closing:
            raise _leaving()
        job = Job(tokens, sampling, options, fresh)
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
