"""Products of matrices whose elements are rounded to bfloat16 (native/include/elutq_quantize.h), on numpy arrays."""

import numpy as np
import numpy.typing as npt

from elutq_native.errors import NativeError
from elutq_native.library import ffi, lib

FloatArray = npt.NDArray[np.float32]


def has_rounded_products() -> bool:
    """Whether this processor has them: AVX512-BF16."""
    return bool(lib.elutq_has_rounded_products())


def add_rounded_product(target: FloatArray, left: FloatArray, right: FloatArray) -> None:
    """Add left @ right to target, on the calling thread; sums are float32.

    Args:
        target: (rows, columns) float32, changed in place; may be a part of an array, its rows contiguous.
        left: (rows, inner) float32, or a transposed array's.
        right: (inner, columns) float32, or a transposed array's.

    Raises:
        ValueError: the shapes do not fit, or target's rows are not contiguous, overlap, or cannot be written to.
        NativeError: the processor has no such products, or there is not enough memory.
    """
    shape = left.shape[0], right.shape[1]
    if target.shape != shape or left.shape[1] != right.shape[0]:
        raise ValueError(f"{left.shape} times {right.shape} does not fit {target.shape}")
    row, step = _strides(target)
    if target.dtype != np.float32 or step != 1 or row < max(shape[1], 1) or not target.flags.writeable:
        raise ValueError("a product is added to rows of contiguous float32 that can be written to")
    if 0 in (*shape, left.shape[1]):
        return
    left, right = _near(left), _near(right)
    status = lib.elutq_add_rounded_product(
        _pointer(left), *_strides(left), _pointer(right), *_strides(right), *shape, left.shape[1], _pointer(target), row
    )
    if status != lib.ELUTQ_OK:
        has_none = not has_rounded_products()
        reason = "this processor has no products of bfloat16" if has_none else "not enough memory for a product"
        raise NativeError(status, reason, bad_input=False)


def _near(array: FloatArray) -> FloatArray:
    """Return the array, copied where neither its rows nor its columns are contiguous float32."""
    sound = array.dtype == np.float32 and not any(step % array.itemsize for step in array.strides)
    return array if sound and 1 in _strides(array) else np.ascontiguousarray(array, dtype=np.float32)


def _strides(array: FloatArray) -> tuple[int, int]:
    """Return the distances of rows and columns, in elements; that along an axis of one element is as good as any."""
    row, column = (step // array.itemsize for step in array.strides)
    rows, columns = array.shape
    if columns <= 1:
        return (row if rows > 1 else 1), 1
    return (row if rows > 1 else columns), column


def _pointer(array: FloatArray) -> object:
    """Return the address of an array's first element, which the caller keeps alive."""
    return ffi.cast("float *", array.ctypes.data)
