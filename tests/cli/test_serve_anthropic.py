"""Anthropic's /v1/messages: as its own client sees it, and what its requests are in OpenAI's form."""

import importlib
import json

import pytest
from served import DEADLINE, Server

from elutq_cli.server.dialects.anthropic import Messages

TURNS = [{"role": "user", "content": "How do you do?"}]
ASKED = {"model": "any", "max_tokens": 12, "messages": TURNS}
TOOL = {"name": "clock", "description": "Tells the time.", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def anthropic():
    return pytest.importorskip("anthropic", reason="Anthropic's client is not installed: pip install anthropic")


@pytest.fixture(scope="module")
def client(chat_model, anthropic):
    server = Server(chat_model, "-c", 512, "--parallel", 2, ELUTQ_API_KEY="secret")
    address = f"http://{server.host}:{server.port}"
    with anthropic.Anthropic(base_url=address, api_key="secret", max_retries=0, timeout=DEADLINE) as client:
        yield client
    assert server.stop() == (0, "")


def test_a_message_comes_whole_and_as_a_stream(client):
    options = {"system": "Be brief.", "extra_body": {"seed": 1, "temperature": 0.7, "top_k": 30}}
    message = client.messages.create(**ASKED, **options)
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "max_tokens")
    (block,) = message.content
    assert block.type == "text" and block.text
    assert message.usage.output_tokens == 12
    with client.messages.stream(**ASKED, **options) as stream:
        assert "".join(stream.text_stream) == block.text
        streamed = stream.get_final_message()
    assert (streamed.content[0].text, streamed.stop_reason) == (block.text, "max_tokens")
    assert streamed.usage.output_tokens == 12
    with client.messages.create(**ASKED, **options, stream=True) as events:
        begun = next(event for event in events if event.type == "message_start").message.usage
    assert (begun.input_tokens, begun.cache_read_input_tokens) == (
        streamed.usage.input_tokens,
        streamed.usage.cache_read_input_tokens,
    )
    assert streamed.usage.input_tokens + streamed.usage.cache_read_input_tokens == message.usage.input_tokens


def test_a_stop_sequence_is_told(client):
    options = {"extra_body": {"seed": 1, "temperature": 0}}
    text = client.messages.create(**ASKED, **options).content[0].text
    stop = text[5:8]
    message = client.messages.create(**ASKED, **options, stop_sequences=["never seen", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]
    with client.messages.stream(**ASKED, **options, stop_sequences=[stop]) as stream:
        assert stream.get_final_message().stop_sequence == stop


def test_tokens_are_counted_and_models_listed(client):
    counted = client.messages.count_tokens(model="any", messages=TURNS, system="Be brief.").input_tokens
    usage = client.messages.create(**ASKED, system="Be brief.").usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    (entry,) = client.models.list()
    assert entry.type == "model" and entry.display_name == entry.id
    assert (entry.capabilities, entry.max_input_tokens) == (None, 512)
    assert client.models.retrieve(entry.id) == entry


def test_errors_have_anthropics_form(client, anthropic):
    for wrong in ({"tools": [TOOL]}, {"max_tokens": 0.5}, {"stop_sequences": ["x" * 2000]}):
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(**{**ASKED, **wrong})
        error = caught.value.body
        assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
        assert next(iter(wrong)) in error["error"]["message"]
    with pytest.raises(anthropic.AuthenticationError) as caught:
        client.with_options(api_key="guess").messages.create(**ASKED)
    assert caught.value.body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("mcp_servers", [{"url": "x"}]),
        ("container", "x"),
        ("output_config", {"format": {"type": "x"}}),
        ("output_config", {"format": {"type": "json_schema", "schema": {"not": {}}}}),
        ("output_format", {"type": "x"}),
        ("output_format", {"type": "json_schema", "schema": {"not": {}}}),
        ("compaction", {"type": "summarize"}),
        ("thread", {"type": "create"}),
        ("response_format", {"type": "json_object"}),
        ("mirostat", 2),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}]),
        ("tool_choice", {"type": "tool"}),
        ("thinking", {"type": "enabled", "budget_tokens": 1024}),
        ("thinking", {"type": "x"}),
        ("system", [{"type": "image"}]),
        ("stop_sequences", 5),
        ("messages", []),
        ("messages", ["x"]),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image", "source": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]),
        ("messages", [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": "c"}]}]),
        ("messages", [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}]),
    ],
)
def test_what_is_not_here_is_refused_by_name(local, field, value):
    answer = local.post("/v1/messages", {**ASKED, field: value})
    assert (answer.status, answer.json["type"]) == (400, "error")
    assert field in answer.json["error"]["message"]


def translated(client, **body):
    return Messages(client.model, "tested").translate({**ASKED, **body})


