"""Compare the token ids of conversations with those of transformers' `apply_chat_template`.

usage: compare_chat.py CHECKPOINT...

For each folder: 20 conversations, with and without what begins the next reply, and those that end with a reply also
continued within it. Both sides read the same folder; a conversation that one side refuses, the other has to refuse.
Prints what differs; exits 1 if anything does. Needs transformers, beside this package and what it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from elutq_cli.generation import template_environment
from elutq_cli.generation.template import ChatTemplate
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Ålesund"}}}
CODE = 'def twice(n: int) -> int:\n\t"""2n"""\n    return 2 * n  # {{ n }} {% n %}\n'


def user(content: object, **entries: object) -> dict[str, Any]:
    """Return a turn of the user."""
    return {"role": "user", "content": content, **entries}


def assistant(content: object, **entries: object) -> dict[str, Any]:
    """Return a reply."""
    return {"role": "assistant", "content": content, **entries}


def system(content: object) -> dict[str, Any]:
    """Return the system's turn."""
    return {"role": "system", "content": content}


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one question": ([user("Why is the sky blue?")], {}),
    "a system": ([system("Answer in one word."), user("Why?")], {}),
    "an empty system": ([system(""), user("Why?")], {}),
    "a reply": ([user("Hi"), assistant("Hello! How can I help?")], {}),
    "three turns": ([user("1+1?"), assistant("2"), user("2+2?"), assistant("4"), user("And 4+4?")], {}),
    "a system and three turns": ([system("Count."), user("One"), assistant("Two"), user("Three")], {}),
    "many scripts": ([user("Grüße, 你好, привет, こんにちは, שלום, नमस्ते, ไทย"), assistant("Ça va, 谢谢。")], {}),
    "emoji": ([user("👩‍👩‍👧 🏳️‍🌈 \U0001f600e\u0301 ﬁ ½")], {}),
    "code": ([user(f"What does this do?\n```python\n{CODE}```"), assistant(CODE)], {}),
    "an empty question": ([user("")], {}),
    "an empty reply": ([user("Hi"), assistant(""), user("Hello?")], {}),
    "spaces around": ([system("  Be kind.  "), user("\n\n  Well?\t\n"), assistant("  Well.  \n\n")], {}),
    "spaces alone": ([user("   "), assistant("\n"), user("\t\t")], {}),
    "lines of CRLF": ([user("one\r\ntwo\r\n"), assistant("three\rfour")], {}),
    "special tokens in the text": ([user("<|im_end|>\n<|im_start|>system\n<|endoftext|> </s> <s> <think>")], {}),
    "numbers and signs": ([user("3.14159 1,000,000 1e-9 !!! ... --- ??? (((x)))[[y]]{{z}} <a href='b'>&amp;")], {}),
    "a long question": ([user("It was a dark night, and the rain fell. " * 200)], {}),
    "tools": ([user("Weather in Ålesund?")], {"tools": [TOOL]}),
    "a call": (
        [
            user("Weather?"),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "content": '{"t": -3}', "tool_call_id": "call00001"},
            assistant("Cold."),
        ],
        {"tools": [TOOL]},
    ),
    "a call without content": (
        [
            system("Use tools."),
            user("Weather?"),
            assistant(None, tool_calls=[CALL]),
            {"role": "tool", "content": "wet"},
        ],
        {},
    ),
}


class Clock(datetime):
    """A clock that stands: a template may write the date."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        """Return the same time, always."""
        return datetime(2025, 3, 9, 5, 7, 8)


def endings(messages: list[dict[str, Any]]) -> Iterator[dict[str, bool]]:
    """Yield the ways in which a conversation's text can end."""
    yield {"add_generation_prompt": True}
    yield {"add_generation_prompt": False}
    if messages[-1]["role"] == "assistant":
        yield {"add_generation_prompt": False, "continue_final_message": True}


def theirs(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> object:
    """Return transformers' token ids, or None where it refuses."""
    try:
        return tokenizer.apply_chat_template(messages, return_dict=False, **options)
    except Exception:
        return None


def compare(folder: Path) -> tuple[int, int, int]:
    """Compare a checkpoint's conversations; return how many are equal, how many there are, how many both refuse."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with Checkpoint.open(folder) as checkpoint:
        own_tokenizer, source = checkpoint.tokenizer(), checkpoint.chat_template or ""
    template = ChatTemplate.for_tokenizer(source, own_tokenizer)
    n_equal = n_all = n_refused = 0
    for name, (messages, variables) in CONVERSATIONS.items():
        for ending in endings(messages):
            try:
                text = template.render(messages, **ending, variables=variables)
                ours = own_tokenizer.encode(text)
            except ElutqError:
                ours = None
            expected = theirs(tokenizer, messages, {**ending, **variables})
            n_all += 1
            n_equal += ours == expected
            n_refused += ours is None and expected is None
            if ours != expected:
                print(f"{folder.name}: {name}, {ending}\n  transformers {expected}\n  ours         {ours}")
    return n_equal, n_all, n_refused


def main() -> None:
    """Compare every folder named on the command line."""
    different = False
    with patch.object(chat_template_utils, "datetime", Clock), patch.object(template_environment, "datetime", Clock):
        for folder in map(Path, sys.argv[1:]):
            n_equal, n_all, n_refused = compare(folder)
            different |= n_equal != n_all
            counts = f"{len(CONVERSATIONS)} conversations, {n_all} texts: {n_equal} equal ({n_refused} refused by both)"
            print(f"{folder.name}: {counts}")
    sys.exit(different)


if __name__ == "__main__":
    main()
