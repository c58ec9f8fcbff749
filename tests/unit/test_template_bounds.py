"""Chat templates end within a bound, whatever they do; what a conversation needs is far within it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from elutq_cli.generation import template_work
from elutq_cli.generation.template import LARGEST_SOURCE, ChatTemplate
from elutq_formats.errors import ElutqError

MESSAGES = [{"role": "user", "content": "Say yes. " * 50}, {"role": "assistant", "content": "Yes."}]

LONG = "{% set ns = namespace(text='a' * 100000) %}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
DOUBLINGS = "{% set ns = namespace(x=START) %}{% for i in range(100) %}{% set ns.x = DOUBLE %}{% endfor %}{{ LAST }}"


def doubling(start, double, last="''"):
    return DOUBLINGS.replace("START", start).replace("DOUBLE", double).replace("LAST", last)


def assert_refused(source):
    with pytest.raises(ElutqError, match="the chat template does more than a conversation needs"):
        ChatTemplate(source).render(MESSAGES)


@pytest.fixture
def little_work(monkeypatch):
    """A bound that is reached soon; with the real one, a loop takes some seconds to reach it."""
    monkeypatch.setattr(template_work, "LARGEST_WORK", 1 << 20)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "a text",
        "{{ a }}",
        "{% if a == b %}{% endif %}",
        "{% if a is odd %}{% endif %}",
        "{{ 'x'.upper() }}",
        "{{ a | abs }}",
        "{% set x = [a, b] %}",
        "{% set x %}{{ a }}{% endset %}",
        "{{ messages | tojson }}",
        "{{ messages | map(attribute='content') | join }}",
    ],
)
@pytest.mark.usefixtures("little_work")
def test_loops_in_loops_end(body):
    assert_refused(LOOPS.replace("BODY", body))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{% macro twice(n) %}{{ twice(n - 1) ~ twice(n - 1) if n }}{% endmacro %}{{ twice(40) }}",
        "{% macro all(n) %}{{ all(varargs, varargs) if n | length < 60 }}{{ varargs }}{% endmacro %}{{ all([], 1) }}",
        "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
        "{{ [1] | slice(1000000000) | list }}",
        "{{ ([[1]] * 10000) | sum(start=[]) }}",
        "{{ range(99999) | map('center', 99999) | list }}",
        "{{ range(99999) | map(attribute='a' + '.a' * 99999) | list }}",
        "{{ range(99999) | list | sort(attribute='a' + ',a' * 99999) }}",
    ],
)
@pytest.mark.usefixtures("little_work")
def test_recursion_and_filters_of_many_elements_end(source):
    with pytest.raises(ElutqError, match=r"does more than a conversation needs|recursion"):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        doubling("'ab'", "ns.x ~ ns.x"),
        doubling("'ab'", "ns.x + ns.x"),
        doubling("'ab'", "'%s%s' % (ns.x, ns.x)"),
        doubling("'ab'", "'{0}{0}'.format(ns.x)"),
        doubling("'ab'", "[ns.x, ns.x] | join"),
        doubling("'ab'", "ns.x.replace('a', 'aa').replace('b', 'bb')"),
        doubling("[1]", "ns.x + ns.x"),
        doubling("[1]", "[ns.x, ns.x]", "ns.x"),
        doubling("[1]", "(ns.x, ns.x)", "{ns.x: 1}"),
        doubling("{}", "{'a': ns.x, 'b': ns.x}", "ns.x | tojson"),
        doubling("{}", "dict(a=ns.x, b=ns.x)", "ns.x == ns.x | string"),
        doubling("3", "ns.x * ns.x"),
        doubling("3", "ns.x - (0 - ns.x)").replace("range(100)", "range(9999)"),
    ],
)
@pytest.mark.usefixtures("little_work")
def test_what_doubles_in_a_loop_is_refused(source):
    assert_refused(source)


@pytest.mark.parametrize(
    "expression",
    [
        "'x' | center(999999999)",
        "'x'.center(999999999)",
        "'x'.ljust(999999999)",
        "'x'.zfill(999999999)",
        "('\t' * 1000).expandtabs(999999)",
        "'a\nb' | indent(999999999)",
        "'a\vb' | indent('x' * 99999999)",
        "('x' * 1000000) | wordwrap(1)",
        "('x' * 99999) | wordwrap(1, wrapstring='y' * 99999)",
        "('<!--' * 999999) | striptags",
        "('<!---->' | safe * 99999).striptags()",
        "[1] | batch(999999999, 1) | list",
        "[1] | slice(999999999) | list",
        "5 | round(-999999999)",
        "5.5 | round(999999999, 'ceil')",
        "'%999999999d' % 1",
        "'%*d' % (999999999, 1)",
        "'%.999999999f' % 1",
        "'%999999999d' | format(1)",
        "['%999999999d'] | format(1)",
        "'{:999999999}'.format(1)",
        "'{:{}}'.format(1, '999999999')",
        "'{a:>{b}}'.format_map({'a': 1, 'b': 999999999})",
        "('%(a)s' * 99999) % {'a': 'b' * 99999}",
        "('{0}' * 99999).format('b' * 99999)",
        "[1] | tojson(indent=999999999)",
        "[1, 2] | tojson(separators=('a' * 99999, 'b'))",
        "('a' * 99999).replace('a', 'b' * 99999)",
        "('a' * 99999) | replace(new='b' * 99999, old='a')",
        "('b' * 99999).join('a' * 99999)",
        "('a' * 99999) | join('b' * 99999)",
        "('a' * 999999).rfind('ab' + 'a' * 99999)",
        "('a' * 999999).strip('b' * 99999 + 'a')",
        "('a' * 999999) | trim('b' * 99999 + 'a')",
        "7 ** (7 ** 7)",
        "{}.fromkeys(range(99999), 'a' * 9999)",
        "strftime_now('%c' * 99999)",
    ],
)
def test_what_makes_far_more_than_it_is_given_is_refused(expression):
    assert_refused("{{ " + expression + " }}")
    assert_refused("{% if " + expression + " %}{% endif %}")


@pytest.mark.parametrize(
    "block", ["{% filter center(999999999) %}x{% endfilter %}", "{% set x | center(999999999) %}{% endset %}"]
)
def test_filters_of_blocks_are_bounded(block):
    assert_refused(block)


@pytest.mark.parametrize("expression", ["'x' | center(999999999)", "'x' * 999999999", "('a' * 9999999) | wordwrap(1)"])
def test_constants_are_not_computed_while_a_template_is_compiled(expression):
    ChatTemplate("{% if false %}{{ " + expression + " }}{% endif %}")


@pytest.mark.parametrize(
    "body", ["{% if 'b' in ns.text %}{% endif %}", "{{ ns.text[1:] }}", "{% set x = ns.text.find('b') %}"]
)
@pytest.mark.usefixtures("little_work")
def test_a_long_text_costs_more_than_a_short_one(body):
    source = "{% for a in range(999) %}" + body + "{% endfor %}"
    assert_refused(LONG + source)
    ChatTemplate(LONG.replace("100000", "1") + source.replace("999", "99")).render(MESSAGES)


@pytest.mark.parametrize(
    "expression",
    [
        "'x'.encode('punycode')",
        "5.0.hex.__self__",
        "(5).to_bytes(9, 'big')",
        "dict.update",
        "namespace(__html__=1)",
        "lipsum(9)",
    ],
)
def test_what_no_template_needs_is_not_there(expression):
    with pytest.raises(ElutqError, match="the chat template fails"):
        ChatTemplate("{{ " + expression + ".x.y }}").render(MESSAGES)


def test_objects_of_the_caller_do_not_reach_the_template():
    with pytest.raises(ElutqError, match="a message holds texts, numbers, lists and mappings, not PosixPath"):
        ChatTemplate("{{ x.unlink() }}").render(MESSAGES, variables={"x": Path("/")})


def test_a_template_longer_than_any_is_refused_before_it_is_compiled():
    with pytest.raises(ElutqError, match=f"{LARGEST_SOURCE + 1} characters"):
        ChatTemplate(" " * (LARGEST_SOURCE + 1))


def test_long_conversations_are_far_within_the_bound(monkeypatch):
    monkeypatch.setattr(template_work, "LARGEST_WORK", template_work.LARGEST_WORK // 8)
    source = (
        "{%- macro text(message, messages) %}{{ message.content | trim }}{% endmacro %}"
        "{%- set ns = namespace(seen=[]) %}{% for m in messages[::-1] %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% break %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% set ns.seen = ns.seen + [m] %}"
        "{{ '<|' ~ m.role ~ '|>' + text(m, messages) + '\n' if m in messages and messages is not none }}{% endfor %}"
    )
    messages = [{"role": ("user", "assistant")[at % 2], "content": "So it goes. " * 50} for at in range(300)]
    assert ChatTemplate(source).render(messages).count("<|user|>") == 150


@pytest.mark.usefixtures("little_work")
def test_each_rendering_has_its_own_bound_in_every_thread():
    template = ChatTemplate("{% for a in range(messages | length) %}{% for b in range(500) %}{% endfor %}{% endfor %}.")

    def render(n_messages):
        try:
            return template.render(MESSAGES[:1] * n_messages)
        except ElutqError:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(render, [1, 9000, 2, 9000, 1, 2])) == [".", "refused", ".", "refused", ".", "."]
