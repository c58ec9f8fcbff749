"""`/metrics` and `/health`: what a server tells of itself."""

import asyncio

import numpy as np
import pytest
from asgi import serving
from prometheus_client.parser import text_string_to_metric_families

from elutq_cli.generation import Generation, Sampler, SamplingOptions, TextOptions
from elutq_cli.generation.context import Reuse
from elutq_cli.server.errors import LeavingError


@pytest.fixture
def client(chat_model):
    with serving(chat_model, parallel=2) as client:
        yield client


def values(client):
    """Return the samples without buckets, by name, and by outcome where they have one."""
    answer = client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation
        for sample in family.samples:
            if "le" not in sample.labels and not sample.name.endswith("_created"):
                samples[sample.labels.get("outcome", sample.name.removeprefix("elutq_"))] = sample.value
    return samples


def test_requests_and_tokens_are_counted(client):
    before = values(client)
    assert (before["answered"], before["generated_tokens_total"], before["context_tokens_held"]) == (0, 0, 0)
    assert (before["slots"], before["context_tokens"]) == (2, 1024)
    assert before["kv_cache_bytes"] == client.model.kv_bytes
    usages = [client.complete(ignore_eos=True, n=n).json["usage"] for n in (1, 2)]
    usages.append(client.chat([{"role": "user", "content": "Hello"}], stream=False).json["usage"])
    after = values(client)
    assert after["answered"] == 3
    assert after["generated_tokens_total"] == sum(usage["completion_tokens"] for usage in usages)
    # The prompt of both choices.
    assert after["prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in (*usages, usages[1]))
    assert after["reused_tokens_total"] > 0
    assert after["context_tokens_held"] == sum(map(len, client.model.scheduler.contexts))
    for name in ("time_to_first_token_seconds", "request_seconds"):
        assert after[f"{name}_count"] == 3
    assert 0 < after["time_to_first_token_seconds_sum"] < after["request_seconds_sum"]
    assert after["prompt_tokens_per_second_count"] == 4
    assert after["generated_tokens_per_second_count"] == 4


def test_how_requests_ended_is_counted(client, monkeypatch):
    async def leave():
        options = TextOptions(-1, ignore_eos=True)
        model, sampler = client.model, Sampler(SamplingOptions())
        job = client.engine.submit([Generation([1, 2], sampler, options, model.tokenizer, 512)], Reuse.ALL)
        busy = []
        async for _ in job.stream():
            busy.append(client.engine.n_busy)
            job.cancel()
        assert busy[0] == 1

    with pytest.raises(LeavingError):
        asyncio.run(leave())
    logits = np.full((1, client.model.native.vocab_size), np.nan, np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(client.model.scheduler.engine, "eval", lambda runs: [logits for _ in runs])
        assert client.complete(seed=1).status == 500
    client.engine.end_texts()
    assert client.complete().status == 503
    told = values(client)
    assert [told[outcome] for outcome in ("answered", "cancelled", "failed", "refused")] == [0, 1, 1, 1]


def test_health_tells_slots_to_everybody_and_metrics_only_to_those_who_may_ask(client):
    locked = client.with_options(api_key="secret")
    assert locked.get("/health").json == {"status": "ok", "waiting": 0, "slots": 2, "busy": 0}
    assert locked.get("/metrics").status == 401
    assert locked.get("/metrics", headers=[("Authorization", "Bearer secret")]).status == 200
