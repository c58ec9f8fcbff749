"""A prompt's keys and values in a file, so that a later run need not compute them again.

The file, little-endian: MAGIC, the model's fingerprint, the type of cache (and LONG), the number of tokens and the
first one that layers with a window hold (uint32), their ids (uint32 each), the state of the context
(``Context.export_state``) in pieces of PIECE_TOKENS tokens, and the SHA-256 of all that. The checksum finds accidents;
whoever writes such a file decides what the model believes to have read.
"""

import hashlib
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from elutq_cli.generation.generation import Generation
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.streams import shown_line
from elutq_formats.atomic import atomic_output, check_output
from elutq_formats.errors import ElutqError
from elutq_native import CACHE_TYPES, NativeError

FORMAT = b"elutqkv"
MAGIC = FORMAT + b"4"
DIGEST_BYTES = hashlib.sha256().digest_size
PIECE_TOKENS = 64
LONG = 256
"""Added to the type of cache where keys were turned as in contexts beyond the original one (longrope)."""
ENOUGH = 0.75
"""A file that holds this share of a prompt is left as it is: flash memory wears, and a gigabyte takes its time."""


class PromptCache:
    """One file, read when a session begins and written after its first text, unless it held most of the prompt.

    Layers with a window give keys and values up while a reply is made: where they may, it is written before that.
    """

    def __init__(self, path: Path, model: LanguageModel) -> None:
        """Put what the file holds into the model's context; a cache that is of no use is told on stderr and replaced.

        Args:
            path: the file; it need not exist yet.
            model: its scheduler started and its context empty.

        Raises:
            ElutqError: no file can be written there, or one is there that is no prompt cache.
        """
        check_output(path, force=True)
        _check_own(path)
        self._path, self._model = path, model
        self._fingerprint = model.file.fingerprint()
        self._done = False
        if path.exists():
            try:
                with path.open("rb") as file:
                    self._restore(file)
            except (OSError, EOFError, ElutqError, NativeError) as error:
                model.context.clear()
                reason = error.strerror if isinstance(error, OSError) else str(error)
                told = f"{reason or 'damaged or cut short'}; the prompt is computed, and the file replaced"
                print(f"{shown_line(path)}: {told}", file=sys.stderr)

    def keep_in_time(self, generation: Generation) -> None:
        """Write the first text's prompt if more of the text may overwrite some of it.

        Args:
            generation: the text, its prompt computed.

        Raises:
            ElutqError: the disk refuses; the file is as it was.
        """
        native, ctx_size = self._model.native, self._model.ctx_size
        if native.cache_bytes(ctx_size) < native.state_bytes(ctx_size, ctx_size):
            self.keep(generation)

    def keep(self, generation: Generation) -> None:
        """Write the first text's prompt, as far as it was computed; later calls do nothing.

        Args:
            generation: the text.

        Raises:
            ElutqError: the disk refuses; the file is as it was.
        """
        tokens = self._model.context.tokens[: generation.prompt_tokens]
        if not self._done and generation.reused_tokens < min(len(tokens), ENOUGH * generation.prompt_tokens):
            with atomic_output(self._path, force=True) as temporary, temporary.open("wb") as file:
                self._save(file, tokens)
        self._done = True

    def _form(self) -> int:
        scaling = self._model.file.config.rope_scaling
        is_long = scaling is not None and scaling.is_long(self._model.ctx_size)
        return int(CACHE_TYPES[self._model.cache_type]) + (LONG if is_long else 0)

    def _save(self, file: BinaryIO, tokens: tuple[int, ...]) -> None:
        digest = hashlib.sha256()

        def write(piece: bytes | memoryview) -> None:
            digest.update(piece)
            file.write(piece)

        numbers = [self._form(), len(tokens), self._model.context.sequence.oldest, *tokens]
        write(MAGIC + self._fingerprint + np.array(numbers, "<u4").tobytes())
        for start in range(0, len(tokens), PIECE_TOKENS):
            n_tokens = min(PIECE_TOKENS, len(tokens) - start)
            write(self._model.context.export_state(start, n_tokens).data.cast("B"))
        file.write(digest.digest())

    def _restore(self, file: BinaryIO) -> None:
        """Append what the file holds to the context, and check all of it; the caller clears the context on an error."""
        model, digest = self._model, hashlib.sha256()

        def read(n_bytes: int) -> bytes:
            piece = file.read(n_bytes)
            if len(piece) < n_bytes:
                raise EOFError
            digest.update(piece)
            return piece

        if read(len(MAGIC)) != MAGIC:
            raise ElutqError("made by another version")
        if read(DIGEST_BYTES) != self._fingerprint:
            raise ElutqError("made with another model")
        if (form := int.from_bytes(read(4), "little")) != self._form():
            turned = abs(form - self._form()) == LONG
            other = "size of context, in which positions turn otherwise" if turned else "cache type"
            raise ElutqError(f"made with another {other}")
        n_tokens, oldest = (int.from_bytes(read(4), "little") for _ in range(2))
        sequence = model.context.sequence
        size = len(MAGIC) + 2 * DIGEST_BYTES + 12 + 4 * n_tokens + sequence.state_bytes(0, n_tokens, oldest)
        if size != self._path.stat().st_size:
            raise EOFError
        tokens = np.frombuffer(read(4 * n_tokens), "<u4").tolist()
        for start in range(0, n_tokens, PIECE_TOKENS):
            piece = tokens[start : start + PIECE_TOKENS]
            state = np.frombuffer(read(sequence.state_bytes(start, len(piece), oldest)), np.uint8)
            if start + len(piece) <= model.ctx_size:
                model.context.adopt(piece, state)
        expected = digest.digest()
        if file.read() != expected:
            raise ElutqError("damaged")


def _check_own(path: Path) -> None:
    """Refuse a file that no prompt cache can ever have been: it is to be kept.

    Raises:
        ElutqError: it is such a file, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(FORMAT))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ElutqError(f"cannot read {path}: {error.strerror}") from error
    if not FORMAT.startswith(begin):
        raise ElutqError(f"{path} is not a prompt cache of elutq, and would be replaced: choose another name")
