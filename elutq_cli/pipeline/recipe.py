"""The recipe: every option that decides what ends up in the file, and the plan it makes for a model's matrices."""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType

from elutq_cli.options import settle_types
from elutq_cli.pipeline.layout import KIND_OF_SCALES, Layout
from elutq_cli.pipeline.methods import METHODS, WITH_TEXT, WITHOUT_TEXT
from elutq_cli.reference import Array
from elutq_formats.block_kind import FREE16, BlockKind
from elutq_formats.config import ModelConfig
from elutq_formats.constants import HLQ_MAX_BITS, HLQ_MIN_BITS
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import GROUP_SIZES
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.names import gguf_name
from elutq_formats.tensor_record import TensorRecord

HALF_BITS = 16
OUTER_BITS = 4
"""Bit-planes of the embedding and the head where nobody says."""
LARGEST_SEED = 2**63 - 1  # what a model file can say
TUNINGS = ("block", "e2e")
TUNE_TOKENS = 1 << 18
"""What end-to-end tuning learns from where nobody says."""
IMPORT = "import"
"""The method of ``elutq import``: matrices that others have quantized keep their levels, and none goes through stages
but the embedding and the head, where they are not quantized yet."""
_OF_IMPORT = ("method", "group_size", "scale_bits", "output_bits", "embedding_bits")
"""Options that mean something to it."""
_OF_CALIBRATION = {
    "num_samples": "a number of samples",
    "sequence_length": "a sequence length",
    "damping": "damping",
}
"""Options that mean nothing without a calibration text, as messages call them."""


