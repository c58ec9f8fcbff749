"""The bytes that a token stands for, whatever its tokenizer spells them by.

It knows nothing of token ids: a piece is a token as the vocabulary spells it.
"""

import codecs
import json
import re
from typing import Any

import tokenizers

_ANCHOR = "a"
"""A piece that every decoder leaves as it is."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

EACH_BYTE = "elutq-each-byte"
"""Handler of decoding errors: U+FFFD for each byte that is no UTF-8, as SentencePiece's decoders have it."""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


class TokenBytes:
    """Decodes pieces one by one.

    Byte-level BPE writes each byte as a character of its own, SentencePiece a space as U+2581 and bytes that are in no
    other piece as ``<0xNN>``; any other piece is decoded between two known ones, for decoders treat the first and the
    last piece of a text differently.

    Attributes:
        on_invalid: the handler of decoding errors that puts as many U+FFFD for bytes that are no UTF-8 as the decoder.
    """

    def __init__(self, decoder: tokenizers.decoders.Decoder | None) -> None:
        """Learn how a tokenizer decodes; one without a decoder puts spaces between tokens."""
        self._decode = " ".join if decoder is None else decoder.decode
        kinds = set() if decoder is None else _kinds(json.loads(decoder.__getstate__()))
        self._alphabet = _byte_alphabet() if "ByteLevel" in kinds else None
        self._has_byte_pieces = "ByteFallback" in kinds
        self._n_after = len(self._decode([_ANCHOR, _ANCHOR])) - len(_ANCHOR)
        self.on_invalid = EACH_BYTE if self._has_byte_pieces else "replace"

    def of(self, piece: str, first: bool = False) -> bytes:
        """Return the bytes of a piece.

        Args:
            piece: a token, as the vocabulary spells it.
            first: it begins a text: without the space that decoders drop there.
        """
        if self._alphabet is not None and all(character in self._alphabet for character in piece):
            return bytes(self._alphabet[character] for character in piece)
        if self._has_byte_pieces and (found := _BYTE.fullmatch(piece)) and not (first and int(found[1], 16) < 0x80):
            return bytes([int(found[1], 16)])
        before = [] if first else [_ANCHOR]
        text = self._decode([*before, piece, _ANCHOR])
        return text[sum(map(len, before)) : len(text) - self._n_after].encode()


def _kinds(settings: dict[str, Any]) -> set[str]:
    """Return the names of a decoder and of those that it is a sequence of."""
    return {settings["type"]}.union(*map(_kinds, settings.get("decoders", ())))


def _byte_alphabet() -> dict[str, int]:
    """Return the bytes by the characters that stand for them in byte-level BPE.

    Source: GPT-2's vocabulary. Printable characters of Latin-1 stand for themselves, the other bytes, in their order,
    are U+0100 and what follows it.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
