"""Mistral: a list of objects after a mark, and since 2025 a mark, a name and its arguments for each call."""

import re

from elutq_cli.server.calls.notation import Notation

MISTRAL = Notation(
    name="mistral",
    openings=("[TOOL_CALLS]",),
    skipped=("[TOOL_CALLS]", "[", "]", ","),
    head='{"name": NAME, "arguments": ',
    begin="[TOOL_CALLS][",
    separator=", ",
    end="]",
)

MISTRAL_NAMED = Notation(
    name="mistral-named",
    openings=("[TOOL_CALLS]",),
    skipped=("[TOOL_CALLS]",),
    head="[TOOL_CALLS]BARE[ARGS]",
    tail="",
    pattern=re.compile(r"(?P<name>[\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)"),
    bare_names=True,
)
