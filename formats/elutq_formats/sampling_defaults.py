"""How a model's author has tokens drawn, as ``generation_config.json`` says it and as llama.cpp's keys in a file do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elutq_formats.errors import CheckpointError
from elutq_formats.fields import LARGEST_FLOAT32, SMALLEST_FLOAT32, Fields

SamplingDefaults = Mapping[str, float]
"""Values by the names of our options; one that the author is silent on is not there."""

ALL_TOKENS = -1
"""What other engines write as the top-k that keeps all; here it is 0."""


@dataclass(frozen=True)
class SamplingOption:
    """One value, under its three names.

    Attributes:
        name: of our option.
        huggingface: in ``generation_config.json``.
        gguf: in a model file.
        least: that it can be.
        most: that it can be.
        whole: an integer.
    """

    name: str
    huggingface: str
    gguf: str
    least: float
    most: float
    whole: bool = False

    def check(self, value: object) -> float:
        """Return a value that is possible.

        Raises:
            ValueError: it is not; the message says what it should be.
        """
        if self.name == "top_k" and value == ALL_TOKENS:
            return 0
        if isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most:
            if not self.whole:
                return float(value)
            if value == int(value):
                return int(value)
        kind = "an integer" if self.whole else "a number"
        wanted = "above 0" if self.least == SMALLEST_FLOAT32 else f"from {self.least:g}"
        raise ValueError(f"must be {kind} {wanted}{' to 1' if self.most == 1 else ''}, found {value!r:.60}")


OPTIONS = (
    SamplingOption("temp", "temperature", "general.sampling.temp", 0, LARGEST_FLOAT32),
    SamplingOption("top_k", "top_k", "general.sampling.top_k", 0, 2**31 - 1, whole=True),
    SamplingOption("top_p", "top_p", "general.sampling.top_p", SMALLEST_FLOAT32, 1),
    SamplingOption("min_p", "min_p", "general.sampling.min_p", 0, 1),
    SamplingOption(
        "repeat_penalty", "repetition_penalty", "general.sampling.penalty_repeat", SMALLEST_FLOAT32, LARGEST_FLOAT32
    ),
)


def read_sampling_defaults(generation_config: Mapping[str, Any]) -> SamplingDefaults:
    """Read the contents of ``generation_config.json``; ``do_sample: false`` is a temperature of 0.

    Raises:
        CheckpointError: a value is impossible.
    """
    fields, found = Fields(generation_config, "generation_config.json"), {}
    for option in OPTIONS:
        value = fields[option.huggingface]
        if value is not None:
            try:
                found[option.name] = option.check(value)
            except ValueError as error:
                raise CheckpointError(f"generation_config.json: {option.huggingface} {error}") from None
    if not fields.boolean("do_sample", True):
        found["temp"] = 0.0
    return found
