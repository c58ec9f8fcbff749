"""OpenAI's /v1/responses: as its own client sees it, and what its requests are in the older form."""

import json

import openai
import pydantic
import pytest
from asgi import refusal
from openai.types.responses import ResponseStreamEvent
from served import Server

from elutq_cli.generation import ChatTemplate
from elutq_cli.server.dialects.responses import Responses
from elutq_cli.server.limits import Limits

TURNS = [{"role": "user", "content": "How do you do?"}]
ASKED = {"model": "any", "input": "How do you do?", "max_output_tokens": 12, "temperature": 0.7}
TOOL = {"type": "function", "name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def client(chat_model):
    server = Server(chat_model, "-c", 512, "--parallel", 2)
    with server.client() as client:
        yield client
    assert server.stop() == (0, "")


def test_a_response_comes_whole_and_as_a_stream(client):
    options = {**ASKED, "instructions": "Be brief.", "extra_body": {"seed": 1}, "metadata": {"a": "b"}}
    response = client.responses.create(**options)
    assert (response.object, response.status) == ("response", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output] == ["incomplete"]
    assert response.output_text
    assert (response.usage.output_tokens, response.metadata, response.instructions) == (12, {"a": "b"}, "Be brief.")
    with client.responses.stream(**options) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert events[3].part.text == ""
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == response.output_text
    assert deltas[-1].snapshot == response.output_text  # what the client adds up
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == response.output_text
    assert [event.item.status for event in events if event.type == "response.output_item.done"] == ["incomplete"]
    assert [item.status for item in events[-1].response.output] == ["incomplete"]


def test_an_input_of_items_is_the_same_conversation(client):
    options = {"max_output_tokens": 8, "temperature": 0, "extra_body": {"seed": 1}}
    items = [{"role": "user", "content": [{"type": "input_text", "text": "How do you do?"}]}]
    first = client.responses.create(model="any", input=items, **options)
    assert first.output_text == client.responses.create(model="any", input=TURNS[0]["content"], **options).output_text
    longer = [*items, *first.output, {"role": "user", "content": "And now?"}]
    second = client.responses.create(model="any", input=longer, **options)
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


def test_a_limit_has_any_of_its_names_and_truncation_may_be_auto(local):
    asked = {"input": TURNS, "truncation": "auto"}
    for name in ("max_output_tokens", "max_tokens", "max_completion_tokens"):
        answer = local.post("/v1/responses", {**asked, name: 3}).json
        assert (answer["usage"]["output_tokens"], answer["max_output_tokens"]) == (3, 3)
    assert "one thing" in refusal(local.post("/v1/responses", {**ASKED, "max_tokens": 3})).message


def test_a_refusal_in_the_history_is_text(local):
    part = {"type": "refusal", "refusal": "I do not."}
    items = [*TURNS, {"type": "message", "role": "assistant", "content": [part]}]
    assert translated(local, input=items)["messages"][-1] == {"role": "assistant", "content": "I do not."}
    told, meant = (
        local.chat([*TURNS, {"role": "assistant", "content": content}, *TURNS], seed=1).json
        for content in ([part], "I do not.")
    )
    assert told["choices"] == meant["choices"]
    for wrong in ({"type": "refusal"}, {"type": "refusal", "text": "x"}, {"type": ["text"]}, "x"):
        assert local.chat([{"role": "assistant", "content": [wrong]}]).status == 400
        assert local.post("/v1/responses", {"input": [{"role": "assistant", "content": [wrong]}]}).status == 400


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    age: int = pydantic.Field(le=99, ge=0)


def test_an_answer_is_parsed_with_the_schema_that_was_asked_for(client):
    response = client.responses.parse(model="any", input="How old?", text_format=Person, temperature=1.5)
    assert 0 <= response.output_parsed.age <= 99


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "c"),
        ("background", True),
        ("prompt", {"id": "p"}),
        ("truncation", "some"),
        ("max_tokens", 0.5),
        ("include", ["message.output_text.logprobs"]),
        ("include", 5),
        ("top_logprobs", 2),
        ("n", 2),
        ("max_output_tokens", 0.5),
        ("tools", [TOOL]),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", {"type": "allowed_tools"}),
        ("text.format", {"type": "json_schema", "name": "x", "schema": {"not": {}}}),
        ("text.format", {"type": "json_schema", "name": "x"}),
        ("text.format", "json"),
        ("text.verbosity", "low"),
        ("summary", None),
        ("mirostat", 2),
        ("instructions", 5),
        ("input", []),
        ("input", ["x"]),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input", [{"type": "function_call", "name": "clock"}]),
    ],
)
def test_what_is_not_here_is_refused_by_name(local, field, value):
    given = {"reasoning": {"effort": "low", "summary": "detailed"}} if field == "summary" else {field: value}
    if "." in field:
        outer, inner = field.split(".")
        given = {outer: {inner: value}}
    refused = refusal(local.post("/v1/responses", {**ASKED, **given}))
    assert refused.param == field
    assert field.startswith("text") == (field in refused.message and "." in field)


