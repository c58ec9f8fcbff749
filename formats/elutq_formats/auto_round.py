"""Matrices as AutoRound stores them in its own format: in GPTQ's layout, or in AWQ's."""

from functools import partial

from elutq_formats.awq import awq_layout
from elutq_formats.gptq import SUFFIXES, GPTQMatrix
from elutq_formats.quantized_matrix import StoredLayout
from elutq_formats.quantized_settings import QuantizationSettings

ZERO_OFFSETS = {"auto_round": 0, "auto_round:gptqmodel": 0, "auto_round:auto_gptq": 1, "auto_round:gptq": 1}
"""What is added to stored zero points, by ``packing_format``, where the layout is GPTQ's."""

AWQ = ("auto_round:auto_awq", "auto_round:awq")

HALF_BITS = 16


def auto_round_layout(settings: QuantizationSettings) -> StoredLayout:
    """Return how the matrices of a checkpoint of AutoRound are stored.

    Raises:
        UnsupportedModelError: in another way than is read here.
    """
    packing = settings.text("packing_format", "auto_round:auto_gptq")
    if settings.text("data_type", "int") != "int":
        settings.refuse(f"its levels are {settings.text('data_type', '')!r:.40}, and whole numbers (int) are read")
    for values in (settings.values, *settings.exceptions):
        if (settings.integer("act_bits", values) or HALF_BITS) < HALF_BITS:
            settings.refuse("its activations are quantized too (act_bits), which the runtime does not do")
    if settings.values.get("rotation_config"):
        settings.refuse("its inputs are rotated at run time (rotation_config)")
    if packing in AWQ:
        return awq_layout(settings)
    if packing not in ZERO_OFFSETS:
        settings.refuse(f"its packing_format is {packing!r:.40}, and {', '.join((*ZERO_OFFSETS, *AWQ))} are read")
    return StoredLayout(SUFFIXES, partial(GPTQMatrix, ZERO_OFFSETS[packing], settings))
