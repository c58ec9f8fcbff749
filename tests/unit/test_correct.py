"""The correct stage: its target is the least squares solution, and a block that aims for it strays less."""

from pathlib import Path

import numpy as np
import pytest

from elutq_cli.pipeline.compute.backend import numpy_backend
from elutq_cli.pipeline.stages.calibrate import block_statistics
from elutq_cli.pipeline.stages.correct import correct
from elutq_cli.pipeline.stages.feedback import inverse_factor
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint

DAMPING = 0.03
GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def moment(left, right):
    return (left.T @ right / len(left)).astype(np.float32)


@pytest.mark.parametrize("rows", [16, 40])
def test_the_target_is_the_least_squares_solution(rows):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(rows, 24)).astype(np.float32)
    exact = rng.normal(size=(500, 24)) @ rng.normal(size=(24, 24))
    x = exact + rng.normal(size=exact.shape)
    gap = rng.normal(size=(500, rows)) + exact @ rng.normal(size=(24, rows)) * 0.1
    hessian, lack = moment(x, x), moment(gap + (exact - x) @ weights.T, x)
    target = correct(weights, lack, inverse_factor(hessian, DAMPING, numpy_backend()), numpy_backend())
    diagonal = np.diagonal(hessian)
    pull = np.diag(np.sqrt(DAMPING * (diagonal + 0.1 * diagonal.mean()) * len(x)))
    wanted = exact @ weights.T + gap
    least = np.linalg.lstsq(np.vstack([x, pull]), np.vstack([wanted, pull @ weights.T]), rcond=None)[0].T
    np.testing.assert_allclose(target, least, rtol=1e-3, atol=1e-4)


def test_corrected_blocks_end_nearer_to_the_exact_stream():
    """Weights spoilt by noise: the linears that follow make up for it, as far as least squares can."""

    def distance(corrects):
        rng = np.random.default_rng(2)
        with Checkpoint.open(GOLDEN / "llama2-gqa-sharded") as checkpoint:
            model = Transformer(checkpoint)
            block = model.block(0)
            tokens = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (40, 20))
            hidden, exact = model.embed(tokens), model.embed(tokens)
        for linears, statistics in block_statistics(block, hidden, exact, numpy_backend()):
            factor = inverse_factor(statistics.hessian, 1e-3, numpy_backend())
            for linear in linears:
                weights = block.weights[f"{linear}.weight"]
                target = weights
                if corrects and statistics.lack is not None:
                    target = correct(weights, statistics.lack, factor, numpy_backend())
                noise = rng.normal(size=weights.shape) * weights.std() * 0.2
                block.weights[f"{linear}.weight"] = target + noise.astype(np.float32)
        return float(np.square(hidden - exact).sum())

    assert distance(True) < 0.9 * distance(False)
