"""A reply as the blocks that some APIs make of it: thoughts, text and calls of tools, one after another."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

BlockKind = Literal["thinking", "text", "call"]

Change = tuple[Literal["begins", "goes on", "ends"], "Block", str]
"""What happens to a block, and the text that is added to it."""

_PROSE: tuple[tuple[BlockKind, str], ...] = (("thinking", "reasoning_content"), ("text", "content"))


@dataclass
class Block:
    """A part of a reply.

    Attributes:
        kind: what its text is; that of a call is the arguments, as JSON.
        index: among the blocks of the reply.
        call: index of the call among those of the reply.
        call_id: the call's.
        name: the tool's.
        text: as far as it came.
    """

    kind: BlockKind
    index: int
    call: int = 0
    call_id: str = ""
    name: str = ""
    text: str = ""


class Blocks:
    """Blocks in the making, fed with OpenAI's deltas."""

    def __init__(self) -> None:
        """Begin with none."""
        self._current: Block | None = None
        self._n_begun = 0

    def feed(self, delta: Mapping[str, Any]) -> Iterator[Change]:
        """Yield what a delta, or a whole message, does."""
        for kind, name in _PROSE:
            if text := delta.get(name):
                yield from self._add(Block(kind, self._n_begun), text)
        for at, call in enumerate(delta.get("tool_calls") or ()):
            function = call.get("function") or {}
            block = Block(
                "call", self._n_begun, call.get("index", at), call.get("id") or "", function.get("name") or ""
            )
            yield from self._add(block, function.get("arguments") or "")

    def finish(self) -> Iterator[Change]:
        """Yield the end of the last block."""
        if self._current is not None:
            yield "ends", self._current, ""
            self._current = None

    def _add(self, block: Block, text: str) -> Iterator[Change]:
        current = self._current
        if current is None or (current.kind, current.call) != (block.kind, block.call):
            yield from self.finish()
            self._current = current = block
            self._n_begun += 1
            yield "begins", block, ""
        if text:
            current.text += text
            yield "goes on", current, text


def arguments_of(text: str) -> dict[str, Any] | None:
    """Return the arguments of a call; None: it is not whole, because the reply was cut in the middle."""
    try:
        arguments: dict[str, Any] = json.loads(text or "{}")
    except ValueError:
        return None
    return arguments


def blocks_of(message: Mapping[str, Any]) -> list[Block]:
    """Return the blocks of a whole message."""
    blocks = Blocks()
    return [block for change, block, _ in chain(blocks.feed(message), blocks.finish()) if change == "ends"]
