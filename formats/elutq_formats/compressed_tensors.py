"""Matrices as compressed-tensors packs them (llm-compressor): format ``pack-quantized``.

``weight_packed`` packs the codes of an output along its inputs, ``weight_zero_point`` those of a group along the
outputs, each as a stream of bits; ``weight_scale`` has one for every output and group. Codes and zero points count from
half their range, so that a matrix without zero points is symmetric. Old files pad codes of 3 bits to ten a word.

Source: https://github.com/neuralmagic/compressed-tensors, ``compressors/pack_quantized``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.even_levels import EvenLevels
from elutq_formats.packed_words import WORD_BITS, Words, n_words, unpack_stream
from elutq_formats.quantized_matrix import FLOATS, INTEGERS, QuantizedMatrix, ReadRows, StoredLayout
from elutq_formats.quantized_settings import BITS, QuantizationSettings
from elutq_formats.stored_weights import StoredTensor

PACKED, SCALE, ZERO_POINT = "weight_packed", "weight_scale", "weight_zero_point"
SHAPE, ORDER = "weight_shape", "weight_g_idx"
SUFFIXES = (PACKED, SCALE, ZERO_POINT, SHAPE, ORDER)

FORMAT = "pack-quantized"


def compressed_tensors_layout(settings: QuantizationSettings) -> StoredLayout:
    """Return how the matrices of a checkpoint of compressed-tensors are stored.

    Raises:
        UnsupportedModelError: in another way than is read here.
    """
    schemes = list(settings.mapping("config_groups").values())
    for scheme in schemes:
        if not (isinstance(scheme, dict) and isinstance(scheme.get("weights"), dict | None)):
            settings.refuse(f"a group of its config_groups is {scheme!r:.40}, and not an object with weights")
    for found in (settings.text("format", FORMAT), *(str(scheme.get("format") or FORMAT) for scheme in schemes)):
        if found != FORMAT:
            settings.refuse(f"its format is {found!r:.40}, and {FORMAT} is read")
    for key in ("input_activations", "output_activations"):
        if any(scheme.get(key) for scheme in schemes):
            settings.refuse(f"its activations are quantized too ({key}), which the runtime does not do")
    for key in ("transform_config", "kv_cache_scheme"):
        if settings.values.get(key):
            settings.refuse(f"it has a {key}, which the runtime does not do")
    if _setting(settings.values.get("sparsity_config"), "format") not in (None, "dense"):
        settings.refuse("its weights are sparse (sparsity_config)")
    weights = [scheme.get("weights") or {} for scheme in schemes]
    if any(each.get("type") not in (None, "int") for each in weights):
        settings.refuse("its levels are floats, and whole numbers (int) are read")
    return StoredLayout(SUFFIXES, partial(PackedMatrix, settings, [_Scheme.read(settings, each) for each in weights]))


@dataclass(frozen=True)
class _Scheme:
    """What a group of ``config_groups`` says of the weights of some matrices; nothing of which ones is looked at.

    Attributes:
        bits: of a code; None: it does not say.
        group_size: columns that share a scale, where it says so.
        symmetric: whether they have no zero points.
    """

    bits: int | None
    group_size: int | None
    symmetric: bool

    @classmethod
    def read(cls, settings: QuantizationSettings, weights: Mapping[str, Any]) -> "_Scheme":
        size = settings.groups("group_size", weights)
        symmetric = weights.get("symmetric") is None or settings.flag("symmetric", weights)
        return cls(settings.integer("num_bits", weights), size if size != -1 else None, symmetric)


class PackedMatrix(QuantizedMatrix):
    """One matrix: see ``QuantizedMatrix``."""

    def __init__(
        self,
        settings: QuantizationSettings,
        schemes: Sequence[_Scheme],
        name: str,
        parts: Mapping[str, StoredTensor],
        shape: tuple[int, ...],
    ) -> None:
        """Look at headers alone; ``schemes``: one of which the matrix is of."""
        super().__init__(name, parts, shape)
        rows, columns = shape
        words = self.part_shape(PACKED, 2)[1]
        said = {scheme.bits for scheme in schemes} or {None}
        self.bits, self._pads = _find_bits(words, columns, [bits for bits in BITS if bits in said or None in said])
        if not self.bits:
            settings.refuse(
                f"{WORD_BITS * words / columns:.3g} bits a weight in {name}, and config.json says "
                f"{' or '.join(str(bits) for bits in said if bits) or 'nothing'}: {', '.join(map(str, BITS))} are read"
            )
        groups = self.part_shape(SCALE, 2)[1]
        if columns % groups:
            self.refuse(f"its {SCALE} has {groups} groups, which do not divide its {columns} columns")
        self.group_size = columns // groups
        sizes = {scheme.group_size or columns for scheme in schemes} or {self.group_size}
        if self.group_size not in sizes:
            self.refuse(f"it has groups of {self.group_size}, and config.json says {' or '.join(map(str, sizes))}")
        self.check_part(PACKED, (rows, words), INTEGERS)
        self.check_part(SCALE, (rows, groups), FLOATS)
        self.check_part(SHAPE, (2,), ("I64", "I32"))
        if ORDER in parts:
            self.check_part(ORDER, (columns,), INTEGERS)
        if ZERO_POINT not in parts and schemes and not any(scheme.symmetric for scheme in schemes):
            self.refuse(f"it has no {ZERO_POINT}, though config.json calls it asymmetric: the checkpoint is incomplete")
        if ZERO_POINT in parts:
            bytes_ = parts[ZERO_POINT].dtype == "I8"
            packed = rows if bytes_ else self._n_words(rows)
            self.check_part(ZERO_POINT, (packed, groups), ("I8", *INTEGERS))

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        stated = self.read_integers(SHAPE).tolist()
        if stated != list(self.shape):
            self.refuse(f"its {SHAPE} says {stated}, and the configuration {list(self.shape)}")
        words, scales, zeros = self.read_words(PACKED), self.read_scales(SCALE), self._zeros()
        group_of = self._order(scales.shape[1])

        def read(rows: slice) -> EvenLevels:
            codes = self._unpack(words[rows].T, self.shape[1])
            return EvenLevels(scales[rows], zeros[rows], np.ascontiguousarray(codes.T), self.bits, group_of)

        return read

    def _zeros(self) -> npt.NDArray[np.float32]:
        """Return the zero points, (rows, groups), as codes."""
        shape = self.shape[0], self.part_shape(SCALE, 2)[1]
        middle = 2 ** (self.bits - 1)
        if ZERO_POINT not in self.parts:
            return np.full(shape, middle, dtype=np.float32)
        if self.parts[ZERO_POINT].dtype == "I8":
            zeros: npt.NDArray[np.float32] = self.read_integers(ZERO_POINT).astype(np.float32)
            zeros += middle
            return zeros
        return self._unpack(self.read_words(ZERO_POINT), shape[0]).astype(np.float32)

    def _order(self, n_groups: int) -> npt.NDArray[np.intp]:
        """Return the group of each column."""
        if ORDER in self.parts:
            group_of = self.read_integers(ORDER).astype(np.intp)
            if (group_of != -1).any():  # as they are where nothing was ordered
                return self.check_groups(ORDER, group_of, n_groups)
        return np.arange(self.shape[1]) // self.group_size

    def _n_words(self, n_codes: int) -> int:
        return -(-n_codes // (WORD_BITS // self.bits)) if self._pads else n_words(n_codes, self.bits)

    def _unpack(self, words: Words, n_codes: int) -> npt.NDArray[np.uint8]:
        """Unpack streams side by side, (words, n): (n_codes, n) uint8."""
        if not self._pads:
            return unpack_stream(words, self.bits, n_codes)
        in_word = WORD_BITS // self.bits
        codes = np.empty((len(words), in_word, words.shape[1]), dtype=np.uint8)
        for place in range(in_word):
            codes[:, place] = (words >> np.uint32(place * self.bits)) & np.uint32(2**self.bits - 1)
        return codes.reshape(-1, words.shape[1])[:n_codes]


def _find_bits(words: int, columns: int, candidates: Sequence[int]) -> tuple[int, bool]:
    """Return the bits of a code, 0 where they are no candidate, and whether none crosses from a word to the next."""
    for bits in candidates:
        if words == n_words(columns, bits):
            return bits, False
        if words == -(-columns // (WORD_BITS // bits)):
            return bits, True
    return 0, False


def _setting(values: Any, key: str) -> Any:  # noqa: ANN401 (JSON)
    return values.get(key) if isinstance(values, dict) else None
