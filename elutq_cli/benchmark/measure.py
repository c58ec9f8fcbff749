"""Timing prefill and decode, and beside decode, in the same minutes, how fast this machine reads memory."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import fmean, median, stdev

import numpy as np

from elutq_cli.machine import sensors
from elutq_cli.machine.memory import peak_memory
from elutq_cli.machine.processor import cpu_model
from elutq_native import Engine, Model, NativeSequence, Run

SEED = 1
MIN_PAIRS = 10
"""Passes of one repetition that are paired with a plain read of the same bytes."""


@dataclass(frozen=True)
class Test:
    """What to time: a prompt of ``n_prompt`` tokens, or ``n_parallel`` texts of ``n_gen``, after ``n_depth`` others."""

    n_prompt: int
    n_gen: int
    n_depth: int
    n_threads: int
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """Names the test the way llama-bench does: pp512, tg128, tg128 @ d2048; of 8 texts at once 8 x tg128."""
        kind = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        kind = f"{self.n_parallel} x {kind}" if self.n_parallel > 1 else kind
        return f"{kind} @ d{self.n_depth}" if self.n_depth else kind


@dataclass
class Result:
    """What a test gave. Names without units are llama-bench's.

    Attributes:
        cache_type: How keys and values are kept.
        samples_ns: Time of each repetition in nanoseconds.
        read_gbps: Plain-read bandwidth in GB/s, median of the reads between decode passes; None for prefill.
        roof_ts: Tokens per second if reading the bytes of a token were all there is to do; None for prefill and where
            several texts share what is read.
        roof_fraction: Median over the pairs of a decode pass and a read of how close the pass came to the roof.
        joules_per_token: Energy of the processor packages; None where the system does not tell.
        operations: Seconds in each operation, when profiled.
    """

    test: Test
    test_time: str
    cache_type: str
    samples_ns: list[int] = field(default_factory=list)
    read_gbps: float | None = None
    roof_ts: float | None = None
    roof_fraction: float | None = None
    joules_per_token: float | None = None
    frequency_mhz: float | None = None
    temperature_c: float | None = None
    peak_rss: int = 0
    operations: dict[str, float] | None = None

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition, of all texts together."""
        n_tokens = self.test.n_parallel * (self.test.n_prompt + self.test.n_gen)
        return [1e9 * n_tokens / ns for ns in self.samples_ns]

    def to_dict(self, model: Model, filename: str) -> dict[str, object]:
        """Returns the fields that ``-o json`` prints."""
        samples_ns, samples_ts = self.samples_ns, self.samples_ts
        fields: dict[str, object] = {
            "cpu_info": cpu_model(),
            "model_filename": filename,
            "model_size": model.info.file_bytes,
            "n_threads": self.test.n_threads,
            "n_prompt": self.test.n_prompt,
            "n_gen": self.test.n_gen,
            "n_depth": self.test.n_depth,
            "n_parallel": self.test.n_parallel,
            "test": self.test.name,
            "type_k": self.cache_type,
            "type_v": self.cache_type,
            "test_time": self.test_time,
            "avg_ns": round(fmean(samples_ns)),
            "stddev_ns": round(stdev(samples_ns)) if len(samples_ns) > 1 else 0,
            "avg_ts": fmean(samples_ts),
            "stddev_ts": stdev(samples_ts) if len(samples_ts) > 1 else 0.0,
            "samples_ns": samples_ns,
            "samples_ts": samples_ts,
            "isa": model.info.isa,
            "bytes_per_token": token_bytes(model, self.test.n_depth, self.cache_type) if self.test.n_gen else None,
        }
        for name in ("read_gbps", "roof_ts", "roof_fraction", "joules_per_token", "frequency_mhz", "temperature_c"):
            fields[name] = getattr(self, name)
        fields["peak_rss"] = self.peak_rss
        if self.operations is not None:
            fields["operations_s"] = self.operations
        return fields


def token_bytes(model: Model, position: int, cache_type: str) -> int:
    """Returns the bytes that decoding one token reads after ``position`` others: weights, keys and values."""
    return model.info.bytes_per_token + model.attended_bytes(position, cache_type)


