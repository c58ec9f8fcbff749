"""Scalings of RoPE: what they divide frequencies by, and their way into a configuration and back."""

import math

import numpy as np
import pytest

from elutq_formats.rope import RopeScaling


def test_llama3_divisors_by_the_definition():
    scaling = RopeScaling("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    divisors = scaling.divisors(128, 500000.0)
    assert divisors.dtype == np.float32
    for index in range(64):
        wavelength = 2 * math.pi * 500000.0 ** (2 * index / 128)
        if wavelength < 8192 / 4:
            expected = 1.0
        elif wavelength > 8192:
            expected = 8.0
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = 1 / ((1 - smooth) / 8 + smooth)
        assert divisors[index] == pytest.approx(expected, rel=1e-6)
    assert {1.0, 8.0} < set(divisors.tolist())


def test_linear_scaling_divides_all_alike():
    assert RopeScaling("linear", 4.0).divisors(64, 1e4).tolist() == [4.0] * 32


def test_rope_scaling_survives_writing():
    found = (
        RopeScaling("linear", 2.5),
        RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        RopeScaling("yarn", 4.0, original_max_position_embeddings=64, attention_factor=1.0, truncate=False),
        RopeScaling("longrope", 4.0, attention_factor=1.2, short_factor=(1.0, 2.0), long_factor=(3.0, 4.0)),
    )
    for scaling in found:
        assert RopeScaling.from_huggingface(scaling.to_huggingface()) == scaling
