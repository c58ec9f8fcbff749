"""A quantized matrix that gradients can change: its levels alone, or its levels and bits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from elutq_formats.block_kind import LARGEST_HALF, BlockKind
from elutq_formats.constants import CENTER_SHIFT, HALF_SCALE_SHIFT
from elutq_formats.errors import ElutqError
from elutq_formats.hlq import HLQTensor

Tensor: TypeAlias = Any  # torch.Tensor; written so that types can be checked without torch

TINY = 1e-8

SIGNS_OF_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=-1, bitorder="little") * np.float32(2) - 1
"""(256, 8) float32: what a byte of a bit-plane says of eight columns, -1 or 1."""


class LearnedLevels:
    """An HLQ matrix on a torch device, whose half scales and centers are learned; codes stay, packed.

    What is learned begins at 0 and is in units of the group's reach, the distance from its center to its outermost
    level: steps of one size then suit all groups, whatever their scale.

    Attributes:
        shifts: (rows, groups, bits + 1) float32, of half scales and center.
    """

    def __init__(self, start: HLQTensor, device: str) -> None:
        """Copy a matrix to the device.

        Raises:
            ElutqError: its levels are evenly spaced.
        """
        if start.kind.is_even:
            raise ElutqError(f"tuning moves each half scale by itself, and a matrix is of kind {start.kind}")
        self._bits, self._group_size, self._kind = start.bits, start.group_size, start.kind
        levels = np.concatenate([start.half_scales, start.centers[..., None]], axis=-1)
        self._start = torch.asarray(levels, device=device).float()
        self._reach = self._start[..., :-1].sum(dim=-1, keepdim=True).clamp_min(TINY)
        self._planes = torch.asarray(_packed_planes(start), device=device)
        self._signs_of_bytes = torch.asarray(SIGNS_OF_BYTES, device=device)
        self.shifts: Tensor = torch.zeros_like(self._start, requires_grad=True)

    def values(self) -> Tensor:
        """Return what a model file would hold, (rows, columns) float32, for a gradient of its own: see ``pass_back``.

        A model's matrices then keep nothing for their gradients but these.
        """
        with torch.no_grad():
            half_scales, centers = self._levels()
            values = centers[..., None].expand(*centers.shape, self._group_size)
            for plane in range(self._bits):
                values = torch.addcmul(values, self._signs(plane), half_scales[..., plane, None])
        return values.reshape(len(values), -1).requires_grad_()

    def pass_back(self, gradient: Tensor) -> None:
        """Add to the gradient of the shifts what that of the values, (rows, columns) float32, makes it.

        It passes through the rounding of levels as if there were none (the straight-through estimator of
        Bengio et al. 2013).
        """
        with torch.no_grad():
            by_group = gradient.reshape(*self.shifts.shape[:-1], self._group_size)
            parts = [(by_group * self._signs(plane)).sum(dim=-1) for plane in range(self._bits)]
            found = torch.stack([*parts, by_group.sum(dim=-1)], dim=-1) * self._reach
            found[..., :-1] *= self._moved()[..., :-1] >= 0.0
            self.shifts.grad = found if self.shifts.grad is None else self.shifts.grad + found

    def tensor(self) -> HLQTensor:
        """Return the matrix as a model file holds it."""
        with torch.no_grad():
            half_scales, centers = self._levels()
            codes = torch.zeros((*centers.shape, self._group_size), dtype=torch.uint8, device=centers.device)
            for plane, ones in enumerate(self._bit_planes(half_scales, centers)):
                codes |= ones.to(torch.uint8) << plane
        parts = half_scales.half(), centers.half(), codes.reshape(len(codes), -1)
        arrays = [part.cpu().numpy() for part in parts]
        return HLQTensor(arrays[0], arrays[1], arrays[2], self._group_size, self._kind)

    def _moved(self) -> Tensor:
        """Return half scales and centers before they are rounded: (rows, groups, bits + 1) float32."""
        return self._start + self._reach * self.shifts

    def _levels(self) -> tuple[Tensor, Tensor]:
        """Return half scales and centers as files hold them, float32, with gradients as if they were not rounded."""
        moved = self._moved()
        moved = torch.cat((moved[..., :-1].clamp_min(0.0), moved[..., -1:]), dim=-1)
        rounded = _rounded(moved.detach(), self._kind)
        levels = moved + (rounded - moved.detach()) if moved.requires_grad else rounded
        return levels[..., :-1], levels[..., -1]

    def _signs(self, plane: int) -> Tensor:
        """Return the bits of a plane as -1 and 1: (rows, groups, group_size) float32."""
        return functional.embedding(self._planes[plane].int(), self._signs_of_bytes).flatten(-2)

    def _bit_planes(self, half_scales: Tensor, centers: Tensor) -> list[Tensor]:
        """Return where each plane's bits are set: bits times (rows, groups, group_size) bool."""
        return [self._signs(plane) > 0 for plane in range(self._bits)]


