"""Texts under a grammar: they match it, whatever the model makes of the prompt and whatever else ends them."""

import copy
import datetime
import json
import os
import sys

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from json_schemas import SCHEMAS

import elutq
from elutq_cli.generation import Continuation, Conversation, Sampler, SamplingOptions
from elutq_cli.generation.grammar import Grammar, GrammarError
from elutq_formats.errors import ElutqError

N_SCHEMAS = int(os.environ.get("ELUTQ_TEST_SCHEMAS", "40"))
"""500 take half a minute."""

WILD = {"temp": 1.5, "top_k": 0, "top_p": 1, "min_p": 0}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(chat_model):
    with elutq.load(chat_model, ctx_size=1024, parallel=3) as model:
        yield model


@settings(max_examples=N_SCHEMAS, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(schema=SCHEMAS)
def test_a_text_under_a_random_schema_parses_and_validates(model, schema):
    text = elutq.generate(model, "The data are", json_schema=schema, seed=len(json.dumps(schema)), **WILD)
    value = json.loads(text.read())
    assert text.finish_reason == "stop"
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)


def test_a_text_ends_when_nothing_can_follow_and_not_by_a_token_of_its_own(model):
    text = elutq.generate(model, "Yes or", grammar='root ::= "yes" | "no"', min_tokens=50, ignore_eos=True, **WILD)
    assert text.read() in ("yes", "no")
    assert (text.finish_reason, text.ended_by_token) == ("stop", False)


def test_an_optional_end_is_the_models_choice_after_min_tokens(model):
    (eos,) = model.tokenizer.eos_token_ids
    for min_tokens, text in ((0, ""), (3, "aaa")):
        bias = {eos: 100.0}
        made = elutq.generate(model, "x", grammar='root ::= "a"*', min_tokens=min_tokens, logit_bias=bias, temp=0)
        assert made.read().startswith(text)
        assert made.ended_by_token
        assert len(made.tokens) == 1 or min_tokens


def test_a_grammar_of_nothing_but_an_empty_text_ends_at_once(model):
    vocabulary = model.vocabulary
    text = Continuation(model, [1, 2], Sampler(SamplingOptions()), None, Grammar.of_regex(vocabulary, ""))
    assert (text.read(), text.finish_reason) == ("", "stop")


def test_limits_and_stop_strings_end_a_text_in_the_middle_of_its_grammar(model):
    options = {"json_schema": PERSON, "seed": 3, **WILD}
    assert elutq.generate(model, "x", max_tokens=3, **options).read().startswith("{")
    text = elutq.generate(model, "x", stop='"name"', **options)
    assert (text.read().strip(), text.finish_reason, text.stop_string_found) == ("{", "stop", True)


def test_the_grammar_wins_over_a_ban_and_over_min_tokens(model):
    """Where a token that would end the text is all that it allows."""
    comma = model.tokenizer.encode(",")[0]
    text = elutq.generate(
        model, "x", grammar='root ::= ","', stop_token_ids=[comma], min_tokens=9, logit_bias={comma: -100}
    )
    assert (text.read(), text.tokens, text.finish_reason) == ("", [comma], "stop")


def test_logprobs_are_the_models_own_before_the_grammar(model):
    model.clear()
    free = next(elutq.generate(model, "It was a dark", logprobs=1, temp=0))
    model.clear()
    (bound,) = elutq.generate(model, "It was a dark", logprobs=1, temp=0, grammar='root ::= "}"')
    assert bound.text == "}"
    assert bound.logprob < bound.alternatives[0].logprob == free.logprob


def test_the_same_seed_gives_the_same_text_also_beside_others(model):
    def texts():
        model.clear()
        return [
            text.read() for text in elutq.generate(model, ["A b", "A c", "A d"], json_schema=PERSON, seed=5, **WILD)
        ]

    together = texts()
    assert together == texts()
    assert all(set(json.loads(text)) == {"name", "age"} for text in together)


def test_a_chat_goes_on_after_a_reply_that_its_grammar_ended(model):
    conversation, sampler = Conversation(model, model.chat_template), Sampler(SamplingOptions(temp=0))
    grammar = Grammar.of_choice(model.vocabulary, ["yes, I do"])
    for _ in range(2):
        reply = conversation.ask("Do you?", sampler, None, grammar)
        assert reply.read() == "yes, I do"
        conversation.keep(reply)
    assert reply.reused_tokens > 0
    assert conversation._seen.text.endswith("yes, I do")
    assert model.tokenizer.decode(conversation._seen.tokens, False).endswith("yes, I do")