@dataclass(frozen=True)
class Recipe:
    """How to quantize; the same recipe, checkpoint and calibration text give the same file.

    Attributes:
        bits: bit-planes of the blocks' linears.
        group_size: columns that share their levels, in every quantized matrix.
        scale_bits: of each half scale and center, 8 or 16, in every quantized matrix, evenly spaced levels that
            allocate may choose included; one whose weights bytes do not suit, as they are too different in size or all
            too small, keeps 16.
        output_bits: bit-planes of the output head, 16 for float16. A tied head is stored apart only when this differs
            from embedding_bits. None: OUTER_BITS; but without a target_bpw allocate chooses for it, and for the
            embedding if it is that and has no bits of its own either, within what it and the linears would take.
        embedding_bits: bit-planes of the embedding, 16 for float16; None: OUTER_BITS, or what is chosen for the head
            that it is.
        num_samples: calibration sequences.
        sequence_length: tokens in each of them.
        seed: chooses the sequences.
        damping: added to a Hessian's diagonal before it is factored, relative to it.
        method: what is done to linears: fit alone, each column weighted by the diagonal of the Hessian where there is a
            calibration text; or, with a text, feedback, feedback and refine, those two aimed at what corrects the
            residual stream where a linear adds to it, or this with a layout chosen for each linear at the same total
            size. None: allocate with a text, fit without. IMPORT keeps the levels of a checkpoint that others have
            quantized.
        tune: what is learned by gradients after that: ``block``, a block's levels and bits by its output; ``e2e``, all
            levels by the model's predictions; in this order.
        tune_tokens: of text that e2e learns from; None: TUNE_TOKENS where there is no tune_minutes either.
        tune_minutes: after which it ends, if the tokens have not. Then the file depends on the machine's speed.
        rotate: whether the residual stream and the value heads are rotated first, by the seed; stores the head apart.
        target_bpw: bits per weight of the blocks' linears, scales and centers included, when bits and group size are
            chosen for each of them. None: what ``bits`` and ``group_size`` would take for those that ``tensor_types``
            leaves free, and for the head where it is chosen, too: with what it does not need linears have more.
        tensor_types: REGEX=BITS or REGEX=BITSgGROUP for matrices whose name in the file (without ``.weight``) has a
            match; the last one that matches counts, before anything else.
    """

    bits: int = 2
    group_size: int = 64
    scale_bits: int = 8
    output_bits: int | None = None
    embedding_bits: int | None = None
    num_samples: int = 64
    sequence_length: int = 512
    seed: int = 0
    damping: float = 0.3
    method: str | None = None
    tune: tuple[str, ...] = ()
    tune_tokens: int | None = None
    tune_minutes: float | None = None
    rotate: bool = False
    target_bpw: float | None = None
    tensor_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every option by itself; one text is taken for a tuple of it, and one of ``tune`` cut at its commas.

        Raises:
            ElutqError: one is of a wrong type or out of range.
        """
        settle_types(self)
        tuned = ",".join(self.tune)
        object.__setattr__(self, "tune", tuple(tuned.split(",")) if tuned else ())
        hlq_bits = range(HLQ_MIN_BITS, HLQ_MAX_BITS + 1)
        _require("bits", self.bits, hlq_bits)
        _require("group size", self.group_size, GROUP_SIZES)
        _require("scale bits", self.scale_bits, KIND_OF_SCALES)
        for name, outer in (("output bits", self.output_bits), ("embedding bits", self.embedding_bits)):
            if outer is not None:
                _require(name, outer, (*hlq_bits, HALF_BITS))
        if self.num_samples < 1:
            raise ElutqError(f"number of samples is {self.num_samples}: it must be at least 1")
        if self.sequence_length < 2:
            raise ElutqError(f"sequence length is {self.sequence_length}: it must be at least 2 tokens")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ElutqError(f"seed is {self.seed}: it must be 0 to {LARGEST_SEED}")
        if not 0.0 < self.damping <= 1.0:
            raise ElutqError(f"damping is {self.damping}: it must be above 0 and at most 1")
        if self.method not in (None, IMPORT, *METHODS):
            *others, last = METHODS
            raise ElutqError(f"method {self.method} is not known: choose {', '.join(others)} or {last}")
        if self.tune not in ((), *((name,) for name in TUNINGS), TUNINGS):
            raise ElutqError(f"tuning {tuned} is not known: choose block, e2e or block,e2e")
        if (self.tune_tokens, self.tune_minutes) != (None, None) and "e2e" not in self.tune:
            raise ElutqError("a number of tokens or minutes to tune for is of end-to-end tuning: add e2e (--tune)")
        if self.tune_tokens is not None and self.tune_tokens < 1:
            raise ElutqError(f"{self.tune_tokens} tokens to tune on: there must be at least 1")
        if self.tune_minutes is not None and not 0.0 < self.tune_minutes < math.inf:
            raise ElutqError(f"{self.tune_minutes:g} minutes to tune for: there must be more than 0")
        if self.target_bpw is not None and not 0.0 < self.target_bpw < HALF_BITS:
            raise ElutqError(f"target {self.target_bpw:g} bits per weight: it must be above 0 and below {HALF_BITS}")
        if self.target_bpw is not None and self.method is not None and not self.allocates:
            raise ElutqError(f"a target of bits per weight needs method {WITH_TEXT}, not {self.method}")
        for entry in self.tensor_types:
            TensorType.parse(entry, self.layout(self.bits))

    def resolved(self, calibrated: bool) -> "Recipe":
        """Return the recipe with its method chosen, for a run with a calibration text or without.

        Raises:
            ElutqError: it asks for something that only a text, or another method, could honour.
        """
        if self.method == IMPORT:
            return self._resolved_import(calibrated)
        method = self.method or (WITH_TEXT if calibrated else WITHOUT_TEXT)
        changed = {name for name in _OF_CALIBRATION if getattr(self, name) != getattr(Recipe, name)}
        if not calibrated:
            wanted = [f"method {method}"] if method != WITHOUT_TEXT else []
            wanted += ["a target of bits per weight"] if self.target_bpw is not None else []
            wanted += ["tuning"] if self.tune else []
            wanted += [what for name, what in _OF_CALIBRATION.items() if name in changed]
            if wanted:
                raise ElutqError(f"{wanted[0]} needs a text to calibrate on: add one (--calibration)")
        if not METHODS[method].factors and "damping" in changed:
            raise ElutqError(f"method {method} factors no Hessian: it takes no damping")
        unlimited = "e2e" in self.tune and self.tune_tokens is None and self.tune_minutes is None
        found = replace(self, method=method, tune_tokens=TUNE_TOKENS if unlimited else self.tune_tokens)
        return found if found.allocates else found._with_outer_bits()

    def _resolved_import(self, calibrated: bool) -> "Recipe":
        """Refuse what would need stages."""
        changed = [
            name for name in asdict(self) if name not in _OF_IMPORT and getattr(self, name) != getattr(Recipe, name)
        ]
        if calibrated or changed:
            what = "text to calibrate on" if calibrated else changed[0].replace("_", " ")
            raise ElutqError(f"an imported checkpoint keeps its levels: it takes no {what}")
        return self._with_outer_bits()

    def _with_outer_bits(self) -> "Recipe":
        """Return the same with the bits of embedding and head that nobody chooses."""
        output, embedding = (OUTER_BITS if bits is None else bits for bits in (self.output_bits, self.embedding_bits))
        return replace(self, output_bits=output, embedding_bits=embedding)

    def untuned(self) -> "Recipe":
        """Return the same without tuning."""
        return replace(self, tune=(), tune_tokens=None, tune_minutes=None)

    @property
    def stages(self) -> tuple[str, ...]:
        """What matrices go through whose inputs are known, by name; none where no method is chosen, or IMPORT."""
        return METHODS[self.method].stages if self.method in METHODS else ()

    @property
    def factors(self) -> bool:
        """Whether stages need a factor of the Hessian."""
        return self.method in METHODS and METHODS[self.method].factors

    @property
    def allocates(self) -> bool:
        """Whether a layout is chosen for each linear."""
        return self.method in METHODS and METHODS[self.method].allocates

    @property
    def corrects(self) -> bool:
        """Whether linears that add to the residual stream aim at what undoes the quantized prefix's errors."""
        return self.method in METHODS and METHODS[self.method].corrects

    @property
    def keeps_exact(self) -> bool:
        """Whether the activations of the exact model are kept beside those of the quantized prefix."""
        return self.corrects or "block" in self.tune

    @property
    def budget(self) -> float:
        """Bits per weight that the blocks' linears bring when layouts are chosen one by one."""
        return self.layout(self.bits).bits_per_weight if self.target_bpw is None else self.target_bpw

    @property
    def expected_bits(self) -> int:
        """Bits of a linear in a plan, while none are chosen: with a target, the fewest whose layout is as large."""
        if self.target_bpw is None:
            return self.bits
        sizes = {bits: self.layout(bits).bits_per_weight for bits in range(HLQ_MIN_BITS, HLQ_MAX_BITS)}
        return next((bits for bits, size in sizes.items() if size >= self.target_bpw), HLQ_MAX_BITS)

    def layout(self, bits: int) -> Layout:
        """Return that of a matrix of so many bit-planes."""
        return Layout(bits, self.group_size, KIND_OF_SCALES[self.scale_bits])

    def to_json(self) -> str:
        """Return all options that mean something to the method as a JSON object."""
        options = asdict(self)
        return json.dumps({name: options[name] for name in _OF_IMPORT} if self.method == IMPORT else options)


