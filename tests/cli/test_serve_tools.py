"""Tools of `elutq serve`: who may, must or must not call them, and how calls come back."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from asgi import refusal, serving
from served import Server
from tool_templates import SILENT, TEMPLATES

from elutq_cli.generation import ChatTemplate, Sampler

MESSAGES = [{"role": "user", "content": "How do you do?"}]
WILD = {"temperature": 1.5, "top_k": -1, "top_p": 1, "min_p": 0, "max_tokens": 2000}
CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "maxLength": 8, "format": "not known"}},
}
LEVEL = {"type": "object", "properties": {"level": {"enum": ["low", "high"]}}, "required": ["level"]}
LEVEL |= {"additionalProperties": False}
SCHEMAS = {"get_weather": CITY, "set_level": LEVEL, "now": None}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "set_level"}}


@pytest.fixture(scope="module")
def client(endless_model):
    with serving(endless_model, ctx_size=4096, parallel=3) as client:
        yield client


@pytest.fixture(autouse=True)
def template(client, monkeypatch):
    """Returns a function that gives the model another template; to begin with it has that of Hermes."""

    def use(source):
        monkeypatch.setitem(client.model.__dict__, "chat_template", ChatTemplate(source))

    use(TEMPLATES["hermes"])
    return use


def checked(message):
    """Return the names of the tools that a message calls, in the form that it is to have."""
    assert message["content"] is None
    for call in message["tool_calls"]:
        assert call["type"] == "function" and re.fullmatch("[0-9a-z]{9}", call["id"])
        schema = SCHEMAS[call["function"]["name"]] or {"type": "object"}
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
    return [call["function"]["name"] for call in message["tool_calls"]]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_required_calls_are_whole_in_every_notation(client, template, name, seed):
    template(TEMPLATES[name])
    answer = client.chat(MESSAGES, **WILD, tools=TOOLS, tool_choice="required", seed=seed).json["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert checked(answer["message"])


def test_a_named_tool_is_called_once(client):
    answer = client.chat(MESSAGES, **WILD, tools=TOOLS, tool_choice=NAMED, n=3).json["choices"]
    assert [checked(choice["message"]) for choice in answer] == [["set_level"]] * 3


def test_several_calls_come_unless_parallel_calls_are_off(client):
    eos = str(client.model.tokenizer.eos_token_ids[0])
    asked = {"tools": TOOLS[1:2], "tool_choice": "required", "logit_bias": {eos: -100}, "temperature": 0}
    several = client.chat(MESSAGES, **{**WILD, **asked}).json["choices"][0]["message"]
    assert checked(several) == ["set_level"] * 16
    assert len({call["id"] for call in several["tool_calls"]}) == 16
    one = client.chat(MESSAGES, **{**WILD, **asked}, parallel_tool_calls=False).json["choices"][0]["message"]
    assert checked(one) == ["set_level"]


def test_a_stream_has_the_same_calls_in_deltas(client):
    asked = {**WILD, "tools": TOOLS, "tool_choice": "required", "seed": 5, "logprobs": True}
    whole = client.chat(MESSAGES, **asked).json["choices"][0]
    events = re.findall("data: ({.*})", client.chat(MESSAGES, **asked, stream=True).body.decode())
    choices = [json.loads(event)["choices"][0] for event in events]
    calls = []
    for delta in (choice["delta"] for choice in choices):
        for part in delta.get("tool_calls") or ():
            if part["index"] == len(calls):
                calls.append((part["function"]["name"], ""))
            else:
                assert "id" not in part and "name" not in part["function"]
            name, arguments = calls[part["index"]]
            calls[part["index"]] = (name, arguments + part["function"]["arguments"])
    made = [(call["function"]["name"], call["function"]["arguments"]) for call in whole["message"]["tool_calls"]]
    assert calls == made
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert not any(choice["delta"].get("content") for choice in choices)
    scored = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    assert scored == whole["logprobs"]["content"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_limit_leaves_of_a_forced_call_is_no_text(client, template, name):
    template(TEMPLATES[name])
    asked = {**WILD, "tools": TOOLS, "tool_choice": "required", "seed": 1}
    for limit in range(1, 12):
        answer = client.chat(MESSAGES, **asked | {"max_tokens": limit}).json["choices"][0]
        assert (answer["finish_reason"], answer["message"]["content"] or "") == ("length", "")
    events = re.findall("data: ({.*})", client.chat(MESSAGES, **asked | {"max_tokens": 3}, stream=True).body.decode())
    assert not any(json.loads(event)["choices"][0]["delta"].get("content") for event in events)


def test_a_call_that_a_limit_cuts_ends_by_length(client):
    answer = client.chat(MESSAGES, tools=TOOLS, tool_choice=NAMED, max_tokens=20).json["choices"][0]
    assert answer["finish_reason"] == "length"


def test_the_template_is_given_the_tools_unless_none_may_be_called(client):
    def n_prompt(**asked):
        return client.chat(MESSAGES, **asked, max_tokens=1).json["usage"]["prompt_tokens"]

    assert n_prompt(tools=TOOLS) == n_prompt(tools=TOOLS, tool_choice="auto") > n_prompt() + 50
    assert n_prompt(tools=TOOLS, tool_choice="none") == n_prompt(tools=[]) == n_prompt()


def test_text_of_a_model_that_does_not_call_is_the_same_with_auto(client):
    calls = [{"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
    history = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": calls}]
    history.append({"role": "tool", "tool_call_id": "1", "content": "noon"})
    answer = client.chat(history, tools=TOOLS, max_tokens=12, seed=1)
    message = answer.json["choices"][0]["message"]
    assert message["content"].strip() and "tool_calls" not in message
    events = re.findall(
        "data: ({.*})", client.chat(history, tools=TOOLS, max_tokens=12, seed=1, stream=True).body.decode()
    )
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]


@pytest.mark.parametrize(
    ("asked", "name", "word"),
    [
        ({"tools": "x"}, "tools", "list"),
        ({"tools": [{"type": "retrieval"}]}, "tools", "tools.0"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "letters"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "one name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools", "schema"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools",
            "object",
        ),
        ({"tools": TOOLS * 43}, "tools", "128"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "required"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "none of"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": TOOLS, "parallel_tool_calls": "yes"}, "parallel_tool_calls", "true or false"),
        ({"tools": TOOLS, "regex": "a"}, "tools", "leave one out"),
    ],
)
def test_wrong_tools_are_refused_by_name(client, asked, name, word):
    error = refusal(client.chat(MESSAGES, **asked))
    assert error.param == name
    assert word in error.message


def test_a_reply_with_tools_and_a_schema_is_calls_or_an_answer_of_that_schema(client, template):
    schema = {"enum": [{"colour": "red"}]}
    asked = {**WILD, "tools": TOOLS[:2], "parallel_tool_calls": False}
    asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    kinds = set()
    for name in ("hermes", "llama3", "mistral"):
        template(TEMPLATES[name])
        for choice in client.chat(MESSAGES, **asked, n=6, seed=1).json["choices"]:
            kinds.add(choice["finish_reason"])
            if choice["finish_reason"] == "tool_calls":
                assert len(checked(choice["message"])) == 1
            else:
                assert json.loads(choice["message"]["content"]) == {"colour": "red"}
    assert kinds == {"tool_calls", "stop"}
    forced = client.chat(MESSAGES, **asked, tool_choice=NAMED).json["choices"][0]
    assert checked(forced["message"]) == ["set_level"]


def test_strict_tools_bind_calls_that_the_model_makes_of_its_own_accord(client, monkeypatch):
    """The first tokens, which are the beginning of a call, are put into its mouth; it would go on with a novel."""
    script, sample, n_drawn = client.model.tokenizer.encode("I ask. <tool_call>"), Sampler.sample, {}

    def draw(sampler, logits, history, allowed=None):
        n_drawn[sampler] = n_drawn.get(sampler, 0) + 1
        drawn = sample(sampler, logits, history, allowed)
        return script[n_drawn[sampler] - 1] if n_drawn[sampler] <= len(script) else drawn

    monkeypatch.setattr(Sampler, "sample", draw)
    for strict in (True, False):
        tools = [{"type": "function", "function": {**TOOLS[1]["function"], "strict": strict}}]
        message = client.chat(MESSAGES, **{**WILD, "max_tokens": 60}, tools=tools).json["choices"][0]["message"]
        assert message["content"].startswith("I ask.")
        assert ("tool_calls" in message) == strict
        if strict:
            assert checked({**message, "content": None}) == ["set_level"]


def test_a_strict_tool_that_cannot_be_enforced_is_refused(client):
    parameters = {"type": "object", "properties": {"a": {"not": {}}}}
    odd = {"type": "function", "function": {"name": "odd", "parameters": parameters, "strict": True}}
    assert "properties.a" in refusal(client.chat(MESSAGES, tools=[odd])).message


def test_parameters_that_cannot_be_enforced_are_refused_with_their_place_where_calls_are_forced(client):
    parameters = {"type": "object", "properties": {"a": {"not": {}}}}
    tools = [TOOLS[0], {"type": "function", "function": {"name": "odd", "parameters": parameters}}]
    error = refusal(client.chat(MESSAGES, tools=tools, tool_choice="required"))
    assert "tools.1.function.parameters" in error.message and "properties.a" in error.message
    assert client.chat(MESSAGES, tools=tools).status == 200
    assert client.chat(MESSAGES, tools=tools, tool_choice=NAMED | {"function": {"name": "get_weather"}}).status == 200


def test_a_model_whose_template_does_not_know_of_tools_refuses_them(client, template):
    template(SILENT)
    assert "does not know of them" in refusal(client.chat(MESSAGES, tools=TOOLS)).message
    assert client.chat(MESSAGES, tools=TOOLS, tool_choice="none").status == 200


def test_two_agents_with_openais_client_finish_twenty_rounds_each(endless_model, tmp_path):
    """Each calls a tool, gets its result and asks on; every other round is streamed."""
    template = tmp_path / "hermes.jinja"
    template.write_text(TEMPLATES["hermes"])
    server = Server(endless_model, "-c", 4096, "--parallel", 2, "--chat-template", template)

    def converse(number):
        with server.client() as client:
            messages, n_calls = [{"role": "user", "content": f"I am {number}."}], 0
            for at in range(20):
                options = {"model": "any", "messages": messages[:1] + messages[-3:], "tools": TOOLS[:2]}
                options |= {"temperature": 1.5, "tool_choice": "required", "parallel_tool_calls": at % 10 == 1}
                if at % 2:
                    with client.chat.completions.stream(**options) as stream:
                        message = stream.get_final_completion().choices[0].message
                else:
                    message = client.chat.completions.create(**options).choices[0].message
                assert message.tool_calls
                for call in message.tool_calls:
                    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
                    n_calls += 1
                first = message.tool_calls[0]
                call = {"id": first.id, "type": "function", "function": first.function.model_dump()}
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
                messages.append({"role": "tool", "tool_call_id": first.id, "content": f"result {at}"})
                messages.append({"role": "user", "content": "Go on."})
            return n_calls

    try:
        with ThreadPoolExecutor(2) as agents:
            assert all(n_calls >= 20 for n_calls in agents.map(converse, range(2)))
    finally:
        assert server.stop() == (0, "")
