"""What is asked of a text, and the tokens that it is made of."""

from dataclasses import dataclass
from typing import Literal

from elutq_cli.options import OptionError, settle_types

MOST_STOP_CHARACTERS = 1 << 16
"""Of all stop strings together: more are no stop strings, and would take memory a hundred times their size."""

FinishReason = Literal["stop", "length", "context", "time", "cancelled"]


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, its own text (``Tokenizer.spell``), and the logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class GeneratedToken:
    """One token, generated or of a prompt that was asked for too.

    Attributes:
        token_id: the token.
        text: the text it completes: none where it is special, or a part of a character that spans tokens.
        logprob: natural logarithm of the probability that the model gave it, before penalties, temperature and
            filters; None unless asked for, and of the first token of a prompt.
        alternatives: the likeliest tokens in its place, as many as asked for.
    """

    token_id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class TextOptions:
    """Where a text begins and ends, and what is reported of it.

    Attributes:
        n_predict: tokens to generate at most; -1: until the context is full.
        stop: strings that end the text; neither they nor what follows them is handed out.
        ignore_eos: go on past the model's end-of-text tokens.
        logprobs: report each token's probability, and those of so many of the likeliest; None: do not.
        stop_token_ids: tokens that end the text as the model's end-of-text tokens do, under ``ignore_eos`` too.
        min_tokens: tokens before which nothing but ``n_predict`` and a full context ends the text: those that would
            end it cannot be drawn, and stop strings are not looked for.
        echo: the prompt's tokens come first, with their log-probabilities where ``logprobs`` asks for them (but the
            first one), and a token that ends the text comes last, with no text of its own.
        shown_token_ids: special tokens that are part of the text, as the vocabulary spells them; others are not.
        reply: the text answers a prompt that a chat template made, and does not go on where the prompt ends: the space
            by which SentencePiece marks the start of a text is not part of it.
    """

    n_predict: int = -1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    echo: bool = False
    reply: bool = False
    shown_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            OptionError: one is of a wrong type or out of range.
        """
        settle_types(self)
        if self.n_predict < -1:
            problem = f"is {self.n_predict}: give a number of tokens, or -1 for no limit"
            raise OptionError("n_predict", problem, "the number of tokens (-n)")
        if self.logprobs is not None and self.logprobs < 0:
            raise OptionError("logprobs", f"is {self.logprobs}: it must be 0 or more")
        if (n_characters := sum(map(len, self.stop))) > MOST_STOP_CHARACTERS:
            raise OptionError("stop", f"has {n_characters} characters: {MOST_STOP_CHARACTERS} are the most")
        if self.min_tokens < 0:
            raise OptionError("min_tokens", f"is {self.min_tokens}: it must be 0 or more")
        if 0 <= self.n_predict < self.min_tokens:
            problem = f"is {self.min_tokens}, but the text may have no more than {self.n_predict}"
            raise OptionError("min_tokens", problem)
