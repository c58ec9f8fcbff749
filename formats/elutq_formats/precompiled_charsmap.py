"""The table by which SentencePiece normalizes characters, checked: what reads it later trusts every offset in it.

It is the size of a trie in bytes, the trie, and the texts that replace what the trie finds, each with a zero after it.

Source: SentencePiece's src/normalizer.cc; the units of the trie are those of the Darts-clone double array.
"""

import base64
from typing import Any

import numpy as np

from elutq_formats.gguf import ValueType
from elutq_formats.metadata import Metadata

_KEY = "tokenizer.ggml.precompiled_charsmap"
_BLOCK = 256
_IS_VALUE = np.uint32(1 << 31)


def read_charsmap(metadata: Metadata) -> dict[str, Any] | None:
    """Read the table, as the normalizer of a ``tokenizer.json``; None when there is none, or it is empty.

    Raises:
        FormatError: it is not such a table.
    """
    if _KEY not in metadata:
        return None
    is_signed = metadata.has_type(_KEY, ValueType.INT8)
    values = metadata.array(_KEY, ValueType.INT8 if is_signed else ValueType.UINT8)
    table = np.array(values, dtype=np.int8 if is_signed else np.uint8).tobytes()
    if not table:
        return None
    if reason := _fault(table):
        metadata.refuse(f"{_KEY} {reason}")
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode("ascii")}


def _fault(table: bytes) -> str | None:
    """Return what is wrong with a table, if anything."""
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size == 0 or size % (4 * _BLOCK) or size > len(table) - 4:
        return f"has {len(table)} bytes, but calls for a trie of {size}"
    units = np.frombuffer(table, dtype="<u4", count=size // 4, offset=4)
    texts = table[4 + size :]
    is_value = (units & _IS_VALUE) != 0
    # A step goes from a unit to one in the block that its offset leads to.
    offsets = (units >> 10) << ((units & np.uint32(1 << 9)) >> 6)
    targets = np.arange(len(units), dtype=np.uint32) ^ offsets
    if np.any(targets[~is_value] >= len(units)):
        return "has a trie that leads out of itself"
    leaves = targets[~is_value & ((units >> 8) & 1 == 1)]
    starts = units[leaves] & ~_IS_VALUE
    at = np.frombuffer(texts, dtype=np.uint8)
    if np.any(starts >= len(texts)) or not texts.endswith(b"\0"):
        return "has a trie that leads out of its texts"
    if np.any((at[starts] & 0xC0) == 0x80) or not _is_utf8(texts):
        return "has texts that are not UTF-8"
    return None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
