"""The experts of a layer, which a checkpoint stores one by one, as one tensor of the model: the matrices of a kind."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elutq_formats.errors import CheckpointError
from elutq_formats.expert_names import expert_names, split_expert
from elutq_formats.safetensors_file import ALL_ROWS, Run
from elutq_formats.stored_weights import Tensor, WeightFile


@dataclass(frozen=True)
class TensorStack:
    """Tensors of one shape, in their order: see ``stored_weights.Tensor``."""

    tensors: tuple[Tensor, ...]

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The files that hold them."""
        return tuple({id(file): file for tensor in self.tensors for file in tensor.files}.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """How many there are, and the shape of one."""
        return len(self.tensors), *self.tensors[0].shape

    @property
    def dtype(self) -> str:
        """The type of the first, or of one that cannot be loaded."""
        kinds = (tensor.dtype for tensor in self.tensors if tensor.dtype not in tensor.dtypes)
        return next(kinds, self.tensors[0].dtype)

    @property
    def dtypes(self) -> Collection[str]:
        """The types that ``load`` takes."""
        return self.tensors[0].dtypes

    def load(self, run: Run = map, rows: slice = ALL_ROWS) -> npt.NDArray[np.float32]:
        """Return them, or some, in a new float32 array; only those are read."""
        wanted = self.tensors[rows]
        if len(wanted) == 1:
            return wanted[0].load(run)[None]
        found = np.empty((len(wanted), *self.shape[1:]), dtype=np.float32)
        for place, tensor in zip(found, wanted, strict=True):
            place[...] = tensor.load(run)
        return found

    def pieces(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield their bytes, some at a time."""
        for tensor in self.tensors:
            yield from tensor.pieces()


def gather_experts(tensors: Mapping[str, Tensor], place: object) -> dict[str, Tensor]:
    """Return tensors, those of experts in stacks: ``experts.0.w1.weight`` and its kin become ``experts.w1.weight``.

    Args:
        tensors: by their names.
        place: where they are.

    Raises:
        CheckpointError: one is missing, or has another shape than its kin.
    """
    found: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, str]] = {}
    for name, tensor in tensors.items():
        if (place_in_stack := split_expert(name)) is None:
            found[name] = tensor
        else:
            stacks.setdefault(place_in_stack[0], {})[place_in_stack[1]] = name
    for stack, names in stacks.items():
        for number, name in enumerate(expert_names(stack, len(names))):
            if number not in names:
                raise CheckpointError(f"{place} has no tensor {name}")
        members = tuple(tensors[names[number]] for number in range(len(names)))
        for number, tensor in enumerate(members):
            if tensor.shape != members[0].shape:
                raise CheckpointError(
                    f"{place}: tensor {names[number]} has shape {list(tensor.shape)}, that of the first expert "
                    f"{list(members[0].shape)}"
                )
        found[stack] = TensorStack(members)
    return found
