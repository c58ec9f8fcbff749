"""Hermes, and the many that took it over: Qwen 2.5 and 3, SmolLM3, Granite 4. Qwen2.5-Coder leaves the marks out."""

from elutq_cli.server.calls.notation import Notation

HERMES = Notation(
    name="hermes",
    openings=("<tool_call>",),
    skipped=("<tool_call>", "</tool_call>"),
    head='<tool_call>\n{"name": NAME, "arguments": ',
    tail="}\n</tool_call>",
    separator="\n",
    first=("{",),
)
