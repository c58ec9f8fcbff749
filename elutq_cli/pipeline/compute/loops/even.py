"""Evenly spaced levels: all of a group follow from one half scale, a byte, and a center counted in quarters of it.

The numpy functions here define the result; native/src/quantize/even.h repeats them bit for bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.levels import FloatArray, HalfArray
from elutq_formats.block_kind import CENTER_UNIT, BlockKind

DoubleArray = npt.NDArray[np.float64]

SCALES, ABOVE = 32, 4
"""Bytes that a fit tries for the half scale: an octave, and how many of them are above the one whose levels span the
group's range. Of groups of 32 to 128 weights of Qwen2.5-Coder-0.5B and SmolLM2-135M, at 3 and 4 bits, the best of more
bytes is not among them for 0.1 %, and for 0.7 % where columns have log-normal importance."""

AWAY = range(-8, 8, 2), (-1, 1)
"""Centers that it tries with each, in quarters of the half scale: every second about the middle of the range, then the
neighbours of the best of them. Eight quarters are all the places that levels can have between the weights; the others
leave out more of one side's outliers. On those groups the squared error is at most 0.1 % above that of all sixteen.
Centers within six quarters raise it by 0.1 to 0.5 % where there is importance, those within ten lower it by 0.1 to
0.2 %."""

CENTER_REACH = 31.0
"""Half scales that a center is away from 0 at most, about."""


def fit_even(groups: FloatArray, importance: FloatArray, bits: int, kind: BlockKind) -> tuple[HalfArray, FloatArray]:
    """Return the half scales (bits, n) and centers (n,) with the least error of all that are tried.

    The grid is so coarse that what descends from a start ends far from the best: so levels are not solved for and then
    rounded, but looked for among those that the file can hold.

    Args:
        groups: (group_size, n) float32, the weights.
        importance: the same shape, what a squared error costs.
        bits: bit-planes.
        kind: of the blocks.
    """
    lowest, highest = groups.min(axis=0).astype(np.float64), groups.max(axis=0).astype(np.float64)
    middle, reach = (lowest + highest) * 0.5, (highest - lowest) * 0.5
    spanning = np.maximum(reach / (2**bits - 1), np.abs(middle) / CENTER_REACH)
    top = kind.stored_half_scales(spanning).astype(np.int64) + ABOVE
    firsts = _scales(top - np.arange(SCALES)[:, None], kind)
    best, least = _quarters(middle, firsts), np.full(firsts.shape, np.inf, dtype=np.float32)
    for every in AWAY:
        start = best
        for away in every:
            tried = _sound(start + np.float32(away))
            errors = _errors(groups, importance, bits, firsts, tried)
            better = errors < least
            best, least = np.where(better, tried, best), np.where(better, errors, least)
    chosen = least.argmin(axis=0)[None]
    first, quarters = (np.take_along_axis(of_all, chosen, axis=0)[0] for of_all in (firsts, best))
    return spread_even(first, bits), _center(quarters, first)


def round_even(theta: DoubleArray, matrix: DoubleArray, kind: BlockKind) -> tuple[FloatArray, FloatArray]:
    """Round the half scales (negative, too) and centers that solve groups' normal equations.

    Of the bytes near the solution, each with the center that is best with it, the one that loses least.

    Args:
        theta: (2, n) float64, half scales of the first plane and centers.
        matrix: (2, 2, n) float64, of the normal equations; the lower triangle is used.
        kind: of the blocks.

    Returns:
        half scales of the first plane, with the signs of the solution, and centers: (n,) float32 each.
    """
    (first, center), own, across, total = theta, matrix[0, 0], matrix[1, 0], matrix[1, 1]
    nearest = kind.stored_half_scales(np.abs(first)).astype(np.int64)
    least = np.full(first.shape, np.inf)
    best, centers = np.zeros(first.shape, dtype=np.float32), np.zeros(first.shape, dtype=np.float32)
    for move in (0, -1, 1):
        magnitude = _scales(nearest + move, kind)
        signed = np.where(first < 0.0, -magnitude, magnitude)
        moved = signed.astype(np.float64) - first
        found = _center(_quarters(center - across / total * moved, magnitude), magnitude)
        shifted = found.astype(np.float64) - center
        lost = own * (moved * moved) + 2.0 * across * (moved * shifted) + total * (shifted * shifted)
        better = lost < least
        least = np.where(better, lost, least)
        best, centers = np.where(better, signed, best), np.where(better, found, centers)
    return best, centers


def spread_even(first: FloatArray, bits: int) -> HalfArray:
    """Return the half scales of all planes, (bits, ...) float16, from those of the first."""
    powers = (2.0 ** np.arange(bits, dtype=np.float32)).reshape(-1, *([1] * first.ndim))
    half_scales: HalfArray = (first * powers).astype(np.float16)
    return half_scales


def _scales(bytes_: npt.NDArray[np.int64], kind: BlockKind) -> FloatArray:
    return kind.restore_half_scales(np.clip(bytes_, 0, 255).astype(np.uint8)).astype(np.float32)


def _quarters(centers: DoubleArray, firsts: FloatArray) -> FloatArray:
    """Return the whole numbers of quarters of half scales that are nearest to centers."""
    counts = np.divide(4.0 * centers, firsts, out=np.zeros(firsts.shape), where=firsts > 0.0)
    return _sound(np.rint(counts))


def _sound(quarters: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Return what a file can hold."""
    sound: FloatArray = np.clip(quarters, -128.0, 127.0).astype(np.float32)
    return sound


def _center(quarters: FloatArray, first: FloatArray) -> FloatArray:
    centers: FloatArray = first * (quarters * np.float32(CENTER_UNIT)) + np.float32(0)
    return centers  # no zero has a sign


def _errors(
    groups: FloatArray, importance: FloatArray, bits: int, firsts: FloatArray, quarters: FloatArray
) -> FloatArray:
    """Return what groups cost if each weight takes its nearest level: (scales, n) float32, as half scales and centers.

    A weight's place is counted in steps from half a step below the lowest level.
    """
    last = np.float32(2**bits - 1)
    per_step = np.divide(np.float32(0.5), firsts, out=np.zeros_like(firsts), where=firsts > 0.0)
    below = np.float32(2 ** (bits - 1)) - quarters * np.float32(CENTER_UNIT / 2)
    sums = np.zeros_like(firsts)
    for weights, masses in zip(groups, importance, strict=True):
        places = weights * per_step + below
        off = places - np.trunc(np.clip(places, np.float32(0), last)) - np.float32(0.5)
        sums += masses * (off * off)
    return np.where(firsts > 0.0, sums * (firsts * firsts), np.float32(np.inf))
