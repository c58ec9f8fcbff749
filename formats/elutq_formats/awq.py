"""Matrices as AWQ stores them, of 4 bits: in AutoAWQ's versions GEMM and GEMV, and AutoRound's of the same layout.

In GEMM a word of ``qweight`` packs eight outputs of an input, and one of ``qzeros`` those of a group, in an order of
their own; ``scales`` has one for every group and output. In GEMV all three lie by output: words pack inputs, or groups,
in their order, and groups are filled up to whole words and more.

Source: https://github.com/casper-hansen/AutoAWQ, ``awq/modules/linear``.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from elutq_formats.even_levels import EvenLevels
from elutq_formats.packed_words import WORD_BITS, Words, unpack_stream
from elutq_formats.quantized_matrix import FLOATS, INTEGERS, QuantizedMatrix, ReadRows, StoredLayout
from elutq_formats.quantized_settings import QuantizationSettings
from elutq_formats.stored_weights import StoredTensor

SUFFIXES = ("qweight", "qzeros", "scales")
BITS = 4
IN_WORD = WORD_BITS // BITS
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Of each of a word's eight outputs, in their order, in units of BITS."""

LLM_AWQ = "llm-awq"
"""The code of AWQ's authors, of which transformers read files too."""


def awq_layout(settings: QuantizationSettings) -> StoredLayout:
    """Return how the matrices of a checkpoint of AWQ are stored.

    Raises:
        UnsupportedModelError: in another way than is read here.
    """
    matrices: dict[str, type[GEMMMatrix] | type[GEMVMatrix]] = {"gemm": GEMMMatrix, "gemv": GEMVMatrix}
    version = settings.layout(("version", "checkpoint_format", "format"), "gemm", matrices)
    if settings.text("backend", "") == LLM_AWQ:
        settings.refuse(f"its backend is {LLM_AWQ!r}, which packs words in another order than AutoAWQ")
    return StoredLayout(SUFFIXES, partial(matrices[version], settings))


class GEMMMatrix(QuantizedMatrix):
    """One matrix of the version GEMM: see ``QuantizedMatrix``."""

    def __init__(
        self, settings: QuantizationSettings, name: str, parts: Mapping[str, StoredTensor], shape: tuple[int, ...]
    ) -> None:
        """Look at headers alone."""
        super().__init__(name, parts, shape)
        rows, columns = shape
        groups = self.part_shape("scales", 2)[0]
        settings.check_bits(BITS)
        self.bits, self.group_size = BITS, settings.group_size(columns, groups)
        if rows % IN_WORD:
            self.refuse(f"{rows} rows do not fill words of {IN_WORD}")
        self.check_part("qweight", (columns, rows // IN_WORD), INTEGERS)
        self.check_part("qzeros", (groups, rows // IN_WORD), INTEGERS)
        self.check_part("scales", (groups, rows), FLOATS)

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        words, zeros = self.read_words("qweight"), _unpack_outputs(self.read_words("qzeros")).astype(np.float32)
        scales = np.ascontiguousarray(self.read_scales("scales").T)
        group_of = np.arange(self.shape[1]) // self.group_size

        def read(rows: slice) -> EvenLevels:
            first, end = rows.start // IN_WORD, -(-rows.stop // IN_WORD)
            start = first * IN_WORD
            codes = _unpack_outputs(words[:, first:end])[rows.start - start : rows.stop - start : rows.step]
            return EvenLevels(scales[rows], zeros[rows], codes, BITS, group_of)

        return read


class GEMVMatrix(QuantizedMatrix):
    """One matrix of the version GEMV: see ``QuantizedMatrix``."""

    def __init__(
        self, settings: QuantizationSettings, name: str, parts: Mapping[str, StoredTensor], shape: tuple[int, ...]
    ) -> None:
        """Look at headers alone."""
        super().__init__(name, parts, shape)
        rows, columns = shape
        settings.check_bits(BITS)
        self.bits, self.group_size = BITS, settings.stated_group_size(columns)
        words_of_groups = self.part_shape("qzeros", 2)[1]
        if columns % IN_WORD:
            self.refuse(f"{columns} columns do not fill words of {IN_WORD}")
        if words_of_groups * IN_WORD < self._groups:
            self.refuse(f"its qzeros has no room for {self._groups} groups of {self.group_size}")
        self.check_part("qweight", (rows, columns // IN_WORD), INTEGERS)
        self.check_part("qzeros", (rows, words_of_groups), INTEGERS)
        self.check_part("scales", (rows, words_of_groups * IN_WORD), FLOATS)

    @property
    def _groups(self) -> int:
        return -(-self.shape[1] // self.group_size)

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        words = self.read_words("qweight")
        zeros = unpack_stream(self.read_words("qzeros").T, BITS, self._groups).T.astype(np.float32)
        scales = self.read_scales("scales")[:, : self._groups]
        group_of = np.arange(self.shape[1]) // self.group_size

        def read(rows: slice) -> EvenLevels:
            codes = unpack_stream(words[rows].T, BITS, self.shape[1])
            return EvenLevels(scales[rows], zeros[rows], np.ascontiguousarray(codes.T), BITS, group_of)

        return read


def _unpack_outputs(words: Words) -> npt.NDArray[np.uint8]:
    """Unpack words of eight outputs, (n, words): (8 * words, n) uint8."""
    codes = np.empty((words.shape[1], IN_WORD, words.shape[0]), dtype=np.uint8)
    for output, place in enumerate(PLACES):
        codes[:, output] = ((words >> np.uint32(BITS * place)) & np.uint32(2**BITS - 1)).T
    return codes.reshape(-1, words.shape[0])
