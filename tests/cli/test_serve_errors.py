"""Whatever goes wrong while a server answers: one JSON body, the right side blamed, and no traceback."""

import asyncio
import json
import threading

import numpy as np
import pytest
from asgi import refusal, serving

from elutq_cli.generation import Generation, Sampler, SamplingOptions, TextOptions
from elutq_cli.generation.context import Reuse
from elutq_cli.server import endpoint
from elutq_cli.server.engine import Job
from elutq_cli.server.errors import LeavingError

MESSAGES = [{"role": "user", "content": "How do you do?"}]


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "My \\ud800 dear"}',
        b'{"prompt": "My \\uDFFF dear"}',
        b'{"prompt": "My \xed\xa0\x80 dear"}',
        b'{"prompt": "My dear", "stop": ["\\udc00"]}',
        b'{"prompt": "My dear", "user": {"\\ud83d": 1}}',
        '{"prompt": "My dear"}'.encode("utf-16"),
    ],
)
def test_text_that_is_no_unicode_is_refused(client, body, caplog):
    refusal(client.post("/v1/completions", body))
    assert caplog.records == []


def test_pairs_of_surrogates_are_characters(client):
    assert (
        client.post("/v1/completions", b'\xef\xbb\xbf{"prompt": "\\ud83d\\ude00 \\\\ud800", "max_tokens": 1}').status
        == 200
    )


def test_half_a_pair_in_a_message_is_refused(client):
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    assert "surrogate" in refusal(client.post("/v1/chat/completions", body)).message


def test_routes_that_are_not_there_and_other_methods_are_told_in_json(client):
    assert refusal(client.get("/v1/nothing"), 404).type == "invalid_request_error"
    answer = client.get("/v1/completions")
    assert refusal(answer, 405)
    assert answer.headers["allow"] == "POST"
    assert refusal(client.post("/health", {}), 405)


def test_a_bug_is_a_json_body_and_a_line_in_the_log(client, monkeypatch, caplog):
    monkeypatch.setattr(client.model.tokenizer, "encode", lambda *_: 1 / 0)
    assert refusal(client.complete(), 500).type == "server_error"
    (record,) = caplog.records
    assert "ZeroDivisionError" in record.getMessage()
    assert record.exc_info is None
    assert "\n" not in record.getMessage()


