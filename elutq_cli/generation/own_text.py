"""Text that a model writes of its own accord: what it is likely to meet again, to calibrate it on.

Source: calibration on a model's own text (Williams et al. 2024, arXiv 2410.17170), begun with tokens drawn at random
(LLM-QAT, Liu et al. 2023, arXiv 2305.17888) or, where the model has a chat template, by what it lets users ask (Magpie,
Xu et al. 2024, arXiv 2406.08464).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.machine.memory import available_memory
from elutq_cli.token_prefix import common_length
from elutq_formats.errors import ElutqError
from elutq_native import Engine, NativeSequence, Run

AT_ONCE = 16
"""Texts that are written in the same passes."""

LENGTH = 512
"""Tokens of a text."""

PLACE = "elutq-user-message"
"""Stands for what a user says, to find what a template puts before it."""


def own_texts(model: LanguageModel, n_tokens: int, seed: int, threads: int | None = None) -> Iterator[str]:
    """Yield texts of LENGTH tokens, or of as many as the model's context holds, until they have so many together.

    Every other one begins as a chat does, up to where a user speaks, if there is a template; the others, with a token
    drawn at random. All else is drawn as the model predicts it, at temperature 1. A text that ends goes on with what
    comes then. The texts depend on the model, the seed and, as those of `elutq run`, the kernels; not on threads.

    Args:
        model: writes them.
        n_tokens: of all texts.
        seed: of all that is drawn.
        threads: default: one for each physical core this process may use.

    Raises:
        ElutqError: memory is short, or the weights are damaged.
        NativeError: threads are short.
    """
    rng, length = np.random.default_rng(seed), min(LENGTH, model.native.context_length)
    left, prefix, chat = -(-n_tokens // length), model.tokenizer.prefix, _chat_start(model, length)
    _check_memory(model, min(left, AT_ONCE), length)
    words, padding = _words(model), _padding(model)
    with Engine(model.native, threads, AT_ONCE) as engine:
        number = 0
        while left:
            starts = []
            for _ in range(min(left, AT_ONCE)):
                drawn = [*prefix, int(rng.choice(words))][:length]
                starts.append(drawn if chat is None or number % 2 else chat)
                number += 1
            left -= len(starts)
            for tokens in _continued(model, engine, starts, length, padding, rng):
                begun = common_length(tokens, prefix) == len(prefix)  # BOS comes again with every use of the text
                yield model.tokenizer.decode(tokens[len(prefix) if begun else 0 :], skip_special_tokens=False)


def _check_memory(model: LanguageModel, n_texts: int, length: int) -> None:
    """Refuse what this machine cannot hold; fewer texts at once would be other texts.

    Raises:
        ElutqError: the keys and values of so many texts are larger than the memory available.
    """
    own, memory = model.native.cache_bytes(length), available_memory()
    if memory is not None and n_texts * own > memory:
        fitting = max(1, memory // 2 // own) * length
        raise ElutqError(
            f"{n_texts} texts of {length} tokens, which are written together, need {n_texts * own / 1e9:.2f} GB for "
            f"keys and values, and only {memory / 1e9:.2f} GB are available: use -n {fitting}"
        )


def _continued(
    model: LanguageModel,
    engine: Engine,
    starts: list[list[int]],
    length: int,
    padding: NDArray[np.int64],
    rng: np.random.Generator,
) -> list[list[int]]:
    """Return the starts, each gone on with to so many tokens, none of them padding."""
    texts = [list(start) for start in starts]
    sequences = [NativeSequence(model.native, length) for _ in texts]
    new = texts
    while unfinished := [number for number, text in enumerate(texts) if len(text) < length]:
        runs = [Run(sequences[number], new[number]) for number in unfinished]
        logits = np.concatenate(engine.eval(runs))
        logits[:, padding] = -np.inf
        if not np.isfinite(logits.max()):
            raise ElutqError("the logits are not finite: the weights are damaged; make the model again")
        # The largest of log p - log(exponential noise) is a draw from p (Gumbel). Noise of float32 is 0 too often.
        noise = rng.standard_exponential(logits.shape)
        chosen = (logits - np.log(noise)).argmax(axis=1)
        new = list(texts)
        for number, token in zip(unfinished, chosen.tolist(), strict=True):
            texts[number].append(token)
            new[number] = [token]
    return texts


def _words(model: LanguageModel) -> NDArray[np.int64]:
    """Return the tokens that a text may begin with: whole characters, and nothing special."""
    tokenizer = model.tokenizer
    found = [token for token in range(model.native.vocab_size) if not tokenizer.is_hidden(token)]
    whole = [token for token in found if _is_text(tokenizer.token_bytes(token))]
    return np.array(whole or found or range(model.native.vocab_size))


def _is_text(piece: bytes) -> bool:
    try:
        return bool(piece.decode().strip())
    except UnicodeDecodeError:
        return False


def _padding(model: LanguageModel) -> NDArray[np.int64]:
    """Return the rows of the vocabulary for which there is no token."""
    vocabulary = range(model.native.vocab_size)
    return np.array([token for token in vocabulary if model.tokenizer.token(token) is None], dtype=np.int64)


def _chat_start(model: LanguageModel, length: int) -> list[int] | None:
    """Return the tokens before what a user says first; None: no template lets users speak, or not soon enough."""
    try:
        if model.chat_template is None:
            return None
        text = model.chat_template.render([{"role": "user", "content": PLACE}], add_generation_prompt=False)
    except ElutqError:  # a template of tools, or one that is damaged: chats are none of this model's
        return None
    before, found, _ = text.partition(PLACE)
    tokens = model.tokenizer.encode(before)
    return tokens if found and 0 < len(tokens) < length else None