def test_errors_raise_in_the_client(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="any", input="word " * 600)
    assert caught.value.code == "context_length_exceeded"


def test_a_stream_that_fails_says_so(local, monkeypatch):
    monkeypatch.setattr("elutq_cli.server.response.ChatResponder.pieces", lambda *_: 1 / 0)
    answer = local.post("/v1/responses", {**ASKED, "stream": True})
    last = json.loads(answer.body.strip().rpartition(b"data: ")[2])
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "log" in last["response"]["error"]["message"]


def translated(client, **body):
    return Responses(client.model, "tested").translate({**ASKED, **body})


def test_thoughts_calls_and_results_are_messages(local):
    items = [
        *TURNS,
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "t1", "name": "clock", "arguments": '{"zone": "UTC"}'},
        {"type": "function_call", "call_id": "t2", "name": "stop", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t1", "output": "noon"},
        {"type": "function_call_output", "call_id": "t2", "output": [{"type": "input_text", "text": "done"}]},
    ]
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}},
        {"id": "t2", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
    ]
    body = translated(local, input=items, tools=[TOOL], tool_choice={"type": "function", "name": "clock"})
    assert body["messages"] == [
        TURNS[0],
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "t1", "content": "noon", "name": "clock"},
        {"role": "tool", "tool_call_id": "t2", "content": "done", "name": "stop"},
    ]
    function = {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "clock"}}
    assert local.post("/v1/responses", {**ASKED, "input": items}).status == 200


def test_effort_is_for_the_template_and_none_switches_thinking_off(local, monkeypatch):
    assert translated(local, reasoning={"effort": "low", "summary": "auto"})["reasoning_effort"] == "low"
    asked = {**ASKED, "reasoning": {"effort": "none"}}
    assert translated(local, reasoning={"effort": "none"})["reasoning_effort"] == "none"
    for switch, status in (
        ("{{ enable_thinking }}", 200),
        ("{{ reasoning_effort }}<think>", 200),
        ("<think></think>", 400),
    ):
        source = switch + "{% for m in messages %}{{ m.content }}{% endfor %}{# </think> #}"
        monkeypatch.setitem(local.model.__dict__, "chat_template", ChatTemplate(source))
        answer = local.post("/v1/responses", asked)
        assert answer.status == status, answer.body
    assert answer.json["error"]["param"] == "reasoning"


DELTAS = [
    {"role": "assistant", "content": ""},
    {"reasoning_content": "Hm"},
    {"reasoning_content": "."},
    {"content": "I look."},
    {"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "clock", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ' "UTC"}'}}]},
]
USAGE = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16, "prompt_tokens_details": {"cached_tokens": 4}}


def test_thoughts_and_calls_are_items_that_the_client_understands(local):
    dialect = Responses(local.model, "tested")
    dialect.read(ASKED, Limits())
    frame = {"id": "chatcmpl-1", "created": 5}
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in DELTAS]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    chunks = [*({**frame, "choices": [choice]} for choice in choices), {**frame, "choices": [], "usage": USAGE}]
    adapter = pydantic.TypeAdapter(ResponseStreamEvent)
    events = []
    for part in [part for chunk in chunks for part in dialect.piece(chunk)]:
        name, data = part.decode().strip().split("\n")
        events.append(adapter.validate_json(data.removeprefix("data: ")))
        assert name == f"event: {events[-1].type}"
    ended = events[-1].response
    assert events[-1].type == "response.completed"
    assert [item.type for item in ended.output] == ["reasoning", "message", "function_call"]
    thought, _, call = ended.output
    assert (thought.content[0].text, ended.output_text) == ("Hm.", "I look.")
    assert (call.name, call.call_id, call.arguments) == ("clock", "t1", '{"zone": "UTC"}')
    calls = [{"id": "t1", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}]
    message = {"reasoning_content": "Hm.", "content": "I look.", "tool_calls": calls}
    again = Responses(local.model, "tested")
    again.read(ASKED, Limits())
    whole = again.whole({**frame, "choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE})
    assert whole["output"] == [item.to_dict() for item in ended.output]
