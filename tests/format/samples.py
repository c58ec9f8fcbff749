"""Random matrices and model files of every family, for the format tests."""

from pathlib import Path

import numpy as np
import pytest

from elutq_formats.block_kind import BlockKind
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.hlq import HLQTensor, pack
from elutq_formats.model_writer import write_model
from elutq_formats.names import gguf_name
from elutq_formats.origin import Origin
from elutq_formats.tensor_record import TensorRecord

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden"
FAMILIES = sorted(path for path in GOLDEN.iterdir() if path.is_dir())

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.name)


def random_matrix(rows, columns, bits, group_size, kind="free16"):
    """A random HLQ matrix; its geometry is its seed."""
    rng = np.random.default_rng([rows, columns, bits, group_size])
    groups = rows, columns // group_size
    half_scales = rng.random((*groups, bits)).astype(np.float16)
    centers = rng.normal(size=groups).astype(np.float16)
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    blocks = BlockKind.fitting(kind, half_scales, centers, center=3 if kind in ("even16", "even8") else 0)
    return HLQTensor(*blocks.nearest(half_scales, centers), codes, group_size, blocks)


def tensor_sources(checkpoint, bits=2, group_size=32):
    """Every tensor of a checkpoint for ``write_model``: projections as random HLQ matrices where the group allows."""
    for name in checkpoint.names:
        shape, stored = checkpoint.shape(name), gguf_name(name)
        if name in checkpoint.config.float_names():
            yield TensorRecord.of_floats(stored, shape), lambda name=name: checkpoint.load(name)
            continue
        *stack, rows, columns = shape
        n_experts = stack[0] if stack else None
        if "_proj" in name and columns % group_size == 0:
            record = TensorRecord(stored, bits, rows, columns, group_size, error=0.25, n_experts=n_experts)
            one = random_matrix(rows, columns, bits, group_size)
            yield record, lambda one=one, n=n_experts or 1: np.concatenate([pack(one)] * n)
        else:
            yield TensorRecord(stored, 16, rows, columns, n_experts=n_experts), lambda name=name: checkpoint.load(name)


def write_random_model(path, family):
    """Write a model file with the configuration of a golden checkpoint."""
    with Checkpoint.open(family) as checkpoint:
        write_model(
            path,
            checkpoint.config,
            tensor_sources(checkpoint),
            origin=Origin(family.name, family.name),
            tokenizer_json=checkpoint.tokenizer_json,
            chat_template="{{ messages }}",
            provenance={"source": "golden", "seed": 7, "calibration.files": ["a.txt", "b.txt"]},
        )