def test_a_bug_while_a_stream_runs_ends_it_with_an_error(client, monkeypatch):
    monkeypatch.setattr("elutq_cli.server.response.CompletionResponder.pieces", lambda *_: 1 / 0)
    answer = client.complete(stream=True)
    assert answer.status == 200
    assert json.loads(answer.body.removeprefix(b"data: "))["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_no_numbers_are_the_servers_fault(client, monkeypatch, stream):
    logits = np.full((1, client.model.native.vocab_size), np.nan, np.float32)
    monkeypatch.setattr(client.model.scheduler.engine, "eval", lambda runs: [logits for _ in runs])
    error = refusal(client.complete(seed=1, stream=stream), 500)
    assert (error.type, "damaged" in error.message) == ("server_error", True)
    monkeypatch.undo()
    assert client.complete(seed=1).status == 200


def test_a_stream_that_has_begun_ends_with_the_error(client, monkeypatch):
    passes, evaluate = [], client.model.scheduler.engine.eval

    def fail_second(runs):
        passes.append(runs)
        return evaluate(runs) if len(passes) == 1 else [np.full_like(logits, np.nan) for logits in evaluate(runs)]

    monkeypatch.setattr(client.model.scheduler.engine, "eval", fail_second)
    answer = client.complete(seed=1, stream=True, cache_prompt=False)
    text, error = (json.loads(event.removeprefix(b"data: ")) for event in answer.body.strip().split(b"\n\n"))
    assert answer.status == 200
    assert text["choices"][0]["text"]
    assert "damaged" in error["error"]["message"]


def test_a_bug_in_the_scheduler_ends_a_request_and_not_the_server(client, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(client.model.scheduler, "_choose", lambda: 1 / 0)
        assert refusal(client.complete(), 500).type == "server_error"
    assert "ZeroDivisionError" in caplog.text
    assert client.complete().status == 200


def test_a_template_that_fails_refuses_or_never_ends_is_told_in_json(client, monkeypatch):
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for source in ("{{ messages[9].content.x.y }}", "{{ raise_exception('no') }}", endless):
        template = type(client.model.required_chat_template)(source)
        monkeypatch.setitem(client.model.__dict__, "chat_template", template)
        assert "chat template" in refusal(client.chat(MESSAGES)).message


async def made(job, when_running=lambda: None):
    """Return the tokens of a text; something is called once the first is there."""
    tokens = []
    async for token in job.stream():
        if not tokens:
            await asyncio.to_thread(when_running)
        tokens.append(token)
    return tokens


def submit(engine, n_predict):
    model, options = engine.model, TextOptions(n_predict, ignore_eos=True)
    generation = Generation([0, 84, 90], Sampler(SamplingOptions()), options, model.tokenizer, model.ctx_size)
    return engine.submit([generation], Reuse.NOTHING)


def test_a_server_that_leaves_in_the_middle_of_an_answer_says_so(endless_model):
    """Such a text has not come to its end, nor have those that wait for their turn."""
    with serving(endless_model, ctx_size=1 << 14) as client:
        engine = client.engine

        async def leave():
            running, waiting = submit(engine, -1), submit(engine, 1)
            ends = asyncio.gather(made(running, engine.end_texts), made(waiting), return_exceptions=True)
            return [(type(end), str(end)) for end in await ends]

        assert asyncio.run(leave()) == 2 * [(LeavingError, "the server is shutting down")]
        assert refusal(client.complete(), 503).type == "server_error"


def test_a_text_that_is_cancelled_just_before_its_turn_leaves_nobody_waiting(chat_model):
    with serving(chat_model, ctx_size=64) as client:

        async def cancel():
            job = submit(client.engine, 5)
            job.cancel()
            return await made(job)

        with pytest.raises(LeavingError):
            asyncio.run(asyncio.wait_for(cancel(), 60))


def test_a_body_of_a_browser_is_declared_as_json(client):
    """A page may send text, forms and bodies of no type at all without asking, but not without its Origin.

    A form that a page sends without a script has its braces encoded, and is no JSON; curl -d declares one, too.
    """
    body = b'{"prompt": "My dear", "max_tokens": 1}'
    form = ("Content-Type", "application/x-www-form-urlencoded")
    for kind in ("text/plain", "multipart/form-data; boundary=x"):
        assert refusal(client.request("POST", "/v1/completions", body, [("Content-Type", kind)]), 415)
    for browsers in (("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")):
        assert refusal(client.request("POST", "/v1/completions", body, [browsers]), 415)
        assert refusal(client.request("POST", "/v1/completions", body, [browsers, form]), 415)
    assert client.request("POST", "/v1/completions", body).status == 200
    assert client.request("POST", "/v1/completions", body, [form]).status == 200


def test_errors_have_the_codes_that_clients_look_at(client):
    assert refusal(client.get("/v1/models/other"), 404).code == "model_not_found"
    assert refusal(client.complete("word " * 600)).code == "context_length_exceeded"
    assert refusal(client.complete(suffix="x")).code == "unsupported_parameter"
    assert refusal(client.complete(top_logprobs=-1)).code == "unsupported_parameter"
    assert refusal(client.complete(n=0)).code == "invalid_value"
    for field, value in (
        ("temperature", -1),
        ("top_p", 2),
        ("min_p", 5),
        ("repeat_penalty", 0),
        ("presence_penalty", 1e31),
        ("stop", ["x" * (1 << 17)]),
        ("min_tokens", 9999),
    ):
        fault = refusal(client.complete(**{field: value, "max_tokens": 5}))
        assert (fault.param, fault.code) == (field, "invalid_value")
        assert fault.message.startswith(f"{field} ")
    assert refusal(client.complete(repetition_penalty=0)).param == "repetition_penalty"  # as it came
    for tokens in ([-1], [99999]):
        assert refusal(client.post("/detokenize", {"tokens": tokens})).param == "tokens"
    assert refusal(client.post("/v1/completions", b"{")).code is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429_and_says_when_to_come_back(client, monkeypatch, stream):
    monkeypatch.setattr(client.engine, "_max_queue", -client.engine.n_slots)
    answer = client.complete(stream=stream)
    assert refusal(answer, 429).code == "rate_limit_exceeded"
    assert answer.headers["retry-after"] == "5"
    for path, told in (("/v1/messages", "rate_limit_error"), ("/api/chat", "requests are waiting")):
        answer = client.post(path, {"messages": MESSAGES, "max_tokens": 1, "stream": stream})
        assert (answer.status, answer.headers["retry-after"], told in str(answer.json)) == (429, "5", True)


def test_a_stream_that_waits_for_its_first_token_says_that_it_lives(client, monkeypatch):
    held, evaluate = threading.Event(), client.model.scheduler.engine.eval
    monkeypatch.setattr(endpoint, "SILENT_SECONDS", 0.01)
    monkeypatch.setattr(client.model.scheduler.engine, "eval", lambda runs: held.wait(60) and evaluate(runs))
    monkeypatch.setattr(Job, "stream", releasing(Job.stream, held))
    answer = client.complete(stream=True, seed=1, cache_prompt=False)
    comments, _, rest = answer.body.partition(b"data: ")
    assert comments == b": still at work\n\n" * 3
    assert rest.endswith(b"data: [DONE]\n\n")
    held.clear()
    body = {"messages": MESSAGES, "max_tokens": 1, "stream": True, "cache_prompt": False}
    assert client.post("/v1/messages", body).body.count(b'event: ping\ndata: {"type": "ping"}\n\n') == 3


def releasing(stream, event):
    """Return a method that sets an event when the third silence was told."""

    async def listen(self, patience):
        silences = 0
        async for item in stream(self, patience):
            silences += item is None
            if silences == 3:
                event.set()
            if item is not None or silences <= 3:
                yield item

    return listen


def test_a_text_ends_when_its_time_is_over(endless_model):
    with serving(endless_model, ctx_size=1 << 14) as client:
        client.engine._max_seconds = 0.2
        answer = client.complete(max_tokens=-1, ignore_eos=True).json
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 0 < answer["usage"]["completion_tokens"] < 1 << 14
        client.engine._max_seconds = 1e-9
        answer = client.complete("It was a dark night. " * 500, cache_prompt=False).json
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 0)
