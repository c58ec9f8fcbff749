"""Ternary matrices as transformers stores and runs them for BitNet b1.58: ``quant_method`` is ``bitnet``.

Offline, ``weight`` packs the codes of four rows in a byte, rows a quarter of the matrix apart, the first in the lowest
two bits, and ``weight_scale`` is one number for the matrix: a divisor where the linear class is ``bitlinear``, a factor
where it is ``autobitlinear``. Online, ``weight`` is of floats, which each forward pass rounds: here they are rounded
once. Inputs, which both round to 8 bits a token, are left to the runtime, which rounds them in its own way.

Source: transformers, integrations/bitnet.py.
"""

import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from elutq_formats.even_levels import EvenLevels
from elutq_formats.quantized_matrix import FLOATS, QuantizedMatrix, ReadRows, StoredLayout
from elutq_formats.quantized_settings import QuantizationSettings
from elutq_formats.stored_weights import StoredTensor

BITLINEAR, AUTOBITLINEAR = "bitlinear", "autobitlinear"
PACKED, SCALE = "weight", "weight_scale"

_ROWS_IN_BYTE = 4
_BITS = 2
_MIDDLE = 1
"""The code of 0."""
_NAME = re.compile(r"[\w.]+")
_SMALLEST_DIVISOR = 1e-30
_SMALLEST_MEAN = 1e-5
"""What a mean magnitude is raised to at least before it is divided by."""


def bitnet_layout(settings: QuantizationSettings) -> StoredLayout:
    """Return how the matrices of a checkpoint of BitNet are stored.

    Raises:
        UnsupportedModelError: in another way than is read here, or something is done to their inputs.
    """
    linear_class, mode = settings.text("linear_class", BITLINEAR), settings.text("quantization_mode", "offline")
    if linear_class not in (BITLINEAR, AUTOBITLINEAR) or mode not in ("offline", "online"):
        settings.refuse(f"its linears are of class {linear_class!r:.40}, {mode!r:.40}")
    if settings.flag("use_rms_norm"):
        settings.refuse("it norms the inputs of each linear (use_rms_norm), which is not supported")
    if rounds_online(settings):
        kept = _kept_as_they_are(settings)
        return StoredLayout((PACKED,), OnlineMatrix, lambda module, parts: not kept(module))
    opened = partial(PackedMatrix, linear_class == BITLINEAR)
    return StoredLayout((PACKED, SCALE), opened, lambda module, parts: SCALE in parts or parts[PACKED].dtype == "U8")


def rounds_online(settings: QuantizationSettings) -> bool:
    """Whether the weights of a checkpoint are floats, and rounded when it runs."""
    if settings.method != "bitnet" or settings.text("quantization_mode", "offline") != "online":
        return False
    return settings.text("linear_class", BITLINEAR) == AUTOBITLINEAR


class PackedMatrix(QuantizedMatrix):
    """One whose codes are packed: see ``QuantizedMatrix``."""

    bits = _BITS

    def __init__(self, divides: bool, name: str, parts: Mapping[str, StoredTensor], shape: tuple[int, ...]) -> None:
        """Look at headers alone; ``divides``: whether the scale is a divisor."""
        super().__init__(name, parts, shape)
        rows, self.group_size = shape
        if rows % _ROWS_IN_BYTE:
            self.refuse(f"its {rows} rows do not fill bytes of {_ROWS_IN_BYTE}")
        self.check_part(PACKED, (rows // _ROWS_IN_BYTE, self.group_size), ("U8",))
        self.check_part(SCALE, (1,), FLOATS)
        self._divides = divides

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        packed, scale = self.read_integers(PACKED), self._scale()
        group_of = np.zeros(self.shape[1], dtype=np.intp)

        def read(rows: slice) -> EvenLevels:
            quarter, row = np.divmod(np.arange(self.shape[0])[rows], len(packed))
            codes = packed[row] >> (_BITS * quarter[:, None]).astype(np.uint8) & np.uint8(2**_BITS - 1)
            return _ternary(scale, codes, group_of)

        return read

    def _scale(self) -> float:
        stored = float(self.read_scales(SCALE)[0])
        if not self._divides:
            return stored
        if abs(stored) < _SMALLEST_DIVISOR:
            self.refuse(f"its {SCALE} is {stored:g}, which nothing can be divided by: the checkpoint is damaged")
        return 1 / stored


class OnlineMatrix(QuantizedMatrix):
    """One whose weights are rounded to plus or minus the mean magnitude, or 0: see ``QuantizedMatrix``."""

    bits = _BITS

    def __init__(self, name: str, parts: Mapping[str, StoredTensor], shape: tuple[int, ...]) -> None:
        """Look at headers alone."""
        super().__init__(name, parts, shape)
        self.check_part(PACKED, shape, FLOATS)
        self.group_size = shape[1]

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        tensor, mean = self.parts[PACKED], self._mean
        group_of = np.zeros(self.shape[1], dtype=np.intp)

        def read(rows: slice) -> EvenLevels:
            first, end, step = rows.indices(self.shape[0])
            weights = tensor.load(rows=slice(first, end))[::step]
            codes = (np.clip(np.rint(weights * np.float32(1 / mean)), -1, 1) + _MIDDLE).astype(np.uint8)
            return _ternary(mean, codes, group_of)

        return read

    @cached_property
    def _mean(self) -> float:
        """The mean magnitude of its weights."""
        tensor, at_once = self.parts[PACKED], self.rows_at_once
        starts = range(0, self.shape[0], at_once)
        total = sum(np.abs(tensor.load(rows=slice(start, start + at_once))).sum(dtype=np.float64) for start in starts)
        if not np.isfinite(total):
            self.refuse("it holds a weight that is not finite: the checkpoint is damaged")
        return max(float(total) / (self.shape[0] * self.shape[1]), _SMALLEST_MEAN)


def _kept_as_they_are(settings: QuantizationSettings) -> Callable[[str], bool]:
    """Return what tells modules that are not rounded: listed as what a name begins with, or ends in."""
    listed = settings.values.get("modules_to_not_convert")
    kept = ["lm_head"] if listed is None else listed
    if not isinstance(kept, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in kept):
        settings.refuse("modules_to_not_convert is not a list of names")
    return lambda module: (
        module == "model.embed_tokens"
        or any(f"{module}.".startswith(f"{name}.") or module.endswith(name) for name in kept)
    )


def _ternary(scale: float, codes: npt.NDArray[np.uint8], group_of: npt.NDArray[np.intp]) -> EvenLevels:
    scales = np.full((len(codes), 1), scale, dtype=np.float32)
    return EvenLevels(scales, np.full_like(scales, _MIDDLE), codes, _BITS, group_of)
