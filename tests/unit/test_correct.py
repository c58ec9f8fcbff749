"""The correct stage: its target is the least squares solution, and a block that aims for it strays less."""

from pathlib import Path

import numpy as np
import pytest

from elutq_cli.pipeline.backend import NumpyBackend
from elutq_cli.pipeline.calibrate import InputStatistics, block_statistics
from elutq_cli.pipeline.correct import Correction
from elutq_cli.pipeline.feedback import inverse_factor
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint

DAMPING = 0.03
GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def statistics_of(x, exact, lacks):
    """Of inputs (tokens, columns); with what the stream lacks after the linear (tokens, rows), or None."""

    def moment(left, right):
        return (left.T @ right / len(x)).astype(np.float32)

    if lacks is None:
        return InputStatistics(moment(x, x), cross=moment(x, exact - x))
    return InputStatistics(moment(x, x), lack=moment(lacks, x))


@pytest.mark.parametrize(("rows", "adds"), [(16, False), (16, True), (40, False), (40, True)])
def test_the_target_is_the_least_squares_solution(rows, adds):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(rows, 24)).astype(np.float32)
    exact = rng.normal(size=(500, 24)) @ rng.normal(size=(24, 24))
    x = exact + rng.normal(size=exact.shape)
    gap = rng.normal(size=(500, rows)) + exact @ rng.normal(size=(24, rows)) * 0.1
    statistics = statistics_of(x, exact, gap + (exact - x) @ weights.T if adds else None)
    factor = inverse_factor(statistics.hessian, DAMPING, NumpyBackend())
    target = Correction(statistics, factor, NumpyBackend())(weights)
    diagonal = np.diagonal(statistics.hessian)
    pull = np.diag(np.sqrt(DAMPING * (diagonal + 0.1 * diagonal.mean()) * len(x)))
    wanted = exact @ weights.T + (gap if adds else 0.0)
    least = np.linalg.lstsq(np.vstack([x, pull]), np.vstack([wanted, pull @ weights.T]), rcond=None)[0].T
    np.testing.assert_allclose(target, least, rtol=1e-3, atol=1e-4)


def test_corrected_blocks_end_nearer_to_the_exact_stream():
    """Weights spoilt by noise: the linears that follow make up for it, as far as least squares can."""

    def distance(correct):
        rng = np.random.default_rng(2)
        with Checkpoint.open(GOLDEN / "llama2-gqa-sharded") as checkpoint:
            model = Transformer(checkpoint)
            block = model.block(0)
            tokens = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (40, 20))
            hidden, exact = model.embed(tokens), model.embed(tokens)
        for linears, statistics in block_statistics(block, hidden, exact, NumpyBackend()):
            factor = inverse_factor(statistics.hessian, 1e-3, NumpyBackend())
            for linear in linears:
                weights = block.weights[f"{linear}.weight"]
                target = Correction(statistics, factor, NumpyBackend())(weights) if correct else weights
                noise = rng.normal(size=weights.shape) * weights.std() * 0.2
                block.weights[f"{linear}.weight"] = target + noise.astype(np.float32)
        return float(np.square(hidden - exact).sum())

    assert distance(True) < 0.9 * distance(False)
