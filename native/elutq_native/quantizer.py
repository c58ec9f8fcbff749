"""The quantizer's hot loops in C (native/include/elutq_quantize.h), on numpy arrays."""

import numpy as np
import numpy.typing as npt

from elutq_native.errors import NativeError
from elutq_native.handle import Handle
from elutq_native.library import LARGEST, check_use, ffi, lib

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
CenterArray = npt.NDArray[np.float16] | npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.uint8]
NumberArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint8] | npt.NDArray[np.int8]


class Quantizer:
    """A pool of threads that fits levels, feeds errors back and refines; used by one thread at a time.

    Its methods raise NativeError when it is closed, when another thread uses it, and in a process forked from its own.
    """

    def __init__(self, threads: int | None = None) -> None:
        """Start the threads.

        Args:
            threads: 1 to 256; None: one for each physical core this process may use.

        Raises:
            NativeError: threads out of range, or one cannot be started.
        """
        pool = ffi.new("elutq_pool **")
        chosen = lib.elutq_default_threads() if threads is None else min(max(threads, 0), LARGEST)
        status = lib.elutq_pool_create(chosen, pool)
        if status == lib.ELUTQ_ERROR_ARGUMENT:
            raise NativeError(status, f"{threads} threads are not possible: use 1 to 256", bad_input=True)
        if status != lib.ELUTQ_OK:
            raise NativeError(status, "the threads could not be started: use fewer (-t)", bad_input=False)
        self._handle = Handle(pool[0], lib.elutq_pool_destroy, "quantizer")

    def close(self) -> None:
        """Stop the threads; a call under way in another thread goes on to its end."""
        self._handle.close()

    def fit(
        self,
        weights: FloatArray,
        starts: npt.NDArray[np.float64],
        group_size: int,
        importance: FloatArray | None,
        iterations: int,
        proximity: float,
        kind: int = 0,
        exponent: int = 0,
    ) -> tuple[HalfArray, FloatArray, CodeArray]:
        """Fit levels to every group and give each weight the nearest.

        Args:
            weights: (rows, columns) float32, finite, rows contiguous or a slice of columns of such an array.
            starts: (starts, bits + 1) float64, half scales and center in halves of a group's range.
            group_size: columns that share their levels; divides columns, at most 256.
            importance: (columns,) float32, what a squared error in a column costs: not negative, not all zero within a
                group. None: 1 everywhere.
            iterations: most rounds of assignment and solve per start.
            proximity: pull towards the present levels in each solve, relative to the sum of a group's importances.
            kind: ``ELUTQ_KIND_...`` of the blocks to whose half scales and centers levels are rounded.
            exponent: of the matrix, where those are bytes.

        Returns:
            half_scales (rows, groups, bits) float16, centers (rows, groups) float32, codes (rows, columns) uint8.

        Raises:
            ValueError: an array's shape or a parameter is out of range.
        """
        rows, columns = weights.shape
        if group_size < 1 or columns % group_size:
            raise ValueError(f"groups of {group_size} do not divide {columns} columns")
        if importance is not None and importance.shape != (columns,):
            raise ValueError(f"importance {importance.shape} is not one number for each of {columns} columns")
        weights, stride = _rows(weights)
        starts = np.ascontiguousarray(starts, dtype=np.float64)
        bits = starts.shape[1] - 1
        half_scales = np.empty((rows, columns // group_size, bits), dtype=np.float16)
        centers = np.empty(half_scales.shape[:2], dtype=np.float32)
        codes = np.empty((rows, columns), dtype=np.uint8)
        if importance is not None:
            importance = np.ascontiguousarray(importance, dtype=np.float32)
        with self._handle.use() as pool:
            status = lib.elutq_fit(
                pool,
                _pointer("float *", weights),
                rows,
                columns,
                stride,
                bits,
                group_size,
                ffi.NULL if importance is None else _pointer("float *", importance),
                _pointer("double *", starts),
                len(starts),
                iterations,
                proximity,
                kind,
                exponent,
                _pointer("uint16_t *", half_scales),
                _pointer("float *", centers),
                _pointer("uint8_t *", codes),
            )
        _check(status)
        return half_scales, centers, codes

    def feedback(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: CenterArray
    ) -> tuple[CodeArray, FloatArray]:
        """Round one group's columns in turn, each column's error taken out of the columns to its right.

        Args:
            weights: (rows, group_size) float32, finite, left unchanged; may be a slice of columns.
            factor: (group_size, group_size) float32, upper triangular; may be a block of a larger array.
            half_scales: (rows, bits) float16.
            centers: (rows,) float16 or float32.

        Returns:
            codes (rows, group_size) uint8, errors (rows, group_size) float32.

        Raises:
            ValueError: an array's shape or the number of bits is out of range.
        """
        rows, group_size = weights.shape
        bits = half_scales.shape[1]
        if factor.shape != (group_size, group_size) or len(half_scales) != rows or centers.shape != (rows,):
            raise ValueError(
                f"factor {factor.shape}, half_scales {half_scales.shape} and centers {centers.shape} do not fit "
                f"weights {weights.shape}"
            )
        weights, stride = _rows(weights)
        factor, factor_stride = _rows(factor)
        half_scales = np.ascontiguousarray(half_scales, dtype=np.float16)
        centers = np.ascontiguousarray(centers, dtype=np.float32)
        codes = np.empty((rows, group_size), dtype=np.uint8)
        errors = np.empty((rows, group_size), dtype=np.float32)
        with self._handle.use() as pool:
            status = lib.elutq_feedback(
                pool,
                _pointer("float *", weights),
                rows,
                stride,
                bits,
                group_size,
                _pointer("float *", factor),
                factor_stride,
                _pointer("uint16_t *", half_scales),
                _pointer("float *", centers),
                _pointer("uint8_t *", codes),
                _pointer("float *", errors),
            )
        _check(status)
        return codes, errors

    def refine(
        self,
        half_scales: HalfArray,
        centers: CenterArray,
        codes: CodeArray,
        residual: FloatArray,
        hessian: FloatArray,
        sweeps: int,
        proximity: float,
        kind: int = 0,
        exponent: int = 0,
    ) -> tuple[HalfArray, FloatArray, CodeArray, FloatArray]:
        """Improve one group of every row under the group's block of the Hessian.

        Args:
            half_scales: (rows, bits) float16.
            centers: (rows,) float16 or float32.
            codes: (rows, group_size) uint8; group_size a multiple of 4.
            residual: (rows, group_size) float32, (target - value) H; may be a slice of columns.
            hessian: (group_size, group_size) float32, symmetric, positive definite.
            sweeps: most times to go over all columns.
            proximity: added to the diagonal of each solve, relative to it.
            kind: as in ``fit``.
            exponent: likewise.

        Returns:
            half_scales, centers and codes anew, and by how much the weights grew: (rows, group_size) float32.

        Raises:
            ValueError: an array's shape, a code or the number of bits is out of range.
        """
        rows, group_size = codes.shape
        bits = half_scales.shape[1]
        shapes = residual.shape, hessian.shape, half_scales.shape, centers.shape
        if shapes != (codes.shape, (group_size, group_size), (rows, bits), (rows,)):
            raise ValueError(f"residual, hessian, half_scales and centers {shapes} do not fit codes {codes.shape}")
        residual, stride = _rows(residual)
        hessian = np.ascontiguousarray(hessian, dtype=np.float32)
        half_scales, centers = np.array(half_scales, np.float16, order="C"), np.array(centers, np.float32, order="C")
        codes, grown = np.array(codes, dtype=np.uint8, order="C"), np.empty((rows, group_size), dtype=np.float32)
        with self._handle.use() as pool:
            status = lib.elutq_refine(
                pool,
                _pointer("float *", hessian),
                _pointer("float *", residual),
                rows,
                stride,
                bits,
                group_size,
                sweeps,
                proximity,
                kind,
                exponent,
                _pointer("uint16_t *", half_scales),
                _pointer("float *", centers),
                _pointer("uint8_t *", codes),
                _pointer("float *", grown),
            )
        _check(status)
        return half_scales, centers, codes, grown

    def pack(
        self, half_scales: NumberArray, centers: NumberArray, codes: CodeArray, bits: int, kind: int
    ) -> npt.NDArray[np.uint8]:
        """Lay a matrix out as the blocks of a model file.

        Args:
            half_scales: (rows, groups, bits, or 1 where the kind is even), as they are stored.
            centers: (rows, groups, 1, or 0 where the matrix has one for all), as they are stored.
            codes: (rows, columns) uint8, below 2^bits.
            bits: bit-planes.
            kind: ``ELUTQ_KIND_...``, to which the arrays' shapes and types belong.

        Returns:
            (blocks, bytes of a block) uint8.

        Raises:
            ValueError: an array's shape or type is not the kind's, or a group's size, bits or a code are out of range.
        """
        rows, columns = codes.shape
        n_groups = half_scales.shape[1]
        if half_scales.shape[:2] != centers.shape[:2] or len(centers) != rows or n_groups < 1 or columns % n_groups:
            raise ValueError(f"half_scales and centers {half_scales.shape} {centers.shape} do not fit {codes.shape}")
        for what, numbers, stored_as in zip(
            ("half_scales", "centers"), (half_scales, centers), _stored_numbers(bits, kind), strict=True
        ):
            if (numbers.shape[2], numbers.itemsize) != stored_as:
                raise ValueError(
                    f"{what} of {bits} bits and kind {kind} are {stored_as[0]} a group of {stored_as[1]} bytes each, "
                    f"not {numbers.shape[2]} of {numbers.itemsize}"
                )
        group_size = columns // n_groups
        scale_bytes = lib.ELUTQ_TILE_ROWS * sum(part.itemsize * part.shape[2] for part in (half_scales, centers))
        plane_bytes = group_size // lib.ELUTQ_CELL_COLUMNS * lib.ELUTQ_CELL_BYTES
        stored = [np.ascontiguousarray(numbers) for numbers in (half_scales, centers)]
        codes = np.ascontiguousarray(codes, dtype=np.uint8)
        blocks = np.empty(
            (-(-rows // lib.ELUTQ_TILE_ROWS) * n_groups, scale_bytes + bits * plane_bytes), dtype=np.uint8
        )
        with self._handle.use() as pool:
            status = lib.elutq_pack(
                pool,
                rows,
                columns,
                bits,
                group_size,
                kind,
                _pointer("uint8_t *", stored[0]),
                _pointer("uint8_t *", stored[1]),
                _pointer("uint8_t *", codes),
                _pointer("uint8_t *", blocks),
            )
        check_use(status, "quantizer")
        if status != lib.ELUTQ_OK:
            raise ValueError(
                "bits must be 1 to 4, codes below 2^bits, groups a multiple of 4 and at most 256 columns, and "
                "the kind one of the six"
            )
        return blocks


def _stored_numbers(bits: int, kind: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how many half scales and centers a group has in a file, each with the bytes of one (elutq_format.h)."""
    even, width = kind & lib.ELUTQ_KIND_EVEN, 1 if kind & lib.ELUTQ_KIND_BYTES else 2
    if even:
        return (1, width), (1 if kind & lib.ELUTQ_KIND_CENTERS else 0, 1)
    return (bits, width), (1, width)


def _rows(array: FloatArray) -> tuple[FloatArray, int]:
    """Return the array with contiguous rows, copied only if it must be, and the distance of its rows in elements."""
    itemsize = np.dtype(np.float32).itemsize
    step, n_columns = array.strides[0], array.shape[1]
    sound = array.dtype == np.float32 and array.strides[1] == itemsize and step % itemsize == 0
    if not sound or step < n_columns * itemsize:
        array = np.ascontiguousarray(array, dtype=np.float32)
        step = array.strides[0]
    return array, max(step // itemsize, n_columns)


def _pointer(kind: str, array: npt.NDArray[np.generic]) -> object:
    """Return the address of an array's first element, which the caller keeps alive."""
    return ffi.cast(kind, array.ctypes.data)


def _check(status: int) -> None:
    check_use(status, "quantizer")
    if status != lib.ELUTQ_OK:
        raise ValueError(
            "bits must be 1 to 4, codes below 2^bits, groups at most 256 columns (and four at a time in refine), "
            "starts at least 1, proximity positive, the kind one that is quantized to and its exponent one that it has"
        )
