"""The tokenizer that travels inside a model file, and text that grows token by token."""

import codecs
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile

import tokenizers

from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError, FormatError
from elutq_formats.token_bytes import TokenBytes

_SHORT_TEXT = 1 << 16
"""Characters that are encoded in no time."""

_USUAL_TOKEN = 16
"""Characters in a token, at most, in all but strange texts."""


PANIC = "PanicException"
"""Of pyo3, which derives it from BaseException and has no place to import it from."""


@contextmanager
def _explaining(kind: type[ElutqError], failure: str) -> Iterator[None]:
    """Turn whatever the package raises into one line: bare Exceptions, and where it panics what is no Exception.

    Raises:
        ElutqError: of this kind.
    """
    try:
        yield
    except ElutqError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise  # the program's own end
        reason = " ".join(str(error).split())
        raise kind(f"{failure}: {reason:.120}") from error


class Tokenizer:
    """A Hugging Face tokenizer, with what the model's configuration says about special tokens.

    Attributes:
        bos_token_id: first token of a text, if the model has one.
        eos_token_ids: every token that ends a text.
        special_tokens: how special tokens are spelled, by name: ``bos_token``, ``eos_token``, ``pad_token``, ...
        prefix: what the tokenizer puts before a text: BOS, or nothing. Its post-processor says so, as in transformers.
        on_invalid: the handler of decoding errors that makes of bytes that are not UTF-8 what ``decode`` does.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: ModelConfig, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        """Wrap a tokenizer; its own truncation and padding, leftovers of training, are switched off.

        Args:
            backend: the tokenizer.
            config: of the model.
            special_tokens: as the checkpoint names them, those that the vocabulary has being special in text too;
                None: it says nothing, and BOS and EOS are spelled from the configuration's ids.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._vocab_size = config.vocab_size
        self.bos_token_id = config.bos_token_id
        self.eos_token_ids = config.eos_token_ids
        if special_tokens is None:
            ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
            spelled = {name: None if token is None else self.token(token) for name, token in ids.items()}
            special_tokens = {name: token for name, token in spelled.items() if token is not None}
        else:
            _make_special(backend, special_tokens.values())
        self.special_tokens = special_tokens
        probe = backend.encode("a")
        added = takewhile(lambda entry: entry[1], zip(probe.ids, probe.special_tokens_mask, strict=True))
        self.prefix = tuple(token for token, _ in added)
        every = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in every.items() if token.special)
        self._bytes = TokenBytes(backend.decoder)
        self.on_invalid = self._bytes.on_invalid

    @classmethod
    def from_json(cls, text: str, config: ModelConfig, special_tokens: Mapping[str, str] | None = None) -> "Tokenizer":
        """Read the contents of a ``tokenizer.json``; the other arguments are those of the constructor.

        Raises:
            FormatError: they are damaged, or newer than the installed tokenizers package.
        """
        with _explaining(FormatError, f"the tokenizer cannot be read by tokenizers {tokenizers.__version__}"):
            return cls(tokenizers.Tokenizer.from_str(text), config, special_tokens)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: what to encode; special tokens written out in it are recognised.
            add_special_tokens: add what the tokenizer puts around a text, such as BOS; never a second BOS.

        Raises:
            ElutqError: the text is not Unicode, has a token for which the model has no embedding, or is more than the
                tokenizer can do.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise ElutqError(f"the text has {half}, half of a surrogate pair and no character: leave it out") from error
        ids = self._encode(text, add_special_tokens)
        if add_special_tokens and self.prefix and ids[: 2 * len(self.prefix)] == [*self.prefix * 2]:
            del ids[: len(self.prefix)]
        if (highest := max(ids, default=0)) >= self._vocab_size:
            token = self._backend.id_to_token(highest)
            raise ElutqError(
                f"the text has token {token!r} ({highest}), but the model's vocabulary ends at {self._vocab_size}"
            )
        return ids

    def least_tokens(self, text: str, limit: int) -> int:
        """Return a number of tokens that a text certainly has; where it has far more than a limit, more than that.

        Of a long text only as much is encoded as it takes to find out. Where a beginning is cut off, a few tokens of
        its end are not those of the whole text; it is believed to half of its tokens.
        """
        length, least = max(_SHORT_TEXT, _USUAL_TOKEN * limit), 0
        while length < len(text) and least <= limit:
            least = len(self._encode(text[:length], False)) // 2
            length *= 2
        return least

    def encode_beginning(self, text: str, limit: int) -> list[int]:
        """Return the first token ids of a text, a limit at most, with what goes before a text; see ``least_tokens``."""
        length = max(_SHORT_TEXT, _USUAL_TOKEN * limit)
        while True:
            ids = self.encode(text[:length], add_special_tokens=True)
            if length >= len(text) or len(ids) // 2 >= limit:
                return ids[:limit]
            length *= 2

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # A batch lets other threads run meanwhile, and the fast one does not compute offsets.
        with _explaining(ElutqError, "the tokenizer cannot take this text apart"):
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD, padding of the vocabulary nothing."""
        with _explaining(ElutqError, "the tokenizer cannot put these tokens together"):
            text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int, first: bool = False) -> bytes:
        """Return the bytes that a token stands for; those of a special token spell it, padding has none.

        Args:
            token_id: the token.
            first: it begins a text: without the space that the tokenizer drops there.
        """
        piece = self.token(token_id)
        if piece is None or token_id in self._special_ids:
            return (piece or "").encode()
        return self._bytes.of(piece, first)

    def spell(self, token_id: int) -> str:
        """Return a token's own text, its space included, and bytes that are no whole character in hexadecimal."""
        return self.token_bytes(token_id).decode("utf-8", "backslashreplace")

    def is_hidden(self, token_id: int) -> bool:
        """Return whether a token is nothing in a text: special, or padding of the vocabulary."""
        return token_id in self._special_ids or self.token(token_id) is None

    def token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it, such as ``<|end_of_text|>``."""
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def token_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id


def _make_special(backend: tokenizers.Tokenizer, spellings: Iterable[str]) -> None:
    """Make tokens of the vocabulary special, as transformers does with those that a tokenizer names."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for spelling in dict.fromkeys(spellings):
        if spelling not in special and backend.token_to_id(spelling) is not None:
            backend.add_special_tokens([tokenizers.AddedToken(spelling, special=True, normalized=False)])


