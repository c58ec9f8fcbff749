"""Calibration sequences: cut from text files, or from JSONL files with one document a line."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.stages.held_out import n_held_out
from elutq_cli.text_input import decode_file, json_lines, read_bytes
from elutq_formats.errors import ElutqError
from elutq_formats.source import ModelSource

JSONL = ".jsonl"

log = logging.getLogger(__name__)

ENCODED_BYTE, ENCODED_TOKEN = 60, 250
"""Memory that each byte of a text and each of its tokens take while it is encoded; measured: 131 for a byte where
a token has three."""


@dataclass(frozen=True)
class CalibrationText:
    """Sequences to calibrate on.

    Attributes:
        tokens: (num_samples or fewer, sequence_length) int64; each begins with BOS where the tokenizer puts it before
            a text.
        files: where they come from.
        sha256: of each file.
        encoding_bytes: an upper bound of the memory that it took to encode the largest file.
        held_out: (n_held_out or fewer, sequence_length) int64, other sequences of the same files, to which nothing is
            fitted; None where the files have none to spare.
        fresh: (sequences, sequence_length) int64, what the files have beside those, as much as tuning end to end may
            want, in the seed's order; nothing where the recipe does not tune so.
        used_up: those of several files of which nothing is left to hold out, where something is of others.
    """

    tokens: npt.NDArray[np.int64]
    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    encoding_bytes: int = 0
    held_out: npt.NDArray[np.int64] | None = None
    fresh: npt.NDArray[np.int64] | None = None
    used_up: tuple[Path, ...] = ()

    @classmethod
    def read(
        cls, files: Sequence[Path], checkpoint: ModelSource, recipe: Recipe, max_memory: float | None = None
    ) -> "CalibrationText":
        """Cut files into sequences that do not overlap nor span two files, and choose some by the recipe's seed.

        A file whose name ends in .jsonl holds one JSON object a line, whose ``text`` fields are joined by empty lines;
        any other is plain text. Every sequence begins as a text does at inference: with BOS where the tokenizer adds
        one, which counts in its length. Every file gives as many sequences, as far as it has them; files that hold
        fewer than the recipe asks for are used whole, with a warning. Sequences are held out of what is left when
        those have been chosen, so that none is lost by it.

        Args:
            files: to read.
            checkpoint: the model, for its tokenizer and context.
            recipe: how long sequences are, how many, and the seed.
            max_memory: refuse a text that takes more memory to encode than so many GB; None: none.

        Raises:
            ElutqError: a file cannot be read, is malformed or the same as another, all of them are too short, or one
                has a token that the model has not; the sequences are longer than the model's context; or memory.
        """
        config = checkpoint.config
        tokenizer = checkpoint.tokenizer()
        length = recipe.sequence_length
        if length > config.max_position_embeddings:
            raise ElutqError(
                f"calibration sequences of {length} tokens are longer than the model's context of "
                f"{config.max_position_embeddings}: use a smaller sequence length (--sequence-length)"
            )
        n_text = length - len(tokenizer.prefix)
        if max(tokenizer.prefix, default=0) >= config.vocab_size:
            raise ElutqError(
                f"the tokenizer begins a text with token {max(tokenizer.prefix)}, and the model has only "
                f"{config.vocab_size}: tokenizer.json is not this model's"
            )
        if n_text < 1:
            raise ElutqError(
                f"calibration sequences of {length} tokens have no room for text after BOS: use a larger "
                "sequence length (--sequence-length)"
            )
        names = ", ".join(map(str, files))
        pieces, n_tokens, most = [], 0, 0
        hashes: list[str] = []
        for file in files:
            text, sha256 = _read_file(file)
            if sha256 in hashes:
                raise ElutqError(f"{files[hashes.index(sha256)]} and {file} are the same text: give it once")
            least = ENCODED_BYTE * len(text.encode())
            if max_memory is not None and least > max_memory * 1e9:
                raise ElutqError(
                    f"{file} takes more than {least / 1e9:.1f} GB of memory to encode, above the limit "
                    f"of {max_memory:g} GB (--max-memory): use a shorter text"
                )
            tokens = np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
            n_tokens += len(tokens)
            most = max(most, ENCODED_BYTE * len(text.encode()) + ENCODED_TOKEN * len(tokens))
            pieces.append(tokens[: len(tokens) // n_text * n_text].reshape(-1, n_text))
            hashes.append(sha256)
            if len(files) > 1 and len(tokens) < n_text:
                log.warning(
                    "%s has %d tokens, less than a sequence of %d: nothing of it is used", file, len(tokens), length
                )
        sequences = np.concatenate(pieces)
        if len(sequences) == 0:
            raise ElutqError(
                f"{names} has {n_tokens} tokens, less than one calibration sequence of {length}: "
                "use a longer text or a smaller sequence length (--sequence-length)"
            )
        if len(sequences) < recipe.num_samples:
            log.warning(
                "%s has %d calibration sequences of %d tokens, not %d: all are used",
                names,
                len(sequences),
                length,
                recipe.num_samples,
            )
        rng = np.random.default_rng(recipe.seed)
        whose = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        chosen = _draw(rng, np.arange(len(sequences)), whose, recipe.num_samples)
        spare = _unlike(sequences, np.arange(len(sequences)), chosen)
        held_out = _draw(rng, spare, whose[spare], n_held_out(len(chosen)))
        prefix = np.array(tokenizer.prefix, dtype=np.int64)
        left = set(whose[spare])
        whole = [number for number, piece in enumerate(pieces) if len(piece)]
        used_up = tuple(files[number] for number in whole if left and number not in left)

        fresh = rng.permutation(_unlike(sequences, spare, held_out))[: _n_fresh(recipe)]

        def begun(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            return np.hstack([np.tile(prefix, (len(numbers), 1)), sequences[numbers]])

        others = begun(np.sort(held_out)) if len(held_out) else None
        return cls(begun(np.sort(chosen)), tuple(files), tuple(hashes), most, others, begun(fresh), used_up)


def _draw(
    rng: np.random.Generator, numbers: npt.NDArray[np.int64], files: npt.NDArray[np.int64], n_wanted: int
) -> npt.NDArray[np.int64]:
    """Draw sequences, as many of each file as of the others, as far as a file has them.

    Args:
        rng: draws.
        numbers: (n,) of the sequences.
        files: (n,) that each is of.
        n_wanted: of them; all, where there are no more.
    """
    own = [numbers[files == file] for file in np.unique(files)]
    found, left = [], n_wanted
    for place, some in enumerate(sorted(own, key=len)):  # what a short one lacks the longer ones share
        share = min(len(some), -(-left // (len(own) - place)))
        found.append(rng.choice(some, share, replace=False))
        left -= share
    return np.concatenate(found) if found else numbers


def _unlike(
    sequences: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], taken: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return those of some sequences that hold the text of none that is taken: a text may say a thing twice."""
    known = {sequences[number].tobytes() for number in taken}
    return np.array([number for number in numbers if sequences[number].tobytes() not in known], dtype=np.int64)


def _n_fresh(recipe: Recipe) -> int | None:
    """Return how many sequences tuning end to end may want; None: any number."""
    if "e2e" not in recipe.tune:
        return 0
    return None if recipe.tune_tokens is None else -(-recipe.tune_tokens // recipe.sequence_length)


def _read_file(file: Path) -> tuple[str, str]:
    """Return a file's text, and the SHA-256 of its bytes."""
    content = read_bytes(file)
    text = decode_file(content, str(file))
    if file.suffix.lower() == JSONL:
        text = "\n\n".join(_documents(file, text))
    return text, hashlib.sha256(content).hexdigest()


def _documents(file: Path, content: str) -> Iterable[str]:
    """Yield the documents of a JSONL file."""
    for place, entry in json_lines(content, str(file)):
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise ElutqError(f"{place} has no field text that is a string: every line needs one")
        yield entry["text"]
