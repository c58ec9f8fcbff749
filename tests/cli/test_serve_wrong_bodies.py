"""Bodies of every API in which one value is another: answered or refused, and never the server's fault."""

import copy
import json
import random

import pytest
from asgi import serving
from tool_templates import TEMPLATES

from elutq_cli.generation import ChatTemplate
from elutq_cli.server import routes

VALUES = [None, 0, -1, 1.5, 10**400, True, "", "x", "none", [], [1], ["x"], [None], [[]], [{}], {}, {"a": 1}]
VALUES += [{"type": "text"}, [{"type": "text"}], {"type": {}}, [{"role": "user", "content": [{"type": []}]}]]
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "How do you do?"}]},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "And now?"},
]
SAMPLING = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "stop": ["x"], "seed": 1}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
CHAT = {"messages": TURNS, "max_tokens": 1, **SAMPLING, "n": 1, "logit_bias": {"5": 1}, "stream": False}
ITEMS = [
    *TURNS[1:],
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "a", "output": "x"},
]
BLOCKS = [
    TURNS[0],
    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
]
MESSAGES = {"system": "S", "messages": BLOCKS, "max_tokens": 1, "stop_sequences": ["x"], "metadata": {}}
MESSAGES |= {
    "tools": [{"name": "f", "description": "F.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "disabled"},
}
OLLAMA = {"format": "", "options": {**SAMPLING, "num_predict": 1, "num_ctx": 4}, "think": False, "stream": False}
RESPONSES = {"input": ITEMS, "instructions": "S", "max_output_tokens": 1, "include": [], "metadata": {}}
RESPONSES |= {"tools": [{"type": "function", "name": "f", "description": "F.", "parameters": SCHEMA, "strict": True}]}
RESPONSES |= {"text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}, "tool_choice": "auto"}
BODIES = {
    "/v1/completions": {"prompt": "My dear", "max_tokens": 1, **SAMPLING, "best_of": 1, "echo": False, "logprobs": 1},
    "/v1/chat/completions": {**CHAT, "response_format": {"type": "text"}, "tools": [CALL], "chat_template_kwargs": {}},
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
    "/api/chat": {"messages": TURNS[1:], **OLLAMA, "tools": [CALL], "keep_alive": "5m"},
    "/api/generate": {"prompt": "My dear", "system": "S", **OLLAMA, "raw": False},
    "/v1/embeddings": {"input": ["My dear"], "encoding_format": "float"},
    "/api/embed": {"input": "My dear", "options": {"num_ctx": 4}, "truncate": True},
    "/api/embeddings": {"prompt": "My dear", "options": {"num_ctx": 4}},
    "/api/show": {"model": "tested"},
    "/tokenize": {"content": "My dear", "add_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": TURNS, "add_generation_prompt": True},
}


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model) as client:
        client.model.__dict__["chat_template"] = ChatTemplate(TEMPLATES["hermes"])
        yield client


def places(value, path=()):
    """Yield the path of everything in a body."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def with_other(body, path, value):
    changed = copy.deepcopy(body)
    *parents, last = path
    target = changed
    for key in parents:
        target = target[key]
    target[last] = value
    return changed


def test_every_route_that_reads_a_body_is_here():
    assert set(BODIES) == {*routes.TEXTS, *routes.VECTORS, *routes.ASKED}


@pytest.mark.parametrize("path", BODIES)
def test_a_body_with_a_wrong_value_is_no_fault_of_the_servers(client, path):
    body, rng = BODIES[path], random.Random(path)
    assert client.post(path, body).status == 200, client.post(path, body).body
    wrong = [(place, value) for place in places(body) for value in VALUES]
    for place, value in rng.sample(wrong, min(len(wrong), 40)):
        answer = client.post(path, json.dumps(with_other(body, place, value)).encode())
        assert answer.status in (200, 400, 404), (place, value, answer.body)
    for whole in VALUES:
        assert client.post(path, json.dumps(whole).encode()).status in (200, 400, 404), whole
