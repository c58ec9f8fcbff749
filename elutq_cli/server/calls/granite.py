"""Granite 3: a list of objects after a mark."""

from elutq_cli.server.calls.notation import Notation

GRANITE = Notation(
    name="granite",
    openings=("<|tool_call|>",),
    skipped=("<|tool_call|>", "[", "]", ","),
    head='{"name": NAME, "arguments": ',
    begin="<|tool_call|>[",
    separator=", ",
    end="]",
)