class Texts:
    """Texts over one model that grow together, each by the same tokens; a context manager.

    Attributes:
        engine: Evaluates them.
    """

    def __init__(self, model: Model, test: Test, context_size: int, cache_type: str) -> None:
        self._open = ExitStack()
        self.engine = self._open.enter_context(Engine(model, test.n_threads, test.n_parallel))
        self._sequences = [
            self._open.enter_context(NativeSequence(model, context_size, cache_type)) for _ in range(test.n_parallel)
        ]
        self._tokens: list[int] = []

    @property
    def n_tokens(self) -> int:
        """How many each has."""
        return len(self._tokens)

    def __enter__(self) -> "Texts":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def append(self, tokens: list[int]) -> None:
        """Evaluates tokens in each text."""
        self.engine.eval([Run(sequence, tokens) for sequence in self._sequences])
        self._tokens += tokens

    def rewind(self, n_tokens: int) -> None:
        """Takes the tokens after the first ``n_tokens`` back; evaluates these again where they are too far back."""
        kept = self._tokens[:n_tokens]
        can_rewind = all(sequence.can_rewind(n_tokens) for sequence in self._sequences)
        for sequence in self._sequences:
            sequence.rewind(n_tokens if can_rewind else 0)
        self._tokens = kept if can_rewind else []
        if not can_rewind:
            self.append(kept)


def run_tests(
    model: Model, tests: list[Test], repetitions: int, profile: bool, cache_type: str = "f16"
) -> Iterator[Result]:
    """Runs tests one after the other, each with texts of its own that are warmed up first.

    Raises:
        NativeError: A test needs a longer context than the model has.
    """
    random = np.random.default_rng(SEED)
    for test in tests:
        tokens = random.integers(0, model.vocab_size, test.n_depth + test.n_prompt + test.n_gen + 1).tolist()
        with Texts(model, test, len(tokens), cache_type) as texts:
            if test.n_depth:
                texts.append(tokens[: test.n_depth])
            texts.append(tokens[-1:])
            result = Result(test, datetime.now(timezone.utc).isoformat(timespec="seconds"), cache_type)
            with texts.engine.profile() as operations:
                if test.n_prompt:
                    time_prefill(texts, tokens[test.n_depth : -1], result, repetitions)
                else:
                    time_decode(texts, tokens[test.n_depth : -1], result, repetitions)
            if profile:  # without experts nothing is routed
                result.operations = {name: seconds for name, seconds in operations.items() if seconds}
        result.frequency_mhz, result.temperature_c = sensors.frequency_mhz(), sensors.temperature_c()
        result.peak_rss = peak_memory()
        yield result


def time_prefill(texts: Texts, tokens: list[int], result: Result, repetitions: int) -> None:
    """Evaluates the prompt as one batch, again and again."""
    before = sensors.energy_joules()
    for _ in range(repetitions):
        texts.rewind(result.test.n_depth)
        start = time.perf_counter_ns()
        texts.append(tokens)
        result.samples_ns.append(time.perf_counter_ns() - start)
    result.joules_per_token = _joules(before, repetitions * len(tokens))


def time_decode(texts: Texts, tokens: list[int], result: Result, repetitions: int) -> None:
    """Generates token by token. Every few tokens a plain read of the same weights goes before the pass, so that the two
    see the same memory: its speed swings by half within minutes on a shared machine."""  # noqa: D205, D209
    every = max(1, len(tokens) // MIN_PAIRS)
    reads, fractions, joules = [], list[float](), list[float]()
    model, test = texts.engine.model, result.test
    for _ in range(repetitions):
        texts.rewind(test.n_depth)
        before, elapsed = sensors.energy_joules(), 0
        for i, token in enumerate(tokens):
            read = _time_read(texts.engine) if i % every == 0 else None
            start = time.perf_counter_ns()
            texts.append([token])
            duration = time.perf_counter_ns() - start
            elapsed += duration
            if read is not None:
                reads.append(read)
                n_bytes = token_bytes(model, texts.n_tokens, result.cache_type)
                fractions.append(read * n_bytes / model.info.bytes_per_token / duration)
        result.samples_ns.append(elapsed)
        used = _joules(before, test.n_parallel * len(tokens))
        if used is not None:
            joules.append(used)
    result.joules_per_token = fmean(joules) if joules else None
    bandwidth = model.info.bytes_per_token / median(reads)  # bytes a nanosecond: GB/s
    result.read_gbps = bandwidth
    if test.n_parallel == 1:
        middle = test.n_depth + len(tokens) // 2
        result.roof_ts = 1e9 * bandwidth / token_bytes(model, middle, result.cache_type)
        result.roof_fraction = median(fractions)


def _time_read(engine: Engine) -> int:
    start = time.perf_counter_ns()
    engine.read_weights()
    return time.perf_counter_ns() - start


def _joules(before: float | None, n_tokens: int) -> float | None:
    """Energy per token since ``before``; None when the counter is not there or has wrapped around."""
    after = sensors.energy_joules()
    if before is None or after is None or after < before:
        return None
    return (after - before) / n_tokens
