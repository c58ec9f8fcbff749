"""A quantized matrix that gradients can change: its levels alone, or its levels and bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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


class _Learned(ABC):
    """An HLQ matrix on a torch device, whose half scales and centers are learned.

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
        self.shifts: Tensor = torch.zeros_like(self._start, requires_grad=True)

    @abstractmethod
    def values(self) -> Tensor:
        """Return what a model file would hold, (rows, columns) float32, for a gradient of its own: see ``pass_back``.

        A model's matrices then keep nothing for their gradients but these.
        """

    def pass_back(self, gradient: Tensor) -> None:
        """Add to the gradients of what is learned what that of the values, (rows, columns) float32, makes them.

        It passes through the rounding of levels as if there were none (the straight-through estimator of
        Bengio et al. 2013). Nothing may have moved since ``values``.
        """
        with torch.no_grad():
            by_group = gradient.reshape(*self.shifts.shape[:-1], self._group_size)
            found = torch.stack([*self._by_plane(by_group), by_group.sum(dim=-1)], dim=-1) * self._reach
            found[..., :-1] *= self._moved()[..., :-1] >= 0.0
            self.shifts.grad = found if self.shifts.grad is None else self.shifts.grad + found

    def tensor(self) -> HLQTensor:
        """Return the matrix as a model file holds it."""
        with torch.no_grad():
            half_scales, centers = self._levels()
            codes = self._codes()
        parts = half_scales.half(), centers.half(), codes.reshape(len(codes), -1)
        arrays = [part.cpu().numpy() for part in parts]
        return HLQTensor(arrays[0], arrays[1], arrays[2], self._group_size, self._kind)

    def _moved(self) -> Tensor:
        """Return half scales and centers before they are rounded: (rows, groups, bits + 1) float32."""
        return self._start + self._reach * self.shifts

    def _levels(self) -> tuple[Tensor, Tensor]:
        """Return half scales and centers as files hold them, float32."""
        moved = self._moved()
        rounded = _rounded(torch.cat((moved[..., :-1].clamp_min(0.0), moved[..., -1:]), dim=-1), self._kind)
        return rounded[..., :-1], rounded[..., -1]

    @abstractmethod
    def _by_plane(self, by_group: Tensor) -> list[Tensor]:
        """Return the sums of gradients (rows, groups, group_size) with the signs of each plane: (rows, groups) each."""

    @abstractmethod
    def _codes(self) -> Tensor:
        """Return (rows, groups, group_size) uint8."""


class LearnedLevels(_Learned):
    """One whose codes stay, packed."""

    def __init__(self, start: HLQTensor, device: str) -> None:
        """See ``_Learned``."""
        super().__init__(start, device)
        self._planes = torch.asarray(_packed_planes(start), device=device)
        self._signs_of_bytes = torch.asarray(SIGNS_OF_BYTES, device=device)

    def values(self) -> Tensor:
        """See ``_Learned``."""
        with torch.no_grad():
            half_scales, centers = self._levels()
            values = centers[..., None].expand(*centers.shape, self._group_size)
            for plane in range(self._bits):
                values = torch.addcmul(values, self._signs(plane), half_scales[..., plane, None])
        return values.reshape(len(values), -1).requires_grad_()

    def _signs(self, plane: int) -> Tensor:
        """Return the bits of a plane as -1 and 1: (rows, groups, group_size) float32."""
        return functional.embedding(self._planes[plane].int(), self._signs_of_bytes).flatten(-2)

    def _by_plane(self, by_group: Tensor) -> list[Tensor]:
        return [(by_group * self._signs(plane)).sum(dim=-1) for plane in range(self._bits)]

    def _codes(self) -> Tensor:
        planes = [(self._signs(plane) > 0).to(torch.uint8) << plane for plane in range(self._bits)]
        return torch.stack(planes).sum(dim=0, dtype=torch.uint8)


class LearnedMatrix(_Learned):
    """One whose codes are learned too: each weight has a continuous value, and takes the level nearest to it.

    A group's levels are sorted, and a weight's level is told by how many of the middles between two it is above.

    Attributes:
        pull: (rows, groups, group_size) float32, the continuous weights, which begin at their levels: how far they are
            from the center that the group began with, in units of its reach.
    """

    def __init__(self, start: HLQTensor, device: str) -> None:
        """See ``_Learned``."""
        super().__init__(start, device)
        weights = torch.asarray(start.dequantize().reshape(*start.centers.shape, start.group_size), device=device)
        self.pull: Tensor = ((weights - self._start[..., -1:]) / self._reach).requires_grad_()
        codes = torch.arange(2**start.bits, device=device)[:, None]
        self._signs_of_codes = (codes >> torch.arange(start.bits, device=device) & 1).float() * 2 - 1

    def values(self) -> Tensor:
        """See ``_Learned``."""
        with torch.no_grad():
            levels, _, middles = self._sorted()
            values = self._chosen(levels, middles)
        return values.reshape(len(values), -1).requires_grad_()

    def pass_back(self, gradient: Tensor) -> None:
        """See ``_Learned``; the continuous weights have the gradient of the values that they choose."""
        super().pass_back(gradient)
        with torch.no_grad():
            found = gradient.reshape(self.pull.shape) * self._reach
            self.pull.grad = found if self.pull.grad is None else self.pull.grad + found

    def _sorted(self) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Return levels from the lowest up, their codes, both (rows, groups, 2^bits), and the middles between them.

        Those are as many less one, (rows, groups, 1) each, where ``pull`` is.
        """
        half_scales, centers = self._levels()
        levels = centers[..., None]
        for plane in range(self._bits):
            levels = levels + half_scales[..., plane, None] * self._signs_of_codes[:, plane]
        levels, codes = levels.sort(dim=-1, stable=True)
        middles = (levels[..., 1:] + levels[..., :-1]) / 2
        return levels, codes, ((middles - self._start[..., -1:]) / self._reach).split(1, dim=-1)

    def _chosen(self, of_levels: Tensor, middles: Sequence[Tensor]) -> Tensor:
        """Return for each weight what is said of its level: (rows, groups, 2^bits) to (rows, groups, group_size)."""
        first, *others = of_levels.split(1, dim=-1)
        chosen = first.expand(self.pull.shape)
        for other, middle in zip(others, middles, strict=True):
            chosen = torch.where(self.pull > middle, other, chosen)
        return chosen

    def _by_plane(self, by_group: Tensor) -> list[Tensor]:
        _, codes, middles = self._sorted()
        above = [torch.where(self.pull > middle, by_group, 0.0).sum(dim=-1) for middle in middles]
        from_level = torch.stack([by_group.sum(dim=-1), *above], dim=-1)  # gradients of weights at a level or above it
        at_level = from_level - functional.pad(from_level[..., 1:], (0, 1))
        return [(at_level * signs[codes]).sum(dim=-1) for signs in self._signs_of_codes.T]

    def _codes(self) -> Tensor:
        _, codes, middles = self._sorted()
        return self._chosen(codes.to(torch.uint8), middles)


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
