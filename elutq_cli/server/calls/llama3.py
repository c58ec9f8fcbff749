"""Llama 3.1 to 3.3: the reply is the call's object and nothing else; the tag of its own tools may come before it."""

from elutq_cli.server.calls.notation import Notation

LLAMA3 = Notation(
    name="llama3",
    openings=(),
    first=("<|python_tag|>", "{"),
    skipped=("<|python_tag|>", ";", ","),
    head='{"name": NAME, "parameters": ',
    separator="; ",
)
