"""A quantized matrix whose levels, and where asked for bits, gradients can change."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from elutq_cli.pipeline.levels import LARGEST_HALF
from elutq_formats.hlq import HLQTensor

Tensor: TypeAlias = Any  # torch.Tensor; written so that types can be checked without torch

TINY = 1e-8


class LearnedMatrix:
    """An HLQ matrix on a torch device.

    What is learned begins at 0 and is in units of the group's reach, the distance from its center to its outermost
    level: steps of one size then suit all groups, whatever their scale.

    Attributes:
        shifts: (rows, groups, bits + 1) float32, of half scales and center.
        pull: (rows, groups, group_size) float32, of continuous weights that begin at their levels and choose the
            codes; None where the bits are frozen.
    """

    def __init__(self, start: HLQTensor, device: str, learn_bits: bool = False) -> None:
        """Copy a matrix to the device."""
        self._bits, self._group_size = start.bits, start.group_size
        levels = np.concatenate([start.half_scales, start.centers[..., None]], axis=-1)
        self._start = torch.asarray(levels, device=device).float()
        self._reach = self._start[..., :-1].sum(dim=-1, keepdim=True).clamp_min(TINY)
        self._planes = torch.asarray(_packed_planes(start), device=device)
        self._weights: Tensor = None
        self.shifts: Tensor = torch.zeros_like(self._start, requires_grad=True)
        self.pull: Tensor = None
        if learn_bits:
            weights = start.dequantize().reshape(*start.centers.shape, start.group_size)
            self._weights = torch.asarray(weights, device=device)
            self.pull = torch.zeros_like(self._weights, requires_grad=True)

    def dequantize(self) -> Tensor:
        """Return what a model file would hold: (rows, columns) float32.

        Gradients pass through the rounding of levels to float16, and from the values to the continuous weights, as if
        neither were there (the straight-through estimator of Bengio et al. 2013).
        """
        half_scales, centers = self._levels()
        values = centers[..., None]
        for plane, ones in enumerate(self._bit_planes(half_scales, centers)):
            half_scale = half_scales[..., plane, None]
            values = values + torch.where(ones, half_scale, -half_scale)
        if self.pull is not None:
            moved = self._reach * self.pull
            values = values + (moved - moved.detach())
        return values.reshape(len(values), -1)

    def tensor(self) -> HLQTensor:
        """Return the matrix as a model file holds it."""
        with torch.no_grad():
            half_scales, centers = self._levels()
            codes = torch.zeros((*centers.shape, self._group_size), dtype=torch.uint8, device=centers.device)
            for plane, ones in enumerate(self._bit_planes(half_scales, centers)):
                codes |= ones.to(torch.uint8) << plane
        parts = half_scales.half(), centers.half(), codes.reshape(len(codes), -1)
        arrays = [part.cpu().numpy() for part in parts]
        return HLQTensor(arrays[0], arrays[1], arrays[2], self._group_size)

    def _levels(self) -> tuple[Tensor, Tensor]:
        """Return half scales and centers: float16 values in float32, with gradients as if they were not rounded."""
        moved = self._start + self._reach * self.shifts
        moved = torch.cat((moved[..., :-1].clamp_min(0.0), moved[..., -1:]), dim=-1)
        rounded = moved.detach().clamp(-LARGEST_HALF, LARGEST_HALF).half().float()
        levels = moved + (rounded - moved.detach())
        return levels[..., :-1], levels[..., -1]

    def _bit_planes(self, half_scales: Tensor, centers: Tensor) -> list[Tensor]:
        """Return where each plane's bits are set: bits times (rows, groups, group_size) bool."""
        if self.pull is None:
            places = torch.arange(8, dtype=torch.uint8, device=self._planes.device)
            return [((plane[..., None] >> places) & 1).bool().flatten(-2) for plane in self._planes]
        with torch.no_grad():
            codes = _nearest(self._weights + self._reach * self.pull, half_scales, centers)
            return [((codes >> plane) & 1).bool() for plane in range(self._bits)]


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
