"""The errors that a model file records, against what is computed from the file, the checkpoint and the text alone."""

import numpy as np
import pytest

from elutq_cli.reference import Transformer
from elutq_formats.model_file import ModelFile
from elutq_formats.names import gguf_name

MEASURED_ROWS, TIED_SEQUENCES = 128, 16


def assert_recorded_errors_are_true(path, weights, tokens, head=True, corrected=False):
    """Check every HLQ matrix of a calibrated model on the inputs that it has in the model as the file holds it.

    Args:
        path: of the model file.
        weights: the checkpoint, rotated where the model is.
        tokens: (sequences, n) of its calibration text.
        head: whether the head was quantized after everything before it had its last value.
        corrected: whether linears made up for what the stream lacked: tokens count by the exact stream after them.
    """
    file = ModelFile.open(path)
    model, exact_model = Transformer(file), Transformer(weights)
    hidden, exact = model.embed(tokens), exact_model.embed(tokens)
    for layer in range(file.config.num_hidden_layers):
        inputs, exact_inputs, scales = {}, {}, {}
        hidden = model.block(layer)(hidden, observe=inputs.__setitem__)
        block = exact_model.block(layer)
        after, exact = exact, block(exact, observe=exact_inputs.__setitem__)
        for branch in block.data.branches if corrected else ():
            if branch.after is None and branch.mixer != "experts":
                after = after + block.linear(branch.writer, exact_inputs[branch.writer])
                scales[branch.writer] = (after**2).mean(axis=-1, keepdims=True) ** -0.25
        for linears in file.config.layer(layer).shared_inputs:
            for linear in (name for name in linears if ".experts." not in name):
                x = inputs[linears[0]] * scales.get(linear, 1.0)
                check_recorded_error(file, weights, f"model.layers.{layer}.{linear}.weight", x)
    is_tied = "output.weight" not in file.tensors
    if head and not is_tied:
        check_recorded_error(file, weights, "lm_head.weight", normed(model, hidden))
    few = np.arange(min(TIED_SEQUENCES, len(tokens))) * len(tokens) // min(TIED_SEQUENCES, len(tokens))
    of_head = normed(exact_model, exact[few]) if is_tied else None
    check_recorded_error(file, weights, "model.embed_tokens.weight", of_head)


def normed(model, hidden):
    """Return what a model's last norm makes of the stream."""
    root = np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + model.config.rms_norm_eps)
    return hidden / root * model.load("model.norm.weight")


def check_recorded_error(file, weights, name, inputs):
    record = file.tensors[gguf_name(name)]
    if record.group_size is None:
        assert record.error is None
        return
    every = -(-record.rows // MEASURED_ROWS)
    stored = name if weights.has(name) else "model.embed_tokens.weight"  # a tied head
    original = weights.load(stored)[::every].astype(np.float64)
    difference = original - file.load(name)[::every]
    if inputs is not None:
        x = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
        original, difference = original @ x.T, difference @ x.T
    expected = np.linalg.norm(difference) / np.linalg.norm(original)
    assert record.error == pytest.approx(expected, rel=2e-3), name
