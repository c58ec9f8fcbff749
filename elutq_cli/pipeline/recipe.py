"""The recipe: every option that decides what ends up in the file, and the plan it makes for a model's matrices."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from elutq_formats.config import ModelConfig
from elutq_formats.constants import HLQ_MAX_BITS, HLQ_MIN_BITS
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import GROUP_SIZES

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
HALF_BITS = 16
METHODS = ("fit", "feedback", "refine", "correct")


@dataclass(frozen=True)
class Recipe:
    """How to quantize; the same recipe, checkpoint and calibration text give the same file.

    Attributes:
        bits: bit-planes of the blocks' linears.
        group_size: columns that share their levels, in every quantized matrix.
        output_bits: bit-planes of the output head, 16 for float16. A tied head is stored apart only when this differs
            from embedding_bits.
        embedding_bits: bit-planes of the embedding, 16 for float16.
        num_samples: calibration sequences.
        sequence_length: tokens in each of them.
        seed: chooses the sequences.
        damping: added to a Hessian's diagonal before it is factored, relative to the diagonal's mean.
        method: what is done to calibrated linears: fit alone, feedback, feedback and refine, or those two aimed at what
            corrects the quantized prefix. Without calibration there is only fit.
        rotate: whether the residual stream and the value heads are rotated first, by the seed; stores the head apart.
    """

    bits: int = 2
    group_size: int = 128
    output_bits: int = 4
    embedding_bits: int = 4
    num_samples: int = 64
    sequence_length: int = 512
    seed: int = 0
    damping: float = 0.01
    method: str = "correct"
    rotate: bool = False

    def __post_init__(self) -> None:
        """Check every option by itself.

        Raises:
            ElutqError: one is out of range.
        """
        hlq_bits = range(HLQ_MIN_BITS, HLQ_MAX_BITS + 1)
        _require("bits", self.bits, hlq_bits)
        _require("group size", self.group_size, GROUP_SIZES)
        _require("output bits", self.output_bits, (*hlq_bits, HALF_BITS))
        _require("embedding bits", self.embedding_bits, (*hlq_bits, HALF_BITS))
        if self.num_samples < 1:
            raise ElutqError(f"number of samples is {self.num_samples}: it must be at least 1")
        if self.sequence_length < 2:
            raise ElutqError(f"sequence length is {self.sequence_length}: it must be at least 2 tokens")
        if self.seed < 0:
            raise ElutqError(f"seed is {self.seed}: it must not be negative")
        if not 0.0 < self.damping <= 1.0:
            raise ElutqError(f"damping is {self.damping}: it must be above 0 and at most 1")
        if self.method not in METHODS:
            raise ElutqError(f"method {self.method} is not known: choose {', '.join(METHODS[:-1])} or {METHODS[-1]}")

    def to_json(self) -> str:
        """Return all options as a JSON object."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class MatrixPlan:
    """What becomes of one matrix.

    Attributes:
        name: its name in the checkpoint.
        bits: bit-planes, or 16 for float16.
        group_size: columns that share their levels; None in float16.
    """

    name: str
    bits: int
    group_size: int | None


@dataclass(frozen=True)
class Plan:
    """What becomes of every matrix of a model.

    Attributes:
        embedding: the embedding.
        blocks: the linears of each block, in the order of ``ModelConfig.linear_names``.
        head: the output head, or None when the embedding serves as head.
    """

    embedding: MatrixPlan
    blocks: tuple[tuple[MatrixPlan, ...], ...]
    head: MatrixPlan | None

    @classmethod
    def make(cls, config: ModelConfig, recipe: Recipe) -> "Plan":
        """Apply a recipe to a model.

        Raises:
            ElutqError: the group size does not divide the columns of a matrix that is to be quantized.
        """

        def matrix(name: str, bits: int) -> MatrixPlan:
            return MatrixPlan(name, bits, None if bits == HALF_BITS else recipe.group_size)

        blocks = tuple(
            tuple(matrix(name, recipe.bits) for name in config.linear_names(layer))
            for layer in range(config.num_hidden_layers)
        )
        shared_head = config.tie_word_embeddings and recipe.output_bits == recipe.embedding_bits
        head = None if shared_head else matrix(HEAD, recipe.output_bits)
        plan = cls(matrix(EMBEDDING, recipe.embedding_bits), blocks, head)
        columns = {name: shape[-1] for name, shape in config.tensor_shapes().items()}
        columns[HEAD] = config.hidden_size
        _check_groups({entry.name: columns[entry.name] for entry in plan.matrices() if entry.group_size}, recipe)
        return plan

    def matrices(self) -> Iterable[MatrixPlan]:
        """Yield every matrix, in the order in which they are quantized."""
        yield self.embedding
        for block in self.blocks:
            yield from block
        if self.head is not None:
            yield self.head


def _require(name: str, value: int, allowed: Iterable[int]) -> None:
    choices = [str(choice) for choice in allowed]
    if str(value) not in choices:
        raise ElutqError(f"{name} {value} is not possible: choose {', '.join(choices[:-1])} or {choices[-1]}")


def _check_groups(columns: dict[str, int], recipe: Recipe) -> None:
    """Check that the group size divides the columns of every matrix, and name one that does if there is any."""
    unfit = [name for name, n_columns in columns.items() if n_columns % recipe.group_size]
    if not unfit:
        return
    fitting = [size for size in GROUP_SIZES if all(n_columns % size == 0 for n_columns in columns.values())]
    advice = f"use --group-size {max(fitting)}" if fitting else "no supported group size fits this model"
    raise ElutqError(
        f"groups of {recipe.group_size} do not divide the {columns[unfit[0]]} columns of {unfit[0]}: {advice}"
    )
