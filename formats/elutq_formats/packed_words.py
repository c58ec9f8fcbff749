"""Codes of a few bits in words of 32: what other quantizers store a matrix in."""

import numpy as np
import numpy.typing as npt

WORD_BITS = 32

Words = npt.NDArray[np.uint32]


def n_words(n_codes: int, bits: int) -> int:
    """Return the words that so many codes take as a stream of bits."""
    return -(-n_codes * bits // WORD_BITS)


def unpack_stream(words: Words, bits: int, n_codes: int) -> npt.NDArray[np.uint8]:
    """Unpack a stream of bits, the lowest of a word first; at 3 bits some codes begin in a word and end in the next.

    Args:
        words: (n_words or more, n) uint32: streams side by side, each from top to bottom.
        bits: of a code.
        n_codes: of a stream.

    Returns:
        (n_codes, n) uint8.
    """
    period = WORD_BITS // bits if WORD_BITS % bits == 0 else WORD_BITS
    n_periods = -(-n_codes // period)
    words_of_period = period * bits // WORD_BITS
    words = words[: n_periods * words_of_period]
    if missing := n_periods * words_of_period - len(words):
        words = np.pad(words, ((0, missing), (0, 0)))
    words = words.reshape(n_periods, words_of_period, -1)
    codes = np.empty((n_periods, period, words.shape[-1]), dtype=np.uint8)
    mask = np.uint32(2**bits - 1)
    for index in range(period):
        word, shift = divmod(index * bits, WORD_BITS)
        found = words[:, word] >> np.uint32(shift)
        if shift + bits > WORD_BITS:
            found = found | (words[:, word + 1] << np.uint32(WORD_BITS - shift))
        codes[:, index] = found & mask
    return codes.reshape(n_periods * period, -1)[:n_codes]
