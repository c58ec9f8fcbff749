"""What a generation cost: for ``--json``, and for a reader."""

from typing import Any

from elutq_cli.generation.generation import Generation
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.machine.memory import peak_memory


def summarize(generation: Generation, model: LanguageModel, load_seconds: float) -> dict[str, Any]:
    """Return the statistics of one text; times in seconds, sizes in bytes."""
    return {
        "finish_reason": generation.finish_reason,
        "seed": generation.seed,
        "n_prompt": generation.prompt_tokens,
        "n_reused": generation.reused_tokens,
        "n_gen": len(generation.tokens),
        "load_seconds": load_seconds,
        "prompt_seconds": generation.prompt_seconds,
        "prompt_tokens_per_second": generation.prompt_tokens_per_second,
        "generation_seconds": generation.seconds,
        "generation_tokens_per_second": generation.tokens_per_second,
        "peak_rss": peak_memory(),
        "ctx_size": model.ctx_size,
        "kv_bytes": model.kv_bytes,
        "cache_type": model.cache_type,
        "n_threads": model.scheduler.engine.threads,
        "n_decode_threads": model.scheduler.engine.decode_threads,
        "isa": model.native.info.isa,
    }


def describe_statistics(statistics: dict[str, Any]) -> str:
    """Return the statistics in one line."""
    return " | ".join(
        (
            f"load {statistics['load_seconds']:.2f} s",
            f"prompt {_count(statistics['n_prompt'], statistics['prompt_tokens_per_second'])}"
            + (f", {statistics['n_reused']} reused" if statistics["n_reused"] else ""),
            f"generated {_count(statistics['n_gen'], statistics['generation_tokens_per_second'])}",
            describe_context(statistics["ctx_size"], statistics["kv_bytes"])
            + (", full" if statistics["finish_reason"] == "context" else ""),
            f"peak memory {statistics['peak_rss'] / 1e6:.0f} MB",
            f"{statistics['isa']}, {describe_threads(statistics['n_threads'], statistics['n_decode_threads'])}",
        )
    )


def _count(n_tokens: int, per_second: float) -> str:
    """Return a number of tokens, and how fast they came where that is known."""
    return f"{n_tokens} tokens" + (f", {per_second:.1f}/s" if per_second else "")


def describe_threads(n_threads: int, n_decode_threads: int) -> str:
    """Return how many threads there are, and how many of them decode where that is another number."""
    for_decode = f", {n_decode_threads} of them for decode" if n_decode_threads < n_threads else ""
    return f"{n_threads} thread{'s' * (n_threads > 1)}{for_decode}"


def describe_context(ctx_size: int, kv_bytes: int, n_slots: int = 1) -> str:
    """Return the size of contexts, in tokens of each and in bytes of all."""
    slots = f"{n_slots} slots, each with a context of" if n_slots > 1 else "context"
    return f"{slots} {ctx_size} tokens, KV cache {kv_bytes / 1e6:.1f} MB"


def more_room(model: LanguageModel) -> str:
    """Return what to do in a conversation when the context is full."""
    larger = ", and a larger -c holds more" if model.ctx_size < model.native.context_length else ""
    return f"/clear starts anew{larger}"


def reply_note(generation: Generation, model: LanguageModel) -> str:
    """Return the line under a reply: how long and how fast it was, how much room is left, and why it ended early."""
    room = f"context {len(model.tokens)} of {model.ctx_size}"
    note = f"{len(generation.tokens)} tokens, {generation.tokens_per_second:.1f}/s, {room}"
    ends = {
        "cancelled": "stopped",
        "length": "as long as -n allows",
        "context": f"the context is full: {more_room(model)}",
    }
    end = ends.get(generation.finish_reason or "stop")
    return f"[{note}]" if end is None else f"[{note}; {end}]"