class TextStream:
    """Text of a growing sequence of tokens, handed out in pieces that never split a character.

    Together they are what ``Tokenizer.decode`` makes of the tokens, but for bytes that are not UTF-8 in the middle of
    pieces ``<0xNN>``: one that is no character does not spoil those around it.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool = False, shown: Collection[int] = ()) -> None:
        """Start a text.

        Args:
            tokenizer: of the tokens.
            continues: it goes on where another ended, so that the space before its first word is part of it.
            shown: special tokens that are part of it.
        """
        self._tokenizer, self._shown = tokenizer, shown
        self._at_start = not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokenizer.on_invalid)

    def put(self, token_id: int) -> str:
        """Append a token; return the text that it completes, often none."""
        if self.hides(token_id):
            return ""
        piece = self._tokenizer.token_bytes(token_id, self._at_start)
        self._at_start = self._at_start and token_id in self._shown
        return self._utf8.decode(piece)

    def hides(self, token_id: int) -> bool:
        """Return whether a token is nothing in this text."""
        return self._tokenizer.is_hidden(token_id) and token_id not in self._shown

    def finish(self) -> str:
        """Return U+FFFD for the bytes of a character that will not be completed."""
        return self._utf8.decode(b"", final=True)

    @property
    def incomplete(self) -> bool:
        """Whether bytes wait for the rest of their character."""
        return bool(self._utf8.getstate()[0])