class LearnedMatrix(LearnedLevels):
    """One whose bits are learned too.

    Attributes:
        pull: (rows, groups, group_size) float32, of continuous weights that begin at their levels and choose the
            codes, in units of the reach.
    """

    def __init__(self, start: HLQTensor, device: str) -> None:
        """Copy a matrix to the device."""
        super().__init__(start, device)
        weights = start.dequantize().reshape(*start.centers.shape, start.group_size)
        self._weights = torch.asarray(weights, device=device)
        self.pull: Tensor = torch.zeros_like(self._weights, requires_grad=True)

    def dequantize(self) -> Tensor:
        """Return what a model file would hold: (rows, columns) float32, with gradients that reach levels and weights.

        They pass from the values to the continuous weights as if these were the values.
        """
        half_scales, centers = self._levels()
        values = centers[..., None]
        for plane, ones in enumerate(self._bit_planes(half_scales, centers)):
            half_scale = half_scales[..., plane, None]
            values = values + torch.where(ones, half_scale, -half_scale)
        moved = self._reach * self.pull
        values = values + (moved - moved.detach())
        return values.reshape(len(values), -1)

    def _bit_planes(self, half_scales: Tensor, centers: Tensor) -> list[Tensor]:
        with torch.no_grad():
            codes = _nearest(self._weights + self._reach * self.pull, half_scales, centers)
            return [((codes >> plane) & 1).bool() for plane in range(self._bits)]


def _rounded(levels: Tensor, kind: BlockKind) -> Tensor:
    """Round half scales, none of them negative, and center, (..., bits + 1) float32, as ``BlockKind`` does."""
    if not kind.has_bytes:
        return levels.clamp(-LARGEST_HALF, LARGEST_HALF).half().float()
    half_scales, centers = levels[..., :-1], levels[..., -1:]
    magnitudes = _of_bytes(centers.abs(), kind, CENTER_SHIFT, 127)
    return torch.cat((_of_bytes(half_scales, kind, HALF_SCALE_SHIFT, 255), magnitudes.copysign(centers)), dim=-1)


def _of_bytes(magnitudes: Tensor, kind: BlockKind, shift: int, last: int) -> Tensor:
    """Return the nearest numbers that have the fp16 bits byte << shift, times the kind's factor: float32."""
    halves = (magnitudes / kind.factor).clamp_max(1.0).half().view(torch.int16)
    bytes_ = ((halves + (1 << (shift - 1))) >> shift).clamp_max(last)
    return (bytes_ << shift).view(torch.half).float() * kind.factor


def _packed_planes(tensor: HLQTensor) -> npt.NDArray[np.uint8]:
    """Return a matrix's bit-planes, eight columns a byte: (bits, rows, groups, group_size / 8) uint8."""
    codes = tensor.codes.reshape(tensor.rows, -1, tensor.group_size)
    return np.stack([np.packbits((codes >> plane) & 1, axis=-1, bitorder="little") for plane in range(tensor.bits)])


def _nearest(weights: Tensor, half_scales: Tensor, centers: Tensor) -> Tensor:
    """Return the code of the level nearest to each weight, as ``levels.nearest`` does: (..., n) uint8."""
    codes = torch.zeros_like(weights, dtype=torch.uint8)
    best = torch.full_like(weights, np.inf)
    for code in range(2 ** half_scales.shape[-1]):
        level = centers
        for plane in range(half_scales.shape[-1]):
            level = level + (half_scales[..., plane] if code >> plane & 1 else -half_scales[..., plane])
        distance = (weights - level[..., None]).abs()
        codes[distance < best] = code
        best = torch.minimum(best, distance)
    return codes
