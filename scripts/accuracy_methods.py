"""The methods of the accuracy table: what each is called, what runs it, and the recipe it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elutq_cli.pipeline import methods
from elutq_cli.pipeline.compute.inner_loops import InnerLoops, NativeLoops
from elutq_cli.pipeline.compute.levels import CodeArray, FloatArray, HalfArray, levels, nearest
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import Recipe
from elutq_formats.block_kind import FREE16, BlockKind, Centers
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import GROUP_SIZES

HEAD_BITS = 16
"""Of head and embedding, so that the blocks alone are compared."""

EVEN = "even16c"
"""What evenly spaced levels take: a step in float16 and a zero point of a byte for each group."""


class UniformLoops(NativeLoops):
    """Evenly spaced levels from a group's smallest to its largest weight, in place of fitted ones."""

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        kind: BlockKind = FREE16,
    ) -> tuple[HalfArray, Centers, CodeArray]:
        """See ``fit.fit_groups``; importance is not looked at. On a grid of bytes levels stay even."""
        groups = weights.reshape(len(weights), -1, group_size)
        low, high = groups.min(axis=-1), groups.max(axis=-1)
        step = (high - low) / (2**bits - 1)
        half_scales = kind.round_half_scales(step[..., None].astype(np.float64) * 2.0 ** np.arange(bits) / 2)
        centers = kind.round_centers((low.astype(np.float64) + high) / 2)
        return half_scales, centers, nearest(groups, levels(half_scales, centers)).reshape(weights.shape)


class FixedCodesLoops(NativeLoops):
    """Error feedback as ELUTQ's own code has it: the codes are chosen before a group's columns are compensated."""

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: Centers
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback.feedback_columns``."""
        group_levels = levels(half_scales, centers)
        codes, compensated = nearest(weights, group_levels), weights.copy()
        fixed = np.take_along_axis(group_levels, codes.astype(np.intp), axis=1)
        errors = np.empty_like(weights)
        for column in range(weights.shape[1]):
            errors[:, column] = (compensated[:, column] - fixed[:, column]) / factor[column, column]
            compensated[:, column + 1 :] -= errors[:, column, None] * factor[column, column + 1 :]
        return codes, errors


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        label: what the table calls it.
        options: of the recipe.
        loops: makes the inner loops for so many threads; others than ours stay on the processor.
        is_calibrated: whether it sees the calibration text.
        scale_bits: of half scales and centers, where they are part of the method; None: as asked for.
        counted_as: the kind of blocks whose bits are the method's, where its files have more in them than it needs.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    loops: Callable[[int], InnerLoops] = NativeLoops
    is_calibrated: bool = True
    scale_bits: int | None = None
    counted_as: str | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether it needs torch."""
        return "tune" in self.options


METHODS = {
    "uniform": Method(
        "uniform, round to nearest", loops=UniformLoops, is_calibrated=False, scale_bits=16, counted_as=EVEN
    ),
    "uniform-feedback": Method(
        "uniform + feedback (GPTQ)", {"method": "feedback"}, UniformLoops, scale_bits=16, counted_as=EVEN
    ),
    "fit": Method("HLQ fit, weights only", is_calibrated=False),
    "fit-weighted": Method("HLQ fit, columns weighted by the diagonal of H", {"method": "fit"}),
    "fixed-codes": Method(
        "HLQ + feedback, codes fixed first (the authors')", {"method": "feedback"}, FixedCodesLoops, scale_bits=16
    ),
    "feedback": Method("HLQ + feedback", {"method": "feedback"}),
    "refine": Method("+ refine", {"method": "refine"}),
    "correct": Method("+ correct", {"method": "correct"}),
    "rotate": Method("+ correct, rotated first", {"method": "correct", "rotate": True}),
    "allocate": Method("+ allocate (the default)", {"method": "allocate"}),
    "block": Method("+ allocate + tune block", {"method": "allocate", "tune": ("block",)}),
    "e2e": Method("+ allocate + tune e2e", {"method": "allocate", "tune": ("e2e",)}),
    "block-e2e": Method("+ allocate + tune block,e2e", {"method": "allocate", "tune": ("block", "e2e")}),
}
"""By the name that the command line has for it, in the order of the stages, which is that of the table's rows."""

METHODS |= {name: Method(f"HLQ, {name}", {"method": name}) for name in methods.METHODS if name not in METHODS}


def recipe(method: str, bits: int, group_size: int, scale_bits: int, num_samples: int, seed: int) -> Recipe:
    """Return how a row's model file is made."""
    options = dict(METHODS[method].options)
    if METHODS[method].is_calibrated:
        options["num_samples"] = num_samples
    head = {"output_bits": HEAD_BITS, "embedding_bits": HEAD_BITS}
    return Recipe(bits=bits, group_size=group_size, scale_bits=scale_bits, seed=seed, **head, **options)


def counted_bits(method: str, bits: int, group_size: int) -> float | None:
    """Return the bits per weight that a method is counted with, where it is not what its file's blocks take."""
    kind = METHODS[method].counted_as
    return None if kind is None else Layout(bits, group_size, kind).bits_per_weight


def usual_group_size(config: ModelConfig) -> int:
    """Return the recipe's own group size, or the largest below it that divides the columns of every matrix in blocks.

    Raises:
        ElutqError: none does.
    """
    columns = {shape[-1] for shape in config.linear_shapes(0).values()}
    possible = [size for size in GROUP_SIZES if size <= Recipe.group_size]
    fitting = [size for size in possible if all(count % size == 0 for count in columns)]
    if not fitting:
        raise ElutqError(f"no group size divides all of {sorted(columns)} columns")
    return max(fitting)
