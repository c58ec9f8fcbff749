"""How calls of tools are read from replies, whatever pieces they come in, and which notation a template asks for."""

import json
from dataclasses import replace

import pytest
from conftest import DATA
from tool_templates import SILENT, TEMPLATES, TOLD

import elutq
from elutq_cli.generation import ChatTemplate, Continuation, Sampler, SamplingOptions, TextOptions
from elutq_cli.generation.after_mark import AfterMark
from elutq_cli.server.calls.choose import NOTATIONS, spoken
from elutq_cli.server.calls.notation import Tool
from elutq_cli.server.calls.reader import CallReader
from elutq_cli.server.reply import Reply
from elutq_cli.server.tools import ToolUse

KNOWN = {notation.name: notation for notation in NOTATIONS}
NAMES = ("weather", "now")


WEATHER = ("weather", {"city": 'Oslo "}" <b>', "days": [1, {"a": None}]})
ARGUMENTS = json.dumps(WEATHER[1])
NOW = ("now", {})

READ = [
    ("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', "", [WEATHER]),
    (
        "hermes",
        f'I ask.\n\n<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n<tool_call>\n'
        '{"name": "now", "arguments": {}}\n</tool_call>',
        "I ask.",
        [WEATHER, NOW],
    ),
    ("hermes", '<tool_call>{"arguments": {}, "name": "now"}</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {}}', "", [NOW]),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\nDone.', "Done.", [NOW]),
    ("hermes", "<tool_call> is what I write", "<tool_call> is what I write", []),
    ("hermes", "a <tool_ b < c <", "a <tool_ b < c <", []),
    ("hermes", '<tool_call>\n{"name": "gone", "arguments": {}}', '<tool_call>\n{"name": "gone", "arguments": {}}', []),
    ("hermes", '\n{"name": "now", "arguments": {}}\n{"name": "now", "arguments": {}}', "", [NOW, NOW]),
    ("hermes", '{"answer": {"name": "now", "arguments": {}}}', '{"answer": {"name": "now", "arguments": {}}}', []),
    ("hermes", 'So: {"name": "now", "arguments": {}}', 'So: {"name": "now", "arguments": {}}', []),
    ("hermes", '<tool_call>\n{"na', '<tool_call>\n{"na', []),
    ("hermes", '<tool_call>\n{"name": 5, "arguments": {}}', '<tool_call>\n{"name": 5, "arguments": {}}', []),
    ("llama3", f'{{"name": "weather", "parameters": {ARGUMENTS}}}', "", [WEATHER]),
    ("llama3", '<|python_tag|>{"type": "function", "name": "now", "parameters": {}}', "", [NOW]),
    (
        "llama3",
        f'{{"name": "now", "parameters": {{}}}}; {{"name": "weather", "parameters": {ARGUMENTS}}}',
        "",
        [NOW, WEATHER],
    ),
    ("llama3", '{"answer": 3}', '{"answer": 3}', []),
    ("llama3", 'See {"name": "now", "parameters": {}}', 'See {"name": "now", "parameters": {}}', []),
    ("mistral", f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}, "id": "a}}bcdefgh"}}]', "", [WEATHER]),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "now", "arguments": {}}][TOOL_CALLS][{"name": "now", "arguments": {}}]',
        "",
        [NOW, NOW],
    ),
    ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', "", [NOW, NOW]),
    ("mistral-named", f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]now{{}}", "", [WEATHER, NOW]),
    ("mistral-named", f"Well: [TOOL_CALLS]weather[CALL_ID]abc123[ARGS]{ARGUMENTS}", "Well:", [WEATHER]),
    ("mistral-named", "[TOOL_CALLS]gone[ARGS]{}", "[TOOL_CALLS]gone[ARGS]{}", []),
    ("granite", f'<|tool_call|>[{{"name": "weather", "arguments": {ARGUMENTS}}}]', "", [WEATHER]),
    ("granite", '<|tool_call|>[{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', "", [NOW, NOW]),
]


def read(notation, pieces):
    reader = CallReader(notation, NAMES)
    text, calls, arguments = "", [], []
    for part in (
        part for piece in [*pieces, None] for part in (reader.finish() if piece is None else reader.put(piece))
    ):
        if isinstance(part, str):
            text += part
        elif calls and calls[-1] is part[0]:
            arguments[-1] += part[1]
        else:
            calls.append(part[0])
            arguments.append(part[1])
    return text, [(call.name, json.loads(own)) for call, own in zip(calls, arguments, strict=True)], calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("name", "reply", "text", "calls"), READ)
def test_calls_are_told_from_text_in_whatever_pieces(name, reply, text, calls, size):
    pieces = [reply[at : at + size] for at in range(0, len(reply), size)]
    got_text, got, made = read(KNOWN[name], pieces)
    assert (got_text.strip(), got) == (text, calls)
    assert all(call.complete for call in made)
    assert len({call.call_id for call in made}) == len(made)


def test_text_comes_at_once_and_arguments_as_they_come():
    reader = CallReader(KNOWN["hermes"], NAMES)
    assert list(reader.put("Hello")) == ["Hello"]
    assert list(reader.put(" you <")) == [" you"]
    assert list(reader.put("b> ")) == [" <b>"]
    assert list(reader.put('<tool_call>\n{"name": "weather"')) == []
    ((call, nothing), (same, begun)) = reader.put(', "arguments": {"city": "Os')
    assert (call.name, nothing, begun, same) == ("weather", "", '{"city": "Os', call)
    assert [text for _, text in reader.put('lo"')] == ['lo"']
    assert not call.complete
    assert [text for _, text in reader.put("}}")] == ["}"]
    assert call.complete
    assert list(reader.finish()) == []


