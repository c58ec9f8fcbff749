"""Thoughts in replies of `elutq serve`: split from the answer, bounded, and left where they are on demand."""

import json
import re

import pytest
from asgi import refusal, serving
from conftest import CHAT_TEMPLATE
from tool_templates import TEMPLATES

from elutq_cli.generation import ChatTemplate

MESSAGES = [{"role": "user", "content": "How do you do?"}]
THINKS = CHAT_TEMPLATE.replace(
    "assistant:{%",
    "assistant:{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{%",
)


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model) as client:
        yield client


@pytest.fixture(autouse=True)
def template(client, monkeypatch):
    """Returns a function that gives the model another template; to begin with it has one that lets it think."""

    def use(source):
        monkeypatch.setitem(client.model.__dict__, "chat_template", ChatTemplate(source))

    use(THINKS)
    return use


def no_lines(client):
    """Return a bias by which there is more in thoughts than white space."""
    return {str(client.model.tokenizer.encode(text)[0]): -100 for text in ("\n", "\n\n", " ")}


def ask(client, **asked):
    answer = client.chat(MESSAGES, **{"max_tokens": 30, "seed": 1, "logit_bias": no_lines(client), **asked})
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.parametrize(
    "name", ["thinking_budget_tokens", "thinking_budget", "thinking_token_budget", "reasoning_budget"]
)
def test_thoughts_have_a_place_of_their_own_and_a_budget(client, name):
    body = ask(client, **{name: 6})
    message = body["choices"][0]["message"]
    assert message["reasoning_content"].strip() and message["content"].strip()
    assert "think>" not in message["reasoning_content"] + message["content"]
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 6}


def test_without_a_budget_the_model_thinks_as_long_as_it_likes(client):
    message = ask(client)["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"] == ""


def test_the_servers_budget_bounds_every_reply(client):
    bounded = client.with_options(reasoning_budget=4)
    for asked, budget in (
        ({}, 4),
        ({"thinking_budget": -1}, 4),
        ({"thinking_budget": 9}, 4),
        ({"thinking_budget": 2}, 2),
    ):
        assert ask(bounded, **asked)["usage"]["completion_tokens_details"] == {"reasoning_tokens": budget}


def test_a_stream_has_thoughts_before_the_answer(client):
    whole = ask(client, thinking_budget=6)["choices"][0]["message"]
    asked = {"max_tokens": 30, "seed": 1, "logit_bias": no_lines(client), "thinking_budget": 6}
    stream = client.chat(MESSAGES, **asked, stream=True).body.decode()
    deltas = [json.loads(event)["choices"][0]["delta"] for event in re.findall("data: ({.*})", stream)]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == whole[name]
    kinds = [name for delta in deltas for name in delta if name != "role" and delta[name]]
    assert kinds == sorted(kinds, reverse=True)


@pytest.mark.parametrize(
    "asked",
    [
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
        {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": None}},
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": None}},
    ],
)
def test_thinking_is_switched_off_in_the_template(client, asked):
    body = ask(client, **asked)
    assert "reasoning_content" not in body["choices"][0]["message"]
    assert body["choices"][0]["message"]["content"]
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_no_effort_is_the_switch_where_a_template_has_both(client, template):
    template("{# reasoning_effort #}" + THINKS)
    assert "reasoning_content" not in ask(client, reasoning_effort="none")["choices"][0]["message"]


def test_null_asks_a_template_for_nothing(client, template):
    template("{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}" + THINKS)
    for asked in ({}, {"enable_thinking": None}):
        assert ask(client, chat_template_kwargs=asked)["choices"][0]["message"]["reasoning_content"]


def test_thoughts_stay_where_they_are_or_go_on_demand(client):
    whole = ask(client, thinking_budget=6)["choices"][0]["message"]
    left = ask(client, thinking_budget=6, reasoning_format="none")["choices"][0]["message"]
    assert re.split(r"\s*</think>\s*", left["content"].strip()) == [whole["reasoning_content"], whole["content"]]
    gone = ask(client, thinking_budget=6, include_reasoning=False)["choices"][0]["message"]
    assert gone["content"] == whole["content"] and "reasoning_content" not in gone


def test_a_schema_and_forced_calls_bind_the_answer_and_not_the_thoughts(client, template):
    schema = {"enum": [{"colour": "red"}]}
    body = ask(client, thinking_budget=6, guided_json=schema, max_tokens=100)
    assert json.loads(body["choices"][0]["message"]["content"]) == {"colour": "red"}
    assert body["choices"][0]["message"]["reasoning_content"]
    template(TEMPLATES["hermes"].replace("assistant:{%", "assistant:{# </think> #}<think>\n{%"))
    tools = [{"type": "function", "function": {"name": "now"}}]
    body = ask(
        client, thinking_budget=6, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=100
    )
    message = body["choices"][0]["message"]
    assert message["reasoning_content"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["now"]


def test_what_a_model_that_does_not_think_cannot_do_is_refused_by_name(client, template):
    template(CHAT_TEMPLATE)
    for asked, name in (
        ({"enable_thinking": True}, "enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
        ({"thinking_budget_tokens": 5}, "thinking_budget_tokens"),
    ):
        assert refusal(client.chat(MESSAGES, **asked)).param == name
    for asked in (
        {"thinking_budget_tokens": -1},
        {"reasoning_format": "auto"},
        {"include_reasoning": False},
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
    ):
        assert "reasoning_content" not in ask(client, **asked)["choices"][0]["message"]


@pytest.mark.parametrize(
    "asked",
    [{"reasoning_format": "x"}, {"enable_thinking": "yes"}, {"thinking_budget_tokens": -2}, {"include_reasoning": 3}],
)
def test_wrong_fields_are_refused_by_name(client, asked):
    assert refusal(client.chat(MESSAGES, **asked)).param == next(iter(asked))


def test_other_apis_have_thoughts_in_their_own_places(client):
    asked = {"logit_bias": no_lines(client), "seed": 1, "temperature": 0, "thinking_budget_tokens": 6}
    expected = ask(client, thinking_budget_tokens=6)["choices"][0]["message"]
    thought, text = expected["reasoning_content"], expected["content"]
    message = {"messages": MESSAGES, "max_tokens": 30, **asked}
    content = client.post("/v1/messages", message).json["content"]
    assert [(block["type"], block.get("thinking", block.get("text"))) for block in content] == [
        ("thinking", thought),
        ("text", text),
    ]
    body = {"messages": MESSAGES, "think": True, "stream": False, "options": {"num_predict": 30}, **asked}
    reply = client.post("/api/chat", body).json["message"]
    assert (reply["thinking"], reply["content"]) == (thought, text)
    response = client.post("/v1/responses", {"input": MESSAGES, "max_output_tokens": 30, **asked}).json
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert [item["content"][0]["text"] for item in response["output"]] == [thought, text]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 6}
    assert client.post("/api/show", {"model": "tested"}).json["capabilities"] == ["completion", "thinking"]


def test_what_a_model_that_always_thinks_cannot_leave_is_refused_by_name(client, template):
    template(THINKS.replace("enable_thinking", "switched"))
    for asked, name in (
        ({"enable_thinking": False}, "enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
    ):
        refused = refusal(client.chat(MESSAGES, **asked))
        assert refused.param == name and name in refused.message
    for asked in ({"chat_template_kwargs": {"enable_thinking": None}}, {"enable_thinking": True}):
        assert ask(client, **asked)["choices"][0]["message"]["reasoning_content"]
