"""Thoughts: told from the answer in whatever pieces they come, and ended where their budget does."""

import json
import re

import pytest

import elutq
from elutq_cli.generation import (
    ChatTemplate,
    Continuation,
    Conversation,
    Sampler,
    SamplingOptions,
    TextOptions,
)
from elutq_cli.generation.grammar import Grammar
from elutq_cli.generation.terminal import stream_text
from elutq_cli.generation.thinking import NO_BUDGET, Marks, Thinking, ThoughtReader, marks_of

MARKS = Marks("<think>", "</think>")
OPTIONS = TextOptions(40, reply=True, ignore_eos=True)


@pytest.fixture(scope="module")
def model(chat_model):
    with elutq.load(chat_model, ctx_size=256) as model:
        yield model


def reply(model, within=False, budget=NO_BUDGET, answer=None, options=OPTIONS, prompt="It was", **sampling):
    rule = Thinking(MARKS, within, budget, answer, model.tokenizer, model.native.vocab_size)
    text = Continuation(model, model.encode(prompt), Sampler(SamplingOptions(temp=0, **sampling)), options, rule)
    text.read()
    return text


def read(text, within, size):
    reader = ThoughtReader(MARKS, within)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    parts = [part for piece in pieces for part in reader.put(piece)] + list(reader.finish())
    return tuple("".join(part for kind, part in parts if kind is is_thought) for is_thought in (True, False))


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("text", "within", "thoughts", "answer"),
    [
        ("<think>\nI see.\n\nYes.\n</think>\n\nHello <b>", False, "I see.\n\nYes.", "Hello <b>"),
        ("\n I see.</think>Hello", True, "I see.", "Hello"),
        ("Hello <think>no</think>", False, "", "Hello <think>no</think>"),
        ("  Hello\n", False, "", "  Hello\n"),
        ("\n<think>\n\n</think>\n\nHello", False, "", "Hello"),
        ("I think, </thin", True, "I think, </thin", ""),
        ("<thi", False, "", "<thi"),
        ("a < b </think> c </think> d", True, "a < b", "c </think> d"),
        ("\n\n", True, "", ""),
    ],
)
def test_thoughts_are_told_from_the_answer(text, within, thoughts, answer, size):
    assert read(text, within, size) == (thoughts, answer)


def test_thoughts_come_at_once():
    reader = ThoughtReader(MARKS, within=False)
    assert list(reader.put("<think>\nI see")) == [(True, "I see")]
    assert list(reader.put(" it. </")) == [(True, " it.")]
    assert list(reader.put("b>")) == [(True, " </b>")]
    assert list(reader.put("\n</think>\n\n")) == []
    assert list(reader.put("So")) == [(False, "So")]


def test_templates_that_mark_thoughts_are_known_by_the_closing_mark():
    assert marks_of("{{ x.split('</think>') }}") == MARKS
    assert marks_of("{{ '[/THINK]' }}").opening == "[THINK]"
    assert marks_of("{{ messages }}") is None
    assert MARKS.opened_by("assistant\n<think>\n") and not MARKS.opened_by("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_budget_closes_the_thoughts(model, budget):
    text = reply(model, within=True, budget=budget)
    thoughts, mark, answer = text.text.partition("\n</think>\n\n")
    assert mark and answer
    assert text.thought_tokens == budget
    assert model.tokenizer.decode(text.tokens[:budget]).strip() == thoughts.strip()
    assert len(text.tokens) == 40


def test_without_a_budget_a_reply_is_as_it_was(model):
    model.clear()
    free = elutq.generate(model, "It was", 40, ignore_eos=True, temp=0).read()
    model.clear()
    assert reply(model, within=True).text.strip() == free.strip()
    model.clear()
    assert (text := reply(model, budget=3)).text.strip() == free.strip()
    assert text.thought_tokens == 0  # it does not begin with one


def test_a_reply_that_opens_its_thoughts_itself_has_a_budget_too(model):
    opening = model.tokenizer.encode("<think>")
    rule = Thinking(MARKS, False, 2, None, model.tokenizer, model.native.vocab_size)
    state = rule.start()
    for token in opening:
        assert state.allowed(True) is None
        state.advance(token)
    for token in (5, 6):
        assert state.allowed(True) is None
        state.advance(token)
    closing = model.tokenizer.encode("\n</think>\n\n")
    for token in closing:
        assert state.allowed(True).tolist() == [token]
        state.advance(token)
    assert state.allowed(True) is None
    assert state.thought_tokens == 2


def test_an_answer_matches_its_grammar_after_thoughts_and_at_once_without(model):
    answer = Grammar.of_json_schema(model.vocabulary, {"enum": [["one", 2]]})
    options = TextOptions(60, reply=True)
    text = reply(model, within=True, budget=5, answer=answer, options=options)
    assert json.loads(text.text.partition("</think>")[2]) == ["one", 2]
    assert (text.thought_tokens, text.finish_reason) == (5, "stop")
    assert json.loads(reply(model, budget=5, answer=answer, options=options).text) == ["one", 2]


def test_in_a_chat_thoughts_are_dimmed_and_bounded(model, capsys):
    template = ChatTemplate("{{ messages[-1].content }}<think>{# </think> #}")
    conversation = Conversation(model, template, reasoning_budget=4)
    (line,) = model.tokenizer.encode("\n")
    sampler = Sampler(SamplingOptions(temp=0, logit_bias=((line, -100.0),)))
    generation = conversation.ask("It was", sampler, TextOptions(20))
    stream_text(generation, thoughts=conversation.thoughts)
    conversation.keep(generation)
    shown = capsys.readouterr().out
    dimmed = re.findall(r"\x1b\[2m(.*?)\x1b\[0m", shown, re.S)
    thoughts, answer = re.split(r"\s*</think>\s*", generation.text)
    assert "".join(dimmed) == thoughts.strip()
    assert shown.endswith(f"\x1b[0m\n\n{answer}\n")
    assert generation.thought_tokens == 4


def test_thoughts_do_not_end_a_text_whose_answer_is_bound(model):
    (eos,) = model.tokenizer.eos_token_ids
    answer = Grammar.of_choice(model.vocabulary, ["yes"])
    options = TextOptions(60, reply=True)
    sure = ((eos, 100.0),)
    text = reply(model, within=True, budget=5, answer=answer, options=options, logit_bias=sure)
    assert text.text.endswith("</think>\n\nyes")
    text = reply(model, within=True, budget=5, options=options, logit_bias=sure)
    assert (len(text.tokens), text.ended_by_token) == (1, True)
