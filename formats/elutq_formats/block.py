"""A decoder block as data: what its layer is made of, in the order of its computation.

A block is a run of branches off the residual stream and back onto it:

    stream += after(writer(mix(readers(before(stream)))))

The reference transformer computes what this says, calibration and the backward pass go through it, rotation folds its
norms, the forecast counts its inputs, and a model file's tensors and metadata tell the C runtime the same.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from elutq_formats.rope import Rope

Mixer: TypeAlias = Literal["attention", "gated", "experts"]
"""``attention`` of queries, keys and values; ``gated``: the first reader's output, activated, times the second's;
``experts``: the same in each expert that a token is sent to, times what the router gives that expert."""


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
        router: of ``experts``, whose readers and writer are stacks of matrices, one for each expert: the matrix in
            float32 whose outputs say how much each of them has to say.
        shared: beside ``experts``: the expert that all tokens are sent to, which reads what they read; None: there is
            none.
        gate: of a shared expert: the vector in float32 whose product with the input, squashed, multiplies its output.
    """

    mixer: Mixer
    before: str | None
    readers: tuple[str, ...]
    writer: str
    after: str | None = None
    router: str | None = None
    shared: "Branch | None" = None
    gate: str | None = None

    @property
    def shared_inputs(self) -> tuple[tuple[str, ...], ...]:
        """The linears, those together that take the same input, in the order of their computation."""
        own = (self.readers, (self.writer,))
        return own if self.shared is None else (*own, *self.shared.shared_inputs)


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
        return tuple(linears for branch in self.branches for linears in branch.shared_inputs)

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears, in the order of their computation."""
        return tuple(name for linears in self.shared_inputs for name in linears)

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms of the stream, then those of what is added to it."""
        found = [branch.before for branch in self.branches] + [branch.after for branch in self.branches]
        return tuple(name for name in found if name is not None)

    @property
    def routed(self) -> Branch | None:
        """The branch that has experts, if one does."""
        return next((branch for branch in self.branches if branch.mixer == "experts"), None)
