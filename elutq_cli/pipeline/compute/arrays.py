"""Where arrays live and how large ones are multiplied: numpy's on the processor, or torch's on its device.

An ``Array`` is a numpy array or, on a device, a tensor there. Matrices that large products need are Arrays; what a
stage returns, and what inner loops see, is numpy.
"""

from typing import Protocol

import numpy as np

from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.reference import Array, Namespace
from elutq_native.products import add_rounded_product


class Arrays(Protocol):
    """An array namespace, and the ways to it from numpy and back."""

    @property
    def xp(self) -> Namespace:
        """The module that computes on Arrays: numpy or torch."""

    @property
    def tile(self) -> int:
        """Rows and columns of a product's tile: large enough for full speed, small enough to follow a triangle."""

    def place(self, array: FloatArray) -> Array:
        """Return a numpy array as an Array; where those are numpy arrays, itself."""

    def fetch(self, array: Array) -> FloatArray:
        """Return an Array as a numpy array; where it is one, itself."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an Array of float32, its contents undefined."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an Array of float32 zeros."""

    def add_rounded_product(self, target: Array, left: Array, right: Array) -> None:
        """Add left @ right to target in place, its factors rounded to bfloat16 where that is the faster.

        For activations, whose products are most of a calibrated run: their rounding averages out over tokens.
        """


class NumpyArrays:
    """Arrays are numpy's."""

    xp: Namespace = np
    tile = 512

    def __init__(self, rounds: bool = False) -> None:
        """Choose whether factors of ``add_rounded_product`` are rounded; not every processor can."""
        self._rounds = rounds

    def place(self, array: FloatArray) -> Array:
        """Return the array."""
        return array

    def fetch(self, array: Array) -> FloatArray:
        """Return the array."""
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return float32 of undefined contents."""
        return np.empty(shape, dtype=np.float32)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return float32 zeros."""
        return np.zeros(shape, dtype=np.float32)

    def add_rounded_product(self, target: Array, left: Array, right: Array) -> None:
        """Add left @ right to target in place, the factors rounded to bfloat16 unless this was not wanted."""
        if self._rounds:
            add_rounded_product(target, left, right)
        else:
            target += left @ right