@pytest.mark.parametrize("size", [1, 2, 3])
def test_arguments_come_as_they_come_in_whatever_pieces(size):
    head = '<tool_call>\n{"name": "weather", "arguments": '
    reader = CallReader(KNOWN["hermes"], NAMES)
    list(reader.put(head))
    for at in range(0, len(ARGUMENTS), size):
        piece = ARGUMENTS[at : at + size]
        assert "".join(text for _, text in reader.put(piece)) == piece


def test_a_call_that_was_cut_is_not_complete():
    reader = CallReader(KNOWN["hermes"], NAMES)
    calls = list(reader.put('<tool_call>\n{"name": "now", "arguments": {"a": '))
    assert list(reader.finish()) == []
    assert [call.complete for call, _ in calls] == [False, False]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_shows_its_notation(name):
    template = ChatTemplate(TEMPLATES[name])
    how = spoken(template)
    assert (how.notation.name, how.many) == (name.partition(",")[0], name != "llama3")
    calls = [
        {"id": "123456789", "type": "function", "function": {"name": made, "arguments": arguments}}
        for made, arguments in ([WEATHER, NOW] if how.many else [WEATHER])
    ]
    text = template.render(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    )
    reply = text.partition("assistant:")[2].partition("<|end_of_text|>")[0]
    assert read(how.notation, [reply])[1] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in calls
    ]


def test_a_template_that_tells_of_a_notation_and_leaves_calls_out_is_believed():
    assert spoken(ChatTemplate(TOLD)).notation.name == "granite"


@pytest.mark.parametrize(
    ("name", "notation", "begin", "separator", "end"),
    [
        ("hermes", "the template's own", "<call>\n", "\n</call>\n<call>\n", "\n</call>"),
        ("qwen25", "the template's own", "<call>\n", "\n</call>\n<call>\n", "\n</call>"),
        ("mistral-tools", "the template's own", "[CALLS][", ", ", "]"),
        ("llama3-tools", "llama3", "", "; ", ""),
    ],
)
def test_templates_written_like_known_ones_with_other_marks_are_understood(name, notation, begin, separator, end):
    how = spoken(ChatTemplate((DATA / "templates" / f"{name}.jinja").read_text(), {"eos_token": "</s>"}))
    assert how.notation.name == notation
    assert (how.notation.begin, how.notation.separator, how.notation.end) == (begin, separator, end)


@pytest.mark.parametrize("template", [SILENT, "{{ messages[0].content }}"])
def test_a_template_that_does_not_know_of_tools_has_no_notation(template):
    assert spoken(ChatTemplate(template)) is None


def test_a_special_token_that_marks_calls_is_shown_and_forced(chat_model):
    """As Mistral's [TOOL_CALLS] is; here the token that begins a text stands for it."""
    mark = "<|begin_of_text|>"
    notation = replace(KNOWN["mistral"], openings=(mark,), skipped=(mark, "[", "]", ","), begin=f"{mark}[")
    tools = [Tool("now", {"type": "object", "properties": {}, "additionalProperties": False})]
    with elutq.load(chat_model, ctx_size=128) as model:
        marks = notation.marks(model.tokenizer)
        assert marks == {mark: model.tokenizer.bos_token_id}
        grammar = notation.grammar(model.vocabulary, model.tokenizer, tools, many=False)
        options = TextOptions(reply=True, shown_token_ids=tuple(marks.values()))
        text = Continuation(model, [5], Sampler(SamplingOptions(temp=1.5)), options, grammar)
        reply = text.read()
    assert text.tokens[0] == model.tokenizer.bos_token_id
    assert reply == f'{mark}[{{"name": "now", "arguments": {{}}}}]'
    assert read(notation, [reply])[:2] == ("", [NOW])


def test_of_several_calls_one_is_told_where_one_may_be():
    tools = ToolUse([], frozenset(NAMES), KNOWN["hermes"], None, parallel=False)
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    reply = Reply(tools)
    deltas = [*reply.put(f"Yes. {call}{call}"), *reply.finish()]
    assert [set(delta) for delta in deltas] == [{"content"}, {"tool_calls"}, {"tool_calls"}]
    assert len(reply.message["tool_calls"]) == 1
    assert (reply.message["content"], reply.calls_tools) == ("Yes.", True)


@pytest.mark.parametrize("name", ["hermes", "mistral", "mistral-named", "granite"])
def test_strict_calls_are_bound_from_their_mark_on(chat_model, name):
    """The text before it is the model's own; here a bias makes it write the mark."""
    notation = KNOWN[name]
    (opening,) = notation.openings
    tools = [Tool(own, {"type": "object", "properties": {}, "additionalProperties": False}) for own in NAMES]
    with elutq.load(chat_model, ctx_size=256) as model:
        grammar = notation.grammar(model.vocabulary, model.tokenizer, tools, many=False, opening=opening)
        state = AfterMark((opening,), grammar, model.tokenizer).start()
        written = model.tokenizer.encode(f"I ask. {opening}")
        for token in written:
            assert state.allowed(True) is None and not state.complete
            state.advance(token)
        rest = []
        while not state.complete and len(rest) < 60:
            rest.append(int(state.allowed(False)[0]))
            state.advance(rest[-1])
        text, calls, _ = read(notation, [model.tokenizer.decode([*written, *rest])])
    assert (text.strip(), [call in (NOW, ("weather", {})) for call in calls]) == ("I ask.", [True])
