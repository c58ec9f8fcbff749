"""Tools and schemas through the clients of other APIs and of LangChain: rounds of calls and results."""

import json
import urllib.request

import jsonschema
import pytest
from served import DEADLINE, Server
from tool_templates import TEMPLATES

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
QUESTION = {"role": "user", "content": "How will the weather be?"}
WILD = {"temperature": 1.5, "top_k": -1, "top_p": 1, "min_p": 0}
N_ROUNDS = 3


@pytest.fixture(scope="module")
def server(endless_model, tmp_path_factory):
    template = tmp_path_factory.mktemp("templates") / "hermes.jinja"
    template.write_text(TEMPLATES["hermes"])
    server = Server(endless_model, "-c", 4096, "--parallel", 2, "--chat-template", template)
    yield server
    assert server.stop() == (0, "")


@pytest.mark.parametrize("streams", [False, True])
def test_an_agent_of_anthropics_client_finishes_its_rounds(server, streams):
    anthropic = pytest.importorskip("anthropic", reason="Anthropic's client is not installed: pip install anthropic")
    tools = [{"name": "get_weather", "description": "A tool.", "input_schema": SCHEMA}]
    asked = {"model": "any", "max_tokens": 2000, "tools": tools, "tool_choice": {"type": "any"}, "extra_body": WILD}
    messages = [QUESTION]
    address = f"http://{server.host}:{server.port}"
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0, timeout=DEADLINE) as client:
        for _ in range(N_ROUNDS):
            if streams:
                with client.messages.stream(**asked, messages=messages) as stream:
                    message = stream.get_final_message()
            else:
                message = client.messages.create(**asked, messages=messages)
            assert message.stop_reason == "tool_use"
            for call in message.content:
                assert (call.type, call.name) == ("tool_use", "get_weather")
                jsonschema.validate(call.input, SCHEMA)
            said = [
                {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input} for call in message.content
            ]
            results = [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"} for call in message.content]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": results}]


@pytest.mark.parametrize("streams", [False, True])
def test_an_agent_of_openais_responses_finishes_its_rounds(server, streams):
    tools = [
        {"type": "function", "name": "get_weather", "description": "A tool.", "parameters": SCHEMA, "strict": True}
    ]
    asked = {"model": "any", "tools": tools, "tool_choice": "required", "extra_body": WILD, "max_output_tokens": 2000}
    items = [QUESTION]
    with server.client() as client:
        for _ in range(N_ROUNDS):
            if streams:
                with client.responses.stream(**asked, input=items) as stream:
                    for _event in stream:
                        pass
                    response = stream.get_final_response()
            else:
                response = client.responses.create(**asked, input=items)
            assert response.status == "completed"
            for call in response.output:
                assert (call.type, call.name) == ("function_call", "get_weather")
                jsonschema.validate(json.loads(call.arguments), SCHEMA)
                items.append({"type": "function_call", "call_id": call.call_id, "name": call.name})
                items[-1]["arguments"] = call.arguments
            for call in response.output:
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})


def test_ollamas_calls_are_whole_and_a_cut_one_is_left_out(server):
    function = {"name": "get_weather", "description": "A tool.", "parameters": SCHEMA}
    body = {"model": "any", "messages": [QUESTION], "tools": [{"type": "function", "function": function}]}
    body |= {"tool_choice": "required", "options": WILD}
    status, answer = server.post(body | {"stream": False}, "/api/chat")
    assert (status, answer["done_reason"]) == (200, "stop")
    url, headers = f"http://{server.host}:{server.port}/api/chat", {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=DEADLINE
    ) as told:
        lines = [json.loads(line) for line in told]
    streamed = [call for line in lines for call in line["message"].get("tool_calls", ())]
    assert streamed and lines[-1]["done_reason"] == "stop"
    for call in [*answer["message"]["tool_calls"], *streamed]:
        assert call["function"]["name"] == "get_weather"
        jsonschema.validate(call["function"]["arguments"], SCHEMA)
    cut = server.post(body | {"stream": False, "options": {**WILD, "num_predict": 30, "seed": 1}}, "/api/chat")[1]
    assert cut["done_reason"] == "length"
    assert not cut["message"].get("tool_calls")


@pytest.fixture(scope="module")
def chat(server):
    langchain = pytest.importorskip(
        "langchain_openai", reason="LangChain is not installed: pip install langchain-openai"
    )
    more = {"top_k": -1, "min_p": 0}
    yield langchain.ChatOpenAI(
        model="any",
        base_url=server.address,
        api_key="none",
        max_tokens=2000,
        temperature=1.5,
        max_retries=0,
        extra_body=more,
    )


def test_langchain_has_a_batch_answered(chat):
    replies = chat.bind(max_tokens=8).batch(["My dear", "It was a dark night, and", "The captain said"])
    assert [reply.usage_metadata["output_tokens"] for reply in replies] == [8, 8, 8]
    assert "".join(part.text for part in chat.bind(max_tokens=8).stream("My dear"))


def test_langchain_binds_tools_and_hands_results_back(chat):
    tool = {"type": "function", "function": {"name": "get_weather", "description": "A tool.", "parameters": SCHEMA}}
    bound = chat.bind_tools([tool], tool_choice="required")
    messages = [QUESTION]
    for _ in range(N_ROUNDS):
        reply = bound.invoke(messages)
        assert reply.tool_calls and not reply.invalid_tool_calls
        for call in reply.tool_calls:
            jsonschema.validate(call["args"], SCHEMA)
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "rain"} for call in reply.tool_calls]
        messages += [reply, *results]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_has_structured_output(chat, method):
    schema = {"title": "weather", "description": "The weather.", **SCHEMA}
    found = chat.with_structured_output(schema, method=method).invoke("How will the weather be?")
    jsonschema.validate(found, SCHEMA)
