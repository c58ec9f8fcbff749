"""The tokenizer that travels inside a model file, and text that grows token by token."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

import tokenizers

from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError, FormatError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A Hugging Face tokenizer, with what the model's configuration says about special tokens.

    Attributes:
        bos_token_id: first token of a text, if the model has one.
        eos_token_ids: every token that ends a text.
        special_tokens: how special tokens are spelled, by name: ``bos_token``, ``eos_token``, ``pad_token``, ...
        prefix: what the tokenizer puts before a text: BOS, or nothing. Its post-processor says so, as in transformers.
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

    @classmethod
    def from_json(cls, text: str, config: ModelConfig, special_tokens: Mapping[str, str] | None = None) -> "Tokenizer":
        """Read the contents of a ``tokenizer.json``; the other arguments are those of the constructor.

        Raises:
            FormatError: they are damaged, or newer than the installed tokenizers package.
        """
        try:
            return cls(tokenizers.Tokenizer.from_str(text), config, special_tokens)
        except Exception as error:  # the package raises bare Exceptions
            reason = " ".join(str(error).split())
            raise FormatError(
                f"the tokenizer cannot be read by tokenizers {tokenizers.__version__}: {reason:.120}"
            ) from error

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: what to encode; special tokens written out in it are recognised.
            add_special_tokens: add what the tokenizer puts around a text, such as BOS; never a second BOS.

        Raises:
            ElutqError: the text has a token for which the model has no embedding.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        if add_special_tokens and self.prefix and ids[: 2 * len(self.prefix)] == [*self.prefix * 2]:
            del ids[: len(self.prefix)]
        if (highest := max(ids, default=0)) >= self._vocab_size:
            token = self._backend.id_to_token(highest)
            raise ElutqError(
                f"the text has token {token!r} ({highest}), but the model's vocabulary ends at {self._vocab_size}"
            )
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD, padding of the vocabulary nothing."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

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

    Decoding token by token would break characters that span tokens and lose the spaces that SentencePiece drops at the
    start of a text; so the tokens of the last piece are decoded again with the new ones, and the difference is new.
    """

    _MAX_PENDING = 16
    """Tokens held back at most: a character spans four byte tokens, so more are bytes that will never be one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start an empty text."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._n_shown = 0

    def put(self, token_id: int) -> str:
        """Append a token; return the text that it completes, often none."""
        self._ids.append(token_id)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._n_shown < self._MAX_PENDING:
            return ""
        return self._show(text)

    def finish(self) -> str:
        """Return the text of tokens still held back."""
        return self._show(self._new_text())

    def _new_text(self) -> str:
        shown = self._tokenizer.decode(self._ids[: self._n_shown])
        return self._tokenizer.decode(self._ids)[len(shown) :]

    def _show(self, text: str) -> str:
        if text:
            del self._ids[: self._n_shown]
            self._n_shown = len(self._ids)
        return text
