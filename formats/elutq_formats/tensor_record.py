"""Tensor records: what the metadata of a model file say about each tensor's shape and storage."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.constants import GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_I8, HLQ_VERSION
from elutq_formats.errors import FormatError
from elutq_formats.gguf import GGML_TYPES, TensorInfo, ValueType
from elutq_formats.hlq import block_bytes, block_count, check_geometry, tensor_bytes
from elutq_formats.metadata import Metadata, MetadataEntry

_OURS = (GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_I8)

HLQ_VERSION_KEY = "hlq.version"
HLQ_NAMES = "hlq.tensor.names"
HLQ_BITS = "hlq.tensor.bits"
HLQ_GROUP_SIZES = "hlq.tensor.group_sizes"
HLQ_ROWS = "hlq.tensor.rows"
HLQ_COLUMNS = "hlq.tensor.columns"
HLQ_ERRORS = "hlq.tensor.errors"
HLQ_KINDS = "hlq.tensor.kinds"
HLQ_EXPONENTS = "hlq.tensor.exponents"
HLQ_CENTERS = "hlq.tensor.centers"

VECTOR_BITS = 32
"""Of norms, biases and what chooses among experts."""

STACK_DIMENSIONS = 3

FIRST_VERSION_GROUP_SIZE = 128
"""Largest groups of version 1, whose only kind is free16."""


@dataclass(frozen=True)
class TensorRecord:
    """What a model file says about a tensor.

    Attributes:
        name: its name in the file.
        bits: 1 to 4 for an HLQ matrix, 16 for an fp16 matrix, 32 for a vector or a router.
        rows: output features of a matrix, of a stack one expert's; elements of a vector.
        columns: input features of a matrix, 1 for a vector.
        group_size: columns that share scales, for an HLQ matrix.
        error: relative error against the checkpoint's weight, rotated where the model is, for an HLQ matrix whose error
            was measured; of a calibrated one what it does to its inputs on the calibration text.
        kind: of the blocks of an HLQ matrix.
        n_experts: matrices of this size and storage that are stacked, one for each expert; None: it is one.
    """

    name: str
    bits: int
    rows: int
    columns: int = 1
    group_size: int | None = None
    error: float | None = None
    kind: BlockKind = FREE16
    n_experts: int | None = None

    @classmethod
    def of_floats(cls, name: str, shape: tuple[int, ...]) -> "TensorRecord":
        """Return that of a tensor which stays in float32: a vector, or a router (n_experts, hidden_size)."""
        return cls(name, VECTOR_BITS, shape[0], shape[1] if len(shape) > 1 else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape in the model: (n_experts, rows, columns), (rows, columns) or (rows,)."""
        if self.bits == VECTOR_BITS and self.columns == 1:
            return (self.rows,)
        return (self.rows, self.columns) if self.n_experts is None else (self.n_experts, self.rows, self.columns)

    @property
    def n_weights(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def matrix_bytes(self) -> int:
        """Size in the file of one matrix, of a stack an expert's."""
        return self.n_bytes // (self.n_experts or 1)

    @property
    def n_bytes(self) -> int:
        """Size in the file, without padding."""
        if self.group_size is None:
            return self.n_weights * self.bits // 8
        of_one = tensor_bytes(self.rows, self.columns, self.bits, self.group_size, self.kind)
        return of_one * (self.n_experts or 1)

    @property
    def ggml_type(self) -> int:
        """GGML's number of the element type in the container."""
        return {16: GGML_TYPE_F16, 32: GGML_TYPE_F32}.get(self.bits, GGML_TYPE_I8)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions in the container, the fastest first."""
        if self.group_size is None:
            return tuple(reversed(self.shape))
        block = block_bytes(self.bits, self.group_size, self.kind)
        of_one = block, block_count(self.rows, self.columns, self.group_size)
        return of_one if self.n_experts is None else (*of_one, self.n_experts)


def describe_records(records: Iterable[TensorRecord]) -> Iterator[MetadataEntry]:
    """Yield the metadata entries that tell the HLQ matrices among ``records`` from plain bytes."""
    matrices = [record for record in records if record.group_size is not None]
    version = HLQ_VERSION if any(needs_second_version(matrix) for matrix in matrices) else 1
    yield HLQ_VERSION_KEY, version, ValueType.UINT32
    yield HLQ_NAMES, [matrix.name for matrix in matrices], ValueType.STRING
    yield HLQ_BITS, [matrix.bits for matrix in matrices], ValueType.UINT32
    yield HLQ_GROUP_SIZES, [matrix.group_size for matrix in matrices], ValueType.UINT32
    yield HLQ_ROWS, [matrix.rows for matrix in matrices], ValueType.UINT32
    yield HLQ_COLUMNS, [matrix.columns for matrix in matrices], ValueType.UINT32
    if version > 1:
        yield HLQ_KINDS, [matrix.kind.number for matrix in matrices], ValueType.UINT32
        yield HLQ_EXPONENTS, [matrix.kind.exponent for matrix in matrices], ValueType.UINT32
        yield HLQ_CENTERS, [matrix.kind.center for matrix in matrices], ValueType.INT32
    errors = [math.nan if matrix.error is None else matrix.error for matrix in matrices]
    yield HLQ_ERRORS, errors, ValueType.FLOAT32


def needs_second_version(matrix: TensorRecord) -> bool:
    """Whether readers of version 1 would misread an HLQ matrix."""
    return matrix.kind != FREE16 or (matrix.group_size or 0) > FIRST_VERSION_GROUP_SIZE


def read_records(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorRecord]:
    """Read the records of a file's tensors and check each against the container.

    Raises:
        FormatError: the metadata contradict themselves or the tensors.
    """
    matrices = _read_matrices(metadata)
    if missing := matrices.keys() - tensors.keys():
        metadata.refuse(f"{HLQ_NAMES} lists {min(missing)!r:.80}, which is not there")
    records = {}
    for name, info in tensors.items():
        if info.ggml_type not in _OURS:
            metadata.refuse(
                f"tensor {name} has GGML type {GGML_TYPES[info.ggml_type].name}, which only other tools read"
            )
        if (info.ggml_type == GGML_TYPE_I8) != (name in matrices):
            metadata.refuse(f"tensor {name} is {GGML_TYPES[info.ggml_type].name}, but {HLQ_NAMES} says otherwise")
        record = matrices.get(name) or _plain_record(info)
        if record.group_size is not None and len(info.dims) == STACK_DIMENSIONS:
            record = replace(record, n_experts=info.dims[2])
        if record.dims != info.dims:
            metadata.refuse(f"tensor {name} has dimensions {list(info.dims)}, not {list(record.dims)}")
        records[name] = record
    return records


def _plain_record(info: TensorInfo) -> TensorRecord:
    columns, rows = info.dims[:2] if len(info.dims) > 1 else (1, info.dims[0])
    if info.ggml_type == GGML_TYPE_F16:
        n_experts = info.dims[2] if len(info.dims) == STACK_DIMENSIONS else None
        return TensorRecord(info.name, 16, rows, columns, n_experts=n_experts)
    return TensorRecord(info.name, VECTOR_BITS, rows, columns)


def _read_matrices(metadata: Metadata) -> dict[str, TensorRecord]:
    names = metadata.array(HLQ_NAMES, ValueType.STRING)
    keys = (HLQ_BITS, HLQ_ROWS, HLQ_COLUMNS, HLQ_GROUP_SIZES)
    numbers = [metadata.array(key, ValueType.UINT32) for key in keys]
    errors = metadata.array(HLQ_ERRORS, ValueType.FLOAT32)
    version = metadata.integer(HLQ_VERSION_KEY)
    kinds = _read_kinds(metadata) if version > 1 else [(FREE16.number, 0, 0)] * len(names)
    if any(len(values) != len(names) for values in (*numbers, errors, kinds)):
        metadata.refuse("the hlq.tensor arrays differ in length")
    matrices = {}
    for name, bits, rows, columns, group_size, error, kind in zip(names, *numbers, errors, kinds, strict=True):
        try:
            check_geometry(rows, columns, bits, group_size)
            matrix = TensorRecord(name, bits, rows, columns, group_size, kind=BlockKind.numbered(*kind))
        except FormatError as reason:
            metadata.refuse(f"tensor {name!r:.80}: {reason}")
        if version == 1 and needs_second_version(matrix):
            metadata.refuse(f"tensor {name!r:.80}: group size {group_size}, which version 1 does not have")
        matrices[name] = replace(matrix, error=error if math.isfinite(error) else None)
    if len(matrices) != len(names):
        metadata.refuse(f"{HLQ_NAMES} names a tensor twice")
    return matrices


def _read_kinds(metadata: Metadata) -> list[tuple[int, int, int]]:
    """Read number, exponent and center of each matrix's kind."""
    kinds = metadata.array(HLQ_KINDS, ValueType.UINT32)
    exponents, centers = metadata.array(HLQ_EXPONENTS, ValueType.UINT32), metadata.array(HLQ_CENTERS, ValueType.INT32)
    if len(kinds) != len(exponents) or len(kinds) != len(centers):
        metadata.refuse("the hlq.tensor arrays differ in length")
    return list(zip(kinds, exponents, centers, strict=True))