@pytest.mark.parametrize(
    ("schema", "place", "word"),
    [
        ({"type": "array", "uniqueItems": True}, "", "uniqueItems"),
        ({"properties": {"a": {"items": {"not": {}}}}}, "properties.a.items", "not"),
        ({"$defs": {"n": {"contains": {}, "type": "array"}}, "items": {"$ref": "#/$defs/n"}}, "$defs.n", "contains"),
        ({"items": [{"type": "null"}, {"not": {}}]}, "items.1", "not"),
        ({"anyOf": [{"type": "null"}, {"pattern": "(?=a)", "type": "string"}]}, "anyOf.1", "look-ahead"),
        ({"$ref": "http://a.example/b"}, "", "a.example"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "", "minimum"),
        ({"enum": ["x" * (1 << 18)]}, "", "characters"),
        (False, "", "nothing matches"),
        ([], "", ""),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused_with_the_part(model, schema, place, word):
    with pytest.raises(GrammarError, match="cannot be honoured") as caught:
        Grammar.of_json_schema(model.vocabulary, schema)
    assert word in str(caught.value)
    assert (f"(at {place})" in str(caught.value)) == bool(place)


def test_a_format_that_is_not_known_restricts_nothing_and_one_that_is_does(model):
    """Formats are left alone where they are no keyword: names of properties, values."""
    short, day = {"type": "string", "maxLength": 3, "format": "path"}, {"type": "string", "format": "date"}
    schema = {
        "type": "object",
        "properties": {
            "format": {"$ref": "#/$defs/short"},
            "const": {"const": {"format": "path"}},
            "either": {"anyOf": [short, {"type": "null"}]},
            "all": {"type": "array", "prefixItems": [day], "items": short, "maxItems": 2, "minItems": 2},
        },
        "required": ["format", "const", "either", "all"],
        "additionalProperties": False,
        "$defs": {"short": short},
    }
    as_given = copy.deepcopy(schema)
    made = json.loads(elutq.generate(model, "x", json_schema=schema, seed=1, **WILD).read())
    assert schema == as_given
    jsonschema.validate(made, schema)
    assert made["const"] == {"format": "path"}
    datetime.date.fromisoformat(made["all"][0])


@pytest.mark.parametrize("format", ["regex", "uri-reference", "password", "binary", "base64", "uuid4", "ipv4network"])
def test_formats_of_the_standard_and_of_pydantic_are_taken(model, format):
    grammar = Grammar.of_json_schema(model.vocabulary, {"enum": ["a"], "format": format})
    assert not grammar.start().complete


def test_a_schema_is_refused_without_advice_to_set_options_that_are_not_here(model):
    schema = {"type": "object", "properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}
    with pytest.raises(GrammarError, match="oneOf constraints are not supported") as caught:
        model.compile_grammar(schema, None)
    assert "coerce_one_of" not in str(caught.value)


def test_a_schema_of_a_thousand_levels_is_refused(model):
    schema = {"type": "null"}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(GrammarError):
        Grammar.of_json_schema(model.vocabulary, schema)


@pytest.mark.parametrize(
    "grammar",
    ["", "root ::= missing", "start: /(/", "root ::= root", "#" * (1 << 19)],
)
def test_a_wrong_grammar_is_refused(model, grammar):
    with pytest.raises(GrammarError):
        elutq.generate(model, "x", grammar=grammar)


def test_schema_and_grammar_together_are_refused(model):
    with pytest.raises(ElutqError, match="give one"):
        elutq.generate(model, "x", grammar='root ::= "a"', json_schema=PERSON)


def test_without_llguidance_the_message_says_what_to_install(chat_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with (
        elutq.load(chat_model, ctx_size=64) as model,
        pytest.raises(ElutqError, match=r"pip install 'elutq\[grammar\]'"),
    ):
        elutq.generate(model, "x", json_schema=PERSON)


def test_a_mask_of_a_large_vocabulary_comes_from_another_thread(model, monkeypatch):
    from elutq_cli.generation import constraint

    asked = []
    submit = constraint._threads().submit
    monkeypatch.setattr(constraint, "LARGE_VOCABULARY", 1)
    monkeypatch.setattr(constraint._threads(), "submit", lambda work: asked.append(work) or submit(work))
    text = elutq.generate(model, "x", json_schema=PERSON, seed=1, **WILD)
    jsonschema.validate(json.loads(text.read()), PERSON)
    assert len(asked) == len(text.tokens) - 1
