"""The matrices of a checkpoint folder that others have quantized, put together from their parts: one file a layout."""

from collections.abc import Callable, Mapping

from elutq_formats.auto_round import auto_round_layout
from elutq_formats.awq import awq_layout
from elutq_formats.bitnet import bitnet_layout
from elutq_formats.compressed_tensors import compressed_tensors_layout
from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.gptq import gptq_layout
from elutq_formats.model_tensors import HEAD
from elutq_formats.part import Part, stored_shapes
from elutq_formats.quantized_matrix import QuantizedMatrix, StoredLayout
from elutq_formats.quantized_settings import QuantizationSettings
from elutq_formats.stored_weights import StoredTensor, Tensor

LAYOUTS: dict[str, Callable[[QuantizationSettings], StoredLayout]] = {
    "gptq": gptq_layout,
    "awq": awq_layout,
    "auto-round": auto_round_layout,
    "intel/auto-round": auto_round_layout,
    "compressed-tensors": compressed_tensors_layout,
    "bitnet": bitnet_layout,
}
"""By what ``config.json`` calls the method."""


def assemble(
    tensors: Mapping[str, StoredTensor],
    config: ModelConfig,
    parts_of_model: Mapping[str, Part],
    settings: QuantizationSettings,
    place: object,
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, those that are quantized put together.

    Args:
        tensors: by their stored names, with the model's prefix.
        config: of the model.
        parts_of_model: how tensors are stored that are not stored as they are, by the model's names.
        settings: what ``config.json`` says of the quantization.
        place: where they are.

    Raises:
        UnsupportedModelError: they are quantized in a way that is not read.
        CheckpointError: a part is missing, or does not fit the others.
    """
    if settings.method not in LAYOUTS:
        raise UnsupportedModelError(
            f"the checkpoint is already quantized by {settings.method!r:.40}, and of such {', '.join(LAYOUTS)} are "
            "read: use the original (unquantized) checkpoint"
        )
    settings.check()
    layout = LAYOUTS[settings.method](settings)
    found: dict[str, Tensor] = dict(tensors)
    shapes = {HEAD: (config.vocab_size, config.hidden_size)} | stored_shapes(config.tensor_shapes(), parts_of_model)
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(shape) != 2:
            continue
        parts = {suffix: tensors[f"{module}.{suffix}"] for suffix in layout.suffixes if f"{module}.{suffix}" in tensors}
        if not parts or not layout.holds(module, parts):
            continue
        if name in tensors and kind not in parts:
            settings.refuse(f"{module} is stored twice, as it was and quantized")
        for suffix in parts:
            del found[f"{module}.{suffix}"]
        found[name] = layout.open(module, parts, shape)
        bias = f"{module}.bias"
        if bias in tensors and bias not in shapes and _is_zero(tensors[bias]):
            del found[bias]  # as AutoGPTQ gave one to every matrix
    if not any(isinstance(tensor, QuantizedMatrix) for tensor in found.values()):
        raise UnsupportedModelError(
            f"{place}: {settings.file} names a quantization ({settings.method!r:.40}), but no tensors of such are "
            "there: use the original"
        )
    return found


def describe_coarseness(tensors: Mapping[str, Tensor], settings: QuantizationSettings) -> str:
    """Return how few bits the weights of a checkpoint have, to begin a line with."""
    bits = sorted({tensor.bits for tensor in tensors.values() if isinstance(tensor, QuantizedMatrix)})
    return f"its weights have {' or '.join(map(str, bits))} bits already ({settings.method})"


def _is_zero(tensor: StoredTensor) -> bool:
    return not any(piece.any() for piece in tensor.pieces())