def test_tools_their_calls_and_results_are_openais(local):
    called = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "UTC"}},
    ]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]}
    turns = [
        *TURNS,
        {"role": "assistant", "content": called},
        {"role": "user", "content": [result, {"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}}]},
    ]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = translated(local, messages=turns, tools=[TOOL], tool_choice=choice, system=[{"type": "text", "text": "S"}])
    call = {"id": "t1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    assert body["messages"] == [
        {"role": "system", "content": "S"},
        TURNS[0],
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "name": "clock", "content": "noon"},
        {"role": "user", "content": "So?"},
    ]
    function = {"name": "clock", "description": "Tells the time.", "parameters": TOOL["input_schema"]}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert translated(local, tools=[TOOL | {"strict": True}])["tools"][0]["function"]["strict"] is True
    named = translated(local, tool_choice={"type": "tool", "name": "clock"})
    assert named["tool_choice"] == {"type": "function", "function": {"name": "clock"}}


def test_a_reply_that_the_client_begins_goes_on(local):
    begun = [*TURNS, {"role": "assistant", "content": "Very well, I"}]
    assert translated(local, messages=begun)["continue_final_message"] is True
    assert local.post("/v1/messages", {**ASKED, "messages": begun}).status == 200


def test_thinking_is_the_templates_switch(local, template):
    template("{{ enable_thinking }}{% for m in messages %}{{ m.content }}{% endfor %}")
    for kind, switched in (("enabled", True), ("adaptive", True), ("disabled", False)):
        body = translated(local, thinking={"type": kind}, chat_template_kwargs={"lang": "de"})
        assert (body["enable_thinking"], body["chat_template_kwargs"]) == (switched, {"lang": "de"})
    assert local.post("/v1/messages", {**ASKED, "thinking": {"type": "disabled"}}).status == 200
    assert local.post("/v1/messages", {**ASKED, "context_management": {"edits": []}}).status == 200
    template("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert local.post("/v1/messages", {**ASKED, "thinking": {"type": "adaptive"}}).status == 200
    refused = local.post("/v1/messages", {**ASKED, "thinking": {"type": "enabled"}})
    assert refused.status == 400
    named = local.post("/v1/messages", {**ASKED, "enable_thinking": "yes"}).json["error"]["message"]
    assert named.startswith("enable_thinking must be")
    assert refused.json["error"]["message"] == "thinking is not supported by this model's chat template"
    template("<think></think>{% for m in messages %}{{ m.content }}{% endfor %}")
    assert local.post("/v1/messages", {**ASKED, "thinking": {"type": "disabled"}}).status == 400


def test_an_answer_matches_the_schema_of_its_output_config(client):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
    }
    schema["additionalProperties"] = False
    body = {"output_config": {"format": {"type": "json_schema", "schema": schema}}, "temperature": 1.5}
    text = client.messages.create(model="any", max_tokens=200, messages=TURNS, extra_body=body).content[0].text
    assert 0 <= json.loads(text)["age"] <= 99


def test_the_older_name_of_a_format_is_honoured_and_may_not_say_something_else(local):
    form, other = ({"type": "json_schema", "schema": {"const": text}} for text in ("yes", "no"))
    body = {**ASKED, "max_tokens": 40, "output_format": form}
    for config in ({}, {"format": form}):
        (block,) = local.post("/v1/messages", {**body, "output_config": config}).json["content"]
        assert block["text"] == '"yes"'
    refused = local.post("/v1/messages", {**body, "output_config": {"format": other}})
    assert refused.status == 400
    assert "output_format and the format in output_config are one thing" in refused.json["error"]["message"]


DELTAS = [
    {"role": "assistant", "content": ""},
    {"reasoning_content": "Hm"},
    {"reasoning_content": "."},
    {"content": "I look."},
    {"tool_calls": [{"index": 0, "id": "t1", "type": "function", "function": {"name": "clock", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ' "UTC"}'}}]},
    {"tool_calls": [{"index": 1, "id": "t2", "type": "function", "function": {"name": "stop", "arguments": "{}"}}]},
]
USAGE = {"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}


def chunks():
    """A stream of OpenAI's."""
    for delta in DELTAS:
        yield {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls", "stop_reason": None}],
    }
    yield {"id": "chatcmpl-1", "choices": [], "usage": USAGE}


def test_thoughts_and_calls_are_blocks_that_the_client_understands(local, anthropic):
    """What its stream is put together from gives the same message as a whole answer."""
    dialect = Messages(local.model, "tested")
    body = b"".join(part for chunk in chunks() for part in dialect.piece(chunk))
    http = importlib.import_module(anthropic.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
    stored = http.MockTransport(
        lambda _: http.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    sdk = anthropic.Anthropic(api_key="none", http_client=anthropic.DefaultHttpxClient(transport=stored))
    with sdk.messages.stream(**ASKED) as stream:
        built = stream.get_final_message().to_dict()
    calls = [{"id": "t1", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}]
    calls.append({"id": "t2", "function": {"name": "stop", "arguments": "{}"}})
    message = {"reasoning_content": "Hm.", "content": "I look.", "tool_calls": calls}
    choice = {"message": message, "finish_reason": "tool_calls", "stop_reason": None}
    whole = dialect.whole({"id": "chatcmpl-1", "choices": [choice], "usage": USAGE})
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "UTC"}},
        {"type": "tool_use", "id": "t2", "name": "stop", "input": {}},
    ]
    for block, ours in zip(built["content"], whole["content"], strict=True):
        assert {name: block[name] for name in ours} == ours
    assert (built["stop_reason"], whole["stop_reason"]) == ("tool_use", "tool_use")
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (5, 4)
