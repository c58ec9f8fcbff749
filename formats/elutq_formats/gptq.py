"""Matrices as GPTQ stores them: AutoGPTQ, GPTQModel, and the same layouts of AutoRound and EfficientQAT.

``qweight`` packs the codes of an output along its inputs, ``qzeros`` the zero points of a group along the outputs, each
as a stream of bits from the lowest of a word on; ``scales`` has one for every group and output, and ``g_idx``, where
there is one, the group of every input. In version 1 of the format stored zero points are one less than what they mean.

Source: https://github.com/ModelCloud/GPTQModel, whose reader adds one to the packed words of version 1 as a whole.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from elutq_formats.even_levels import EvenLevels
from elutq_formats.packed_words import WORD_BITS, n_words, unpack_stream
from elutq_formats.quantized_matrix import FLOATS, INTEGERS, QuantizedMatrix, ReadRows, StoredLayout
from elutq_formats.quantized_settings import QuantizationSettings
from elutq_formats.stored_weights import StoredTensor

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")

ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What is added to stored zero points, by version of the format."""


def gptq_layout(settings: QuantizationSettings) -> StoredLayout:
    """Return how the matrices of a checkpoint of GPTQ are stored.

    Raises:
        UnsupportedModelError: in another way than is read here.
    """
    version = settings.layout(("checkpoint_format", "format"), "gptq", ZERO_OFFSETS)
    if settings.flag("is_marlin_format"):
        settings.refuse(f"its format is Marlin's, and {' and '.join(ZERO_OFFSETS)} are read")
    if settings.values.get("rotation"):
        settings.refuse("its weights are rotated (rotation), in ways of which some need the inputs rotated too")
    return StoredLayout(SUFFIXES, partial(GPTQMatrix, ZERO_OFFSETS[version], settings))


class GPTQMatrix(QuantizedMatrix):
    """One matrix: see ``QuantizedMatrix``."""

    def __init__(
        self,
        zero_offset: int,
        settings: QuantizationSettings,
        name: str,
        parts: Mapping[str, StoredTensor],
        shape: tuple[int, ...],
    ) -> None:
        """Look at headers alone; ``zero_offset`` is added to stored zero points."""
        super().__init__(name, parts, shape)
        rows, columns = shape
        words, groups = self.part_shape("qweight", 2)[0], self.part_shape("scales", 2)[0]
        self.bits = words * WORD_BITS // columns
        if words * WORD_BITS % columns:
            self.refuse(f"its qweight has {words} rows of words, which are no whole bits for each of {columns} columns")
        settings.check_bits(self.bits)
        self.group_size = settings.group_size(columns, groups)
        if columns * self.bits % WORD_BITS or rows * self.bits % WORD_BITS:
            self.refuse(f"{rows} x {columns} codes of {self.bits} bits do not fill words of {WORD_BITS} bits")
        self.check_part("qweight", (n_words(columns, self.bits), rows), INTEGERS)
        self.check_part("qzeros", (groups, n_words(rows, self.bits)), INTEGERS)
        self.check_part("scales", (groups, rows), FLOATS)
        if "g_idx" in parts:
            self.check_part("g_idx", (columns,), INTEGERS)
        elif settings.flag("desc_act"):
            self.refuse(f"it has no g_idx, though {settings.file} says desc_act: the checkpoint is incomplete")
        self._zero_offset = zero_offset

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        words = self.read_words("qweight")
        scales = np.ascontiguousarray(self.read_scales("scales").T)
        zeros = np.ascontiguousarray(self._zeros().T, dtype=np.float32)
        group_of = self._groups(scales.shape[1])

        def read(rows: slice) -> EvenLevels:
            codes = unpack_stream(words[:, rows], self.bits, self.shape[1])
            return EvenLevels(scales[rows], zeros[rows], np.ascontiguousarray(codes.T), self.bits, group_of)

        return read

    def _zeros(self) -> npt.NDArray[np.uint8]:
        """Return the zero points, (groups, rows)."""
        packed = self.read_words("qzeros")
        if self._zero_offset and WORD_BITS % self.bits == 0:
            # As a whole, so that what a writer has borrowed from the next zero point for one of -1 is given back.
            packed = packed + np.uint32(sum(1 << shift for shift in range(0, WORD_BITS, self.bits)))
        zeros: npt.NDArray[np.uint8] = unpack_stream(packed.T, self.bits, self.shape[0]).T
        if self._zero_offset and WORD_BITS % self.bits:
            np.bitwise_and(zeros + np.uint8(1), np.uint8(2**self.bits - 1), out=zeros)
        return zeros

    def _groups(self, n_groups: int) -> npt.NDArray[np.intp]:
        """Return the group of each column."""
        if "g_idx" not in self.parts:
            return np.arange(self.shape[1]) // self.group_size
        return self.check_groups("g_idx", self.read_integers("g_idx").astype(np.intp), n_groups)
