"""int8 keys of models whose key projection has outlier channels, by its bias (Qwen2) or by the keys' norm (Qwen3)."""

import numpy as np
import pytest
from conftest import GOLDEN

from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_writer import write_model
from elutq_formats.names import gguf_name
from elutq_formats.origin import Origin
from elutq_formats.tensor_record import TensorRecord
from elutq_native import Model

TOKENS = np.arange(3, 51)


def write_half_model(path, family, vector, factor):
    """A golden checkpoint in fp16, one pair of channels of each head's key vector multiplied by a factor."""
    with Checkpoint.open(GOLDEN / family) as checkpoint:
        head_dim = checkpoint.config.head_dim

        def load(name):
            tensor = checkpoint.load(name)
            if vector in name:
                heads = tensor.reshape(-1, head_dim)
                heads[:, [1, 1 + head_dim // 2]] *= factor
            return tensor

        tensors = []
        for name, shape in checkpoint.config.tensor_shapes().items():
            record = TensorRecord(gguf_name(name), 16 if len(shape) == 2 else 32, *shape)
            tensors.append((record, lambda name=name: load(name)))
        write_model(path, checkpoint.config, tensors, origin=Origin(family, family), tokenizer_json=None)
    return path


def error_of_q8(path):
    with Model(path) as model, model.session(64, 1) as exact, model.session(64, 1, "q8") as rounded:
        wanted, found = (session.eval(TOKENS, all_logits=True) for session in (exact, rounded))
    return np.sqrt(np.mean((found - wanted) ** 2))


@pytest.mark.parametrize(
    ("family", "vector", "times"),
    [("qwen2", "k_proj.bias", 2.4), ("qwen3", "k_norm.weight", 4), ("qwen3-biases", "k_norm.weight", 3)],
)
def test_outlier_channels_of_keys_cost_the_others_little_precision(family, vector, times, tmp_path):
    """Rounded as they are, the errors would be 2.7, 7 and 5 times those without outliers."""
    plain = error_of_q8(write_half_model(tmp_path / "plain.gguf", family, vector, 1))
    outliers = error_of_q8(write_half_model(tmp_path / "outliers.gguf", family, vector, 20))
    assert plain > 0
    assert outliers < times * plain
