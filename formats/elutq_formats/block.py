"""A decoder block as data: what its layer is made of, in the order of its computation.

A block is a run of branches off the residual stream and back onto it:

    stream += after(writer(mix(readers(before(stream)))))

The reference transformer computes what this says, calibration and the backward pass go through it, rotation folds its
norms, the forecast counts its inputs, and a model file's tensors and metadata tell the C runtime the same.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from elutq_formats.rope import Rope

Mixer: TypeAlias = Literal["attention", "gated"]
"""``attention`` of queries, keys and values; ``gated``: the first reader's output, activated, times the second's."""


Activation: TypeAlias = Literal["silu", "gelu_pytorch_tanh"]
"""Of a gate, as ``config.json`` has it."""


@dataclass(frozen=True)
class Branch:
    """One way off the residual stream and back. Names are a checkpoint's, without ``model.layers.N.`` and ``.weight``.

    Attributes:
        mixer: what turns the readers' outputs into the writer's input.
        before: the RMSNorm of the stream that the readers see; None: they see the stream itself.
        readers: linears that share an input.
        writer: the linear whose output goes onto the stream.
        after: the RMSNorm that this output passes first; None: it is added as it is.
    """

    mixer: Mixer
    before: str | None
    readers: tuple[str, ...]
    writer: str
    after: str | None = None


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        branches: in the order of their computation.
        window: a token attends to itself and this many less one before it; None: to all before it.
        rope: how its heads turn; None: they do not, and the layer knows no positions.
    """

    branches: tuple[Branch, ...]
    window: int | None
    rope: Rope | None

    @property
    def shared_inputs(self) -> tuple[tuple[str, ...], ...]:
        """The linears, those together that take the same input, in the order of their computation."""
        return tuple(linears for branch in self.branches for linears in (branch.readers, (branch.writer,)))

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears, in the order of their computation."""
        return tuple(name for linears in self.shared_inputs for name in linears)

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms of the stream, then those of what is added to it."""
        found = [branch.before for branch in self.branches] + [branch.after for branch in self.branches]
        return tuple(name for name in found if name is not None)
