"""A checkpoint's weights, refused where nothing good can be made of them."""

from collections.abc import Iterator

import numpy as np

from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import pieces
from elutq_cli.pipeline.stages.by_rows import runs_of_rows
from elutq_formats.block_kind import LARGEST_HALF
from elutq_formats.config import ModelConfig
from elutq_formats.errors import DamagedWeightsError, ElutqError
from elutq_formats.hlq import HLQTensor
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.safetensors_file import ALL_ROWS
from elutq_formats.source import Weights

CHECKED_AT_ONCE = 1 << 20


class CheckedWeights:
    """What the stages read weights from.

    Attributes:
        config: hyper-parameters of the model.
        source: what they are read from, unchecked.
    """

    def __init__(self, source: Weights, crew: Crew) -> None:
        """Read nothing yet; the crew will."""
        self.config: ModelConfig = source.config
        self.source = source
        self._crew = crew

    def has(self, name: str) -> bool:
        """Whether the model has this tensor."""
        return self.source.has(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.source.shape(name)

    def load(self, name: str, rows: slice = ALL_ROWS) -> FloatArray:
        """Return a tensor, or some of its rows.

        Raises:
            DamagedWeightsError: a value is not finite, or a matrix has one that float16 cannot hold.
        """
        tensor = self.source.load(name, self._crew.map, rows)
        flat = tensor.reshape(-1)
        largest = float(np.max(self._crew.map(lambda part: _largest(flat[part]), pieces(flat.size, CHECKED_AT_ONCE))))
        if not np.isfinite(largest):
            raise DamagedWeightsError(f"tensor {name} holds values that are not finite: the checkpoint is damaged")
        if tensor.ndim > 1 and largest > LARGEST_HALF:
            raise DamagedWeightsError(
                f"tensor {name} holds {largest:g}: weights up to {LARGEST_HALF:g} can be quantized"
            )
        return tensor

    def levels(self, name: str) -> HLQTensor:
        """Return a matrix that others have quantized, with their levels.

        Raises:
            ElutqError: they have not, or no HLQ matrix has these levels.
        """
        found = self.source.levels(name, self._crew.map)
        if found is None:
            raise ElutqError(f"tensor {name} is not quantized: it has no levels to keep")
        return found

    def load_by_rows(self, name: str) -> Iterator[tuple[slice, FloatArray]]:
        """Yield a matrix some rows at a time, with their place: ``runs_of_rows``.

        Those of an embedding or a head are read when their turn comes; to rotate another matrix takes all of it.

        Raises:
            ElutqError: see ``load``.
        """
        whole = None if name in (EMBEDDING, HEAD) else self.load(name)
        for rows in runs_of_rows(self.shape(name)[0]):
            yield rows, self.load(name, rows) if whole is None else whole[rows]


def _largest(values: FloatArray) -> float:
    return float(np.maximum(values.max(), -values.min()))