@dataclass(frozen=True)
class TensorType:
    """What becomes of the matrices whose name in the file matches: one --tensor-type option.

    Attributes:
        pattern: searched for in the name, without ``.weight``.
        layout: how they are stored; None: float16.
    """

    pattern: re.Pattern[str]
    layout: Layout | None

    @classmethod
    def parse(cls, text: str, usual: Layout) -> "TensorType":
        """Read REGEX=BITS or REGEX=BITSgGROUP; what it leaves open is as usual.

        Raises:
            ElutqError: it is neither.
        """
        pattern, _, choice = text.rpartition("=")
        found = re.fullmatch(r"([1-4])(?:g(32|64|128|256))?|16", choice)
        if not pattern or found is None:
            raise ElutqError(
                f"tensor type {text}: write REGEX=BITS or REGEX=BITSgGROUP with 1 to 4 bits in groups of 32, 64, 128 "
                "or 256, such as ffn_down=3g64, or 16 bits"
            )
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ElutqError(f"tensor type {text}: {pattern!r} is not a regular expression: {error}") from error
        if choice == str(HALF_BITS):
            return cls(compiled, None)
        return cls(compiled, replace(usual, bits=int(found[1]), group_size=int(found[2] or usual.group_size)))

    def matches(self, name: str) -> bool:
        """Whether a matrix of this name in the checkpoint is meant."""
        return self.pattern.search(gguf_name(name).removesuffix(".weight")) is not None


