"""What a server counts and measures, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from elutq_cli.generation import Generation, LanguageModel

CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
TOKENS_PER_SECOND = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Upper ends of the histograms' buckets: three to a power of ten."""


class Metrics:
    """Counters, gauges and histograms of one server. Any thread may use them.

    Attributes:
        registry: all of them, as Prometheus's client keeps them.
        requests: by how they ended: ``answered``, ``cancelled`` (the client left, or the server), ``failed``, or
            ``refused`` (no place).
        first_token_seconds: from a request's arrival to its first token.
        request_seconds: from a request's arrival to its end.
    """

    def __init__(self, model: LanguageModel, n_waiting: Callable[[], int]) -> None:
        """Begin at nothing.

        Args:
            model: whose slots and contexts are told of.
            n_waiting: returns how many requests wait.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests, by how they ended.", ("outcome",))
        for outcome in ("answered", "cancelled", "failed", "refused"):
            self.requests.labels(outcome)
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._reused = self._counter("reused_tokens", "Tokens of prompts whose keys and values a slot held already.")
        self._generated = self._counter("generated_tokens", "Tokens generated.")
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", SECONDS
        )
        self.request_seconds = self._histogram("request_seconds", "From a request's arrival to its end.", SECONDS)
        self._prompt_speed = self._histogram(
            "prompt_tokens_per_second", "Speed of a text's prompt, what was reused left out.", TOKENS_PER_SECOND
        )
        self._speed = self._histogram(
            "generated_tokens_per_second", "Speed of a text after its first token.", TOKENS_PER_SECOND
        )
        scheduler = model.scheduler
        self._gauge("requests_waiting", "Requests that have had no turn yet.", n_waiting)
        self._gauge("slots", "Texts that can be made at a time.", lambda: len(scheduler.contexts))
        self._gauge("slots_busy", "Texts under way.", lambda: scheduler.n_busy)
        self._gauge(
            "context_tokens",
            "Tokens that the contexts of all slots have room for.",
            lambda: len(scheduler.contexts) * model.ctx_size,
        )
        self._gauge(
            "context_tokens_held", "Tokens whose keys and values are held.", lambda: sum(map(len, scheduler.contexts))
        )
        self._gauge("kv_cache_bytes", "Bytes of the keys and values of all contexts.", lambda: model.kv_bytes)

    def text(self, generation: Generation) -> None:
        """Count a text that is over."""
        if generation.prompt_seconds:
            self._prompt.inc(generation.prompt_tokens)
            self._reused.inc(generation.reused_tokens)
            self._prompt_speed.observe(generation.prompt_tokens_per_second)
        self._generated.inc(len(generation.tokens))
        if generation.tokens_per_second:
            self._speed.observe(generation.tokens_per_second)

    def show(self) -> bytes:
        """Return everything, in the format that CONTENT_TYPE names."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"elutq_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"elutq_{name}", text, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"elutq_{name}", text, registry=self.registry).set_function(value)
