"""Chat templates that know of tools, one for each way in which families of models write calls."""

_TOOLS = "{% if tools %}tools:{{ tools | tojson }}<|end_of_text|>{% endif %}"
_TURNS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if m.tool_calls %}CALLS{% endif %}<|end_of_text|>"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def _template(call, begin="", between="", end="", only_one=False):
    loop = "{% for c in m.tool_calls %}" + call + "{% if not loop.last %}" + between + "{% endif %}{% endfor %}"
    refusal = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}" if only_one else ""
    return "{{ bos_token }}" + _TOOLS + _TURNS.replace("CALLS", refusal + begin + loop + end)


def _object(key, rest=""):
    return '{"name": "{{ c.function.name }}", "' + key + '": {{ c.function.arguments | tojson }}' + rest + "}"


TEMPLATES = {
    "hermes": _template("\n<tool_call>\n" + _object("arguments") + "\n</tool_call>"),
    "llama3": _template(_object("parameters"), only_one=True),
    "mistral": _template(_object("arguments", ', "id": "{{ c.id }}"'), "[TOOL_CALLS][", ", ", "]"),
    "mistral-named": _template("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"),
    "granite": _template(_object("arguments"), "<|tool_call|>[", ", ", "]"),
    "the template's own, without marks": _template(_object("arguments"), between="\n"),
    "the template's own": _template("```call\n" + _object("parameters") + "\n```", between="\n"),
}

TOLD = "{% if tools %}Write <|tool_call|> to call: {{ tools | tojson }}{% endif %}" + _TURNS.replace("CALLS", "")
"""Says how to call, and leaves out calls that were made."""

SILENT = _TURNS.replace("CALLS", "")
"""Does not know of tools."""