@dataclass(frozen=True)
class MatrixPlan:
    """What becomes of one matrix.

    Attributes:
        name: its name in the checkpoint.
        layout: how it is stored; None: float16.
        kept: whether its levels are those of a checkpoint that others have quantized. The kind of its blocks, of which
            headers tell no more than a bound, is then chosen when it is read.
    """

    name: str
    layout: Layout | None
    kept: bool = False

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes."""
        return float(HALF_BITS) if self.layout is None else self.layout.bits_per_weight

    def settle(self, parts: Iterable[Array]) -> tuple["MatrixPlan", BlockKind]:
        """Return how it can be stored, and the kind with its exponent: see ``Layout.settle``."""
        if self.layout is None:
            return self, FREE16
        layout, kind = self.layout.settle(parts)
        return replace(self, layout=layout), kind

    def record(self, shape: tuple[int, ...], error: float | None = None, kind: BlockKind | None = None) -> TensorRecord:
        """Return what the file says about it.

        Args:
            shape: (rows, columns), of a stack of experts (n_experts, rows, columns).
            error: that was measured.
            kind: of its blocks; None: that of the layout, as long as there is no exponent.
        """
        name, (*stack, rows, columns) = gguf_name(self.name), shape
        n_experts = stack[0] if stack else None
        if self.layout is None:
            return TensorRecord(name, HALF_BITS, rows, columns, n_experts=n_experts)
        bits, group_size, kind = self.layout.bits, self.layout.group_size, kind or self.layout.block_kind
        return TensorRecord(name, bits, rows, columns, group_size, error, kind, n_experts)


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
    def make(
        cls,
        config: ModelConfig,
        recipe: Recipe,
        choices: Mapping[str, Layout] = MappingProxyType({}),
        kept: Mapping[str, Layout] = MappingProxyType({}),
    ) -> "Plan":
        """Apply a recipe to a model.

        Args:
            config: of the model.
            recipe: how to quantize.
            choices: layouts of matrices for which the allocate stage chose them, by name.
            kept: those of matrices whose levels are kept.

        Raises:
            ElutqError: a group size does not divide the columns of its matrix, or a tensor type matches none.
        """
        types = [TensorType.parse(entry, recipe.layout(recipe.bits)) for entry in recipe.tensor_types]
        used: set[int] = set()

        def matrix(name: str, bits: int | None) -> MatrixPlan:
            if name in kept:
                return MatrixPlan(name, kept[name], kept=True)
            bits = OUTER_BITS if bits is None else bits
            layout = choices.get(name, None if bits == HALF_BITS else recipe.layout(bits))
            for index, entry in enumerate(types):
                if entry.matches(name):
                    used.add(index)
                    layout = entry.layout
            return MatrixPlan(name, layout)

        linear_bits = HALF_BITS if recipe.method == IMPORT else recipe.expected_bits
        blocks = tuple(
            tuple(matrix(name, linear_bits) for name in config.linear_names(layer))
            for layer in range(config.num_hidden_layers)
        )
        embedding, head = matrix(EMBEDDING, recipe.embedding_bits), matrix(HEAD, recipe.output_bits)
        for index, text in enumerate(recipe.tensor_types):
            if index not in used:
                raise ElutqError(f"tensor type {text} matches no matrix: names are those that elutq info prints")
        same = head.layout == embedding.layout
        plan = cls(embedding, blocks, None if config.tie_word_embeddings and same else head)
        columns = {name: shape[-1] for name, shape in config.tensor_shapes().items()}
        columns[HEAD] = config.hidden_size
        _check_groups(plan, columns, recipe.group_size)
        return plan

    @property
    def head_is_embedding(self) -> bool:
        """Whether the embedding, in levels of its own, is the head, too."""
        return self.head is None and self.embedding.layout is not None

    def matrices(self) -> Iterable[MatrixPlan]:
        """Yield every matrix, in the order in which they are quantized."""
        yield self.embedding
        for block in self.blocks:
            yield from block
        if self.head is not None:
            yield self.head


def _require(name: str, value: int, allowed: Collection[int]) -> None:
    if value not in allowed:
        choices = [str(choice) for choice in allowed]
        raise ElutqError(f"{name} {value} is not possible: choose {', '.join(choices[:-1])} or {choices[-1]}")


def _check_groups(plan: Plan, columns: Mapping[str, int], usual: int) -> None:
    """Check that each group size divides the columns of its matrix, and name one that suits all if there is any."""
    grouped = {entry.name: entry.layout.group_size for entry in plan.matrices() if entry.layout is not None}
    unfit = [name for name, group_size in grouped.items() if columns[name] % group_size]
    if not unfit:
        return
    is_own = grouped[unfit[0]] != usual
    concerned = unfit[:1] if is_own else [name for name, group_size in grouped.items() if group_size == usual]
    fitting = [size for size in GROUP_SIZES if all(columns[name] % size == 0 for name in concerned)]
    option = "g{} in its tensor type" if is_own else "groups of {} (--group-size)"
    advice = f"use {option.format(max(fitting))}" if fitting else "no supported group size fits this model"
    raise ElutqError(
        f"groups of {grouped[unfit[0]]} do not divide the {columns[unfit[0]]} columns of {unfit[0]}: {advice}"
    )
