"""Chat templates: those that models carry render as transformers renders them, and hostile ones do no harm."""

import pytest

from elutq_cli.generation.template import ChatTemplate
from elutq_formats.errors import ElutqError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why <is> it \u00e9?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "And now?"},
]

# The shapes that templates of the supported families have, with what transformers 5.23 makes of them.
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
BLOCKS = """{% if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
[INST] {{ system_message | default('', true) }} {{ message['content'] }} [/INST]
    {%- else %}
        {%- generation %}
        {{- ' ' + message['content'] + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""


def test_chatml():
    assert ChatTemplate(CHATML).render(MESSAGES) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy <is> it \u00e9?<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not ChatTemplate(CHATML).render(MESSAGES, add_generation_prompt=False).endswith("assistant\n")


def test_llama3_writes_bos_once():
    text = ChatTemplate(LLAMA3, {"bos_token": "<|begin_of_text|>"}).render(MESSAGES)
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")
    assert text.count("<|begin_of_text|>") == 1
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_blocks_are_trimmed_and_generation_is_its_contents():
    text = ChatTemplate(BLOCKS, {"eos_token": "</s>"}).render(MESSAGES)
    assert text == "[INST] Be brief. Why <is> it \u00e9? [/INST] So.</s>[INST] Be brief. And now? [/INST]"


def test_a_refusal_of_the_template_is_told():
    with pytest.raises(ElutqError, match="refuses these messages: Only user and assistant"):
        ChatTemplate(BLOCKS, {"eos_token": "</s>"}).render([*MESSAGES, {"role": "tool", "content": "1"}])


def test_json_is_not_escaped_for_html():
    assert ChatTemplate("{{ messages[1].content | tojson }}").render(MESSAGES) == '"Why <is> it \u00e9?"'


def test_small_products_and_remainders():
    assert ChatTemplate("{{ 3 * 4 }}{{ '-' * 3 }}{{ 7 % 4 }}").render(MESSAGES) == "12---3"


def test_loop_controls_and_dates():
    source = "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
    assert ChatTemplate(source).render(MESSAGES) == "system"
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render(MESSAGES)) == 10


def test_messages_are_left_as_they_were():
    with pytest.raises(ElutqError):
        ChatTemplate("{{ messages.append(1) }}").render(MESSAGES)
    assert len(MESSAGES) == 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{{ range(1000000) | list | length }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 10000000 * [1] }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 10000000 * 10000000 * 'a' }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ undefined.attribute }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_hostile_templates_are_refused(source):
    with pytest.raises(ElutqError, match="chat template"):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize("source", ["{% for %}", "{{ (", "{% if x %}", "{{ " + "(" * 5000 + ")" * 5000 + " }}"])
def test_broken_templates_are_refused_at_once(source):
    with pytest.raises(ElutqError, match="not valid Jinja"):
        ChatTemplate(source)


def test_the_last_message_is_continued_as_transformers_does():
    replied = MESSAGES[:3]
    text = ChatTemplate(CHATML).render(replied, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nSo.")
    parted = [*MESSAGES[:2], {"role": "assistant", "content": [{"type": "text", "text": "So "}, {"type": "image"}]}]
    source = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}|{% endfor %}"
    text = ChatTemplate(source).render(parted, add_generation_prompt=False, continue_final_message=True)
    assert text == "Be brief.|Why <is> it \u00e9?|So "


def test_a_continued_message_loses_its_last_spaces_only_where_the_template_trims():
    spaced = [{"role": "user", "content": " Hi"}, {"role": "assistant", "content": " Well, "}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert ChatTemplate(CHATML).render(spaced, **options).endswith("assistant\n Well, ")
    assert ChatTemplate(LLAMA3, {"bos_token": ""}).render(spaced, **options).endswith("<|end_header_id|>\n\nWell,")


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        (CHATML, [{"role": "assistant", "tool_calls": []}], "no text to go on with"),
        (CHATML, [{"role": "assistant", "content": [{"type": "image"}]}], "no text to go on with"),
        ("{{ messages[0].content[:3] }}", MESSAGES, "does not write it as it is"),
        (CHATML, [], "at least one"),
    ],
)
def test_what_cannot_be_continued_is_refused(source, messages, message):
    with pytest.raises(ElutqError, match=message):
        ChatTemplate(source).render(messages, add_generation_prompt=False, continue_final_message=True)


def test_a_message_is_either_continued_or_followed():
    with pytest.raises(ElutqError, match="leave one"):
        ChatTemplate(CHATML).render(MESSAGES, continue_final_message=True)


def test_variables_reach_the_template_and_tools_are_none_when_not_given():
    source = "{{ tools is none }} {{ documents is none }} {{ enable_thinking is defined }} {{ enable_thinking }}"
    assert ChatTemplate(source).render(MESSAGES) == "True True False "
    variables = {"tools": [], "documents": [], "enable_thinking": False}
    assert ChatTemplate(source).render(MESSAGES, variables=variables) == "False False True False"


def test_entries_of_messages_reach_the_template_and_none_is_as_good_as_absent():
    source = "{% for m in messages %}{{ m.content is defined }} {{ m.tool_calls[0].function.name }};{% endfor %}"
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": {}}}
    messages = [{"role": "assistant", "content": content, "tool_calls": [call]} for content in ("", None)]
    assert ChatTemplate(source).render(messages) == "True now;False now;"


def test_reasoning_is_read_under_each_of_its_names():
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    for name in ("reasoning_content", "reasoning", "thinking"):
        assert ChatTemplate(source).render([{"role": "assistant", "content": "", name: "Hm."}]) == "Hm. Hm."
