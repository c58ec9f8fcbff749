"""What a text of `elutq serve` has to match: every field that asks for it, and what they say of wrong ones."""

import json
import re
from typing import Literal

import jsonschema
import pydantic
import pytest
from asgi import refusal, serving
from served import Server

MESSAGES = [{"role": "user", "content": "How do you do?"}]
WILD = {"temperature": 1.5, "top_k": -1, "top_p": 1, "min_p": 0, "max_tokens": 400}
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]}
COLOUR |= {"additionalProperties": False}


@pytest.fixture(scope="module")
def client(chat_model):
    with serving(chat_model, parallel=3) as client:
        yield client


def content(answer):
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR, "strict": True}}),
        ("response_format", {"type": "json_object", "schema": COLOUR}),
        ("json_schema", COLOUR),
        ("guided_json", COLOUR),
        ("guided_json", json.dumps(COLOUR)),
        ("structured_outputs", {"json": COLOUR, "regex": None}),
        ("guided_regex", r'\{"colour": "(red|green)"\}'),
        ("regex", r'\{"colour": "(red|green)"\}'),
        ("structured_outputs", {"regex": r'\{"colour": "(red|green)"\}'}),
        ("guided_choice", ['{"colour": "red"}', '{"colour": "green"}']),
        ("structured_outputs", {"choice": ['{"colour": "red"}']}),
        ("grammar", r'root ::= "{\"colour\": \"" ("red" | "green") "\"}"'),
        ("grammar_string", r'root ::= "{\"colour\": \"" ("red" | "green") "\"}"'),
        ("ebnf", r'root ::= "{\"colour\": \"" ("red" | "green") "\"}"'),
        ("guided_grammar", r'start: "{\"colour\": \"" ("red" | "green") "\"}"'),
        ("structured_outputs", {"grammar": r'start: "{\"colour\": \"" ("red" | "green") "\"}"'}),
    ],
)
def test_a_text_matches_what_is_asked_of_it_under_every_name(client, field, value):
    chat = client.chat(MESSAGES, **WILD, **{field: value})
    jsonschema.validate(json.loads(content(chat)), COLOUR)
    assert chat.json["choices"][0]["finish_reason"] == "stop"
    completion = client.complete("The colour:", n=2, **WILD, **{field: value})
    for choice in completion.json["choices"]:
        jsonschema.validate(json.loads(choice["text"]), COLOUR)


@pytest.mark.parametrize(
    "asked", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}]
)
def test_json_object_is_any_object(client, asked):
    ends = [token for end in '"}' for token in client.model.tokenizer.encode(end)]
    sure = {str(token): 20 for token in ends}  # strings and objects would go on for long
    assert type(json.loads(content(client.chat(MESSAGES, **WILD, **asked, logit_bias=sure)))) is dict


def test_a_stream_and_every_choice_match(client):
    asked = {"response_format": {"type": "json_schema", "json_schema": {"schema": COLOUR}}, "n": 3, "seed": 4}
    whole = client.chat(MESSAGES, **WILD, **asked).json["choices"]
    events = client.chat(MESSAGES, **WILD, **asked, stream=True).body.decode()
    texts = ["", "", ""]
    for event in re.findall("data: ({.*})", events):
        for choice in json.loads(event)["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [choice["message"]["content"] for choice in whole]
    for text in texts:
        jsonschema.validate(json.loads(text), COLOUR)


def test_a_schema_that_cannot_be_honoured_is_refused_with_field_and_part(client):
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    error = refusal(client.chat(MESSAGES, response_format={"type": "json_schema", "json_schema": {"schema": schema}}))
    assert error.param == "response_format"
    assert "properties.tags" in error.message and "uniqueItems" in error.message
    assert refusal(client.complete(guided_json=schema)).param == "guided_json"


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": "json"},
        {"response_format": {"type": "structural_tag"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
        {"json_schema": "{"},
        {"guided_regex": "("},
        {"guided_regex": 5},
        {"guided_choice": "yes"},
        {"guided_choice": [1]},
        {"grammar": "root"},
        {"structured_outputs": {"structural_tag": "x"}},
        {"structured_outputs": {"json": COLOUR, "regex": "a"}},
    ],
)
def test_a_wrong_structure_is_refused_by_name(client, asked):
    (name,) = asked
    assert refusal(client.chat(MESSAGES, **asked)).param.partition(".")[0] == name


def test_two_structures_are_refused(client):
    assert "give one" in refusal(client.complete(regex="a", grammar='root ::= "a"')).message


class Answer(pydantic.BaseModel):
    """A schema of pydantic's making, with a reference and a choice."""

    class Part(pydantic.BaseModel):
        size: Literal["small", "large"]
        whole: bool

    colour: Literal["red", "green"]
    parts: list[Part] = pydantic.Field(max_length=2)
    note: Literal["none"] | None


def test_openais_own_client_parses_pydantics_models(chat_model):
    server = Server(chat_model, "-c", 512)
    try:
        with server.client() as client:
            options = {"model": "any", "messages": MESSAGES, "temperature": 1.5, "response_format": Answer}
            reply = client.chat.completions.parse(**options)
            assert isinstance(reply.choices[0].message.parsed, Answer)
            with client.chat.completions.stream(**options) as stream:
                parsed = stream.get_final_completion().choices[0].message.parsed
            assert isinstance(parsed, Answer)
    finally:
        assert server.stop() == (0, "")
