"""Ollama's /api: as its own client sees it, and what its requests are in OpenAI's form."""

import json
import shutil

import pytest
from asgi import serving
from served import Server

from elutq_cli.server.dialects.ollama import Chat, Generate
from elutq_cli.server.limits import Limits

TURNS = [{"role": "user", "content": "How do you do?"}]
OPTIONS = {"seed": 1, "num_predict": 12, "temperature": 0.7, "top_k": 30, "num_ctx": 256, "num_gpu": 1}


@pytest.fixture(scope="module")
def ollama():
    return pytest.importorskip("ollama", reason="Ollama's client is not installed: pip install ollama")


@pytest.fixture(scope="module")
def client(chat_model, ollama):
    server = Server(chat_model, "-c", 512, "--parallel", 2)
    yield ollama.Client(host=f"http://{server.host}:{server.port}")
    assert server.stop() == (0, "")


def test_the_model_is_found_and_described(client):
    (model,) = client.list().models
    assert model.details.format == "gguf" and model.size > 1_000_000
    shown = client.show(model.model)
    assert shown.modelinfo["llama.context_length"] == 512
    block = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256 + 2 * 256
    assert shown.modelinfo["general.parameter_count"] == 4096 * 256 + 6 * block + 256
    assert shown.capabilities == ["completion"]
    assert client.show("any").modelinfo == shown.modelinfo
    (running,) = client.ps().models
    assert (running.model, running.size_vram, running.context_length) == (model.model, 0, 512)
    assert running.expires_at.year == 9999


def test_a_model_file_may_be_deleted_while_it_is_served(chat_model, tmp_path):
    path = tmp_path / "model.gguf"
    shutil.copy(chat_model, path)
    with serving(path) as client:
        path.unlink()
        for route in ("/api/tags", "/api/ps"):
            (entry,) = client.get(route).json["models"]
            assert entry["size"] == chat_model.stat().st_size
        assert client.post("/api/show", {"model": entry["name"]}).status == 200


def test_a_chat_comes_whole_and_as_a_stream(client):
    reply = client.chat("any", TURNS, options=OPTIONS)
    assert (reply.message.role, reply.done, reply.done_reason) == ("assistant", True, "length")
    assert (reply.eval_count, reply.prompt_eval_count > 5) == (12, True)
    assert reply.total_duration >= reply.eval_duration > 0
    lines = list(client.chat("any", TURNS, options=OPTIONS, stream=True))
    assert "".join(line.message.content for line in lines) == reply.message.content
    assert [line.done for line in lines] == [*(len(lines) - 1) * [False], True]
    assert (lines[-1].done_reason, lines[-1].eval_count) == ("length", 12)


def test_a_prompt_is_a_turn_of_a_chat_unless_it_is_raw(client):
    reply = client.generate("any", "How do you do?", options=OPTIONS)
    assert reply.response == client.chat("any", TURNS, options=OPTIONS).message.content
    lines = list(client.generate("any", "How do you do?", options=OPTIONS, stream=True))
    assert "".join(line.response for line in lines) == reply.response
    raw = client.generate("any", "How do you do?", options=OPTIONS, raw=True)
    assert raw.prompt_eval_count < reply.prompt_eval_count
    assert raw.response != reply.response


def test_no_prompt_loads_the_model_and_makes_no_text(client):
    assert client.generate("any").done_reason == "load"
    assert client.generate("any", keep_alive=0).done_reason == "unload"
    assert client.chat("any").message.content == ""


def test_texts_have_embeddings(client):
    made = client.embed("any", ["It was a dark night.", "My dear Sir"])
    assert [len(vector) for vector in made.embeddings] == [256, 256]
    assert made.prompt_eval_count > 5
    assert client.embeddings("any", "My dear Sir").embedding == made.embeddings[1]


def test_an_answer_matches_its_format(client):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
    }
    options = {"temperature": 1.5, "num_predict": 200}
    reply = client.chat("any", TURNS, format=schema | {"additionalProperties": False}, options=options)
    assert 0 <= json.loads(reply.message.content)["age"] <= 99


def test_errors_have_ollamas_form(client, ollama):
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="num_ctx is 4096: the context of this server has 512") as caught:
            list(client.chat("any", TURNS, options={"num_ctx": 4096}, stream=stream))
        assert caught.value.status_code == 400


def test_a_stream_that_fails_ends_with_an_error(local, monkeypatch):
    monkeypatch.setattr("elutq_cli.server.response.ChatResponder.pieces", lambda *_: 1 / 0)
    answer = local.post("/api/chat", {"messages": TURNS})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert "error" in json.loads(answer.body.splitlines()[-1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("options", {name: 0.5}) for name in ("typical_p", "tfs_z")],
        ("options", {"mirostat": 2}),
        ("options", {"num_predict": 0.5}),
        ("options", {"n": 2}),
        ("options", 5),
        ("n", 2),
        ("logprobs", True),
        ("format", "xml"),
        ("format", {"not": {}}),
        ("think", True),
        ("think", "much"),
        ("tools", [{"type": "function"}]),
        ("messages", ["x"]),
        ("messages", [{"role": "user", "content": "x", "images": ["aGk="]}]),
        ("messages", [{"role": "robot", "content": "x"}]),
    ],
)
def test_what_is_not_here_is_refused_by_name(local, field, value):
    answer = local.post("/api/chat", {"messages": TURNS, field: value})
    assert answer.status == 400
    assert (next(iter(value)) if isinstance(value, dict) and field == "options" else field) in answer.json["error"]


@pytest.mark.parametrize("field", ["suffix", "template", "context", "images", "truncate", "system", "think"])
def test_fields_of_generate_that_are_not_here_are_refused_by_name(local, field):
    answer = local.post("/api/generate", {"prompt": "My dear", "raw": True, field: ["x"] if field != "system" else "x"})
    assert (answer.status, field in answer.json["error"]) == (400, True)


def translated(client, kind=Chat, **body):
    return kind(client.model, "tested").translate({"model": "any", **body})


def test_options_have_openais_names(local):
    body = translated(local, messages=TURNS, options=OPTIONS | {"stop": ["x"]})
    options = {"seed": 1, "max_tokens": 12, "temperature": 0.7, "top_k": 30, "stop": ["x"]}
    assert body.items() >= options.items()
    assert not {"num_ctx", "num_gpu", "options", "num_predict"} & set(body)
    assert body["stream"] is True
    for unlimited in ({}, {"num_predict": -1}, {"num_predict": -2}):
        assert translated(local, messages=TURNS, options=unlimited)["max_tokens"] == -1


def test_thinking_is_the_templates_switch(local, template):
    template("{{ enable_thinking }}{% for m in messages %}{{ m.content }}{% endfor %}")
    for think in (True, False):
        for body in ({"messages": TURNS}, {"kind": Generate, "prompt": "My dear"}):
            assert translated(local, **body, think=think)["enable_thinking"] is think
    body = translated(local, messages=TURNS, think="low")
    assert (body["enable_thinking"], body["reasoning_effort"]) == (True, "low")
    template("{% for m in messages %}{{ m.content }}{% endfor %}")
    refused = local.post("/api/chat", {"model": "m", "messages": TURNS, "think": True})
    assert (refused.status, refused.json["error"]) == (400, "think is not supported by this model's chat template")


def test_results_of_tools_have_a_name(local):
    call = {"function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    turns = [*TURNS, {"role": "assistant", "content": "", "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_name": "clock", "content": "noon"})
    assert local.post("/api/chat", {"messages": turns, "options": OPTIONS}).status == 200
    assert translated(local, messages=turns)["messages"][-1] == {"role": "tool", "name": "clock", "content": "noon"}


CALLS = [{"id": "t1", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}]
CALLS.append({"id": "t2", "function": {"name": "stop", "arguments": "{}"}})
USAGE = {"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
DELTAS = [
    {"role": "assistant", "content": ""},
    {"reasoning_content": "Hm."},
    {"content": "I look."},
    {"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "clock", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ' "UTC"}'}}]},
    {"tool_calls": [{"index": 1, "id": "t2", "function": {"name": "stop", "arguments": "{}"}}]},
]


def test_thoughts_and_calls_come_as_the_client_has_them(local, ollama):
    dialect = Chat(local.model, "tested")
    dialect.read({"messages": TURNS}, Limits())
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in DELTAS]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    chunks = [*({"choices": [choice]} for choice in choices), {"choices": [], "usage": USAGE}]
    lines = [ollama.ChatResponse(**json.loads(part)) for chunk in chunks for part in dialect.piece(chunk)]
    assert [line.done for line in lines] == [False, False, False, True]
    assert (lines[0].message.thinking, lines[1].message.content) == ("Hm.", "I look.")
    message = {"reasoning_content": "Hm.", "content": "I look.", "tool_calls": CALLS}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    whole = ollama.ChatResponse(**dialect.whole(answer))
    assert (whole.message.thinking, whole.message.content) == ("Hm.", "I look.")
    for calls in (whole.message.tool_calls, lines[2].message.tool_calls):
        called = [(call.function.name, call.function.arguments) for call in calls]
        assert called == [("clock", {"zone": "UTC"}), ("stop", {})]
    assert whole.done_reason == lines[-1].done_reason == "stop"
