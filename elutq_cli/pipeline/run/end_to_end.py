"""All blocks' levels tuned by the predictions, each state that is saved a unit of the run."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.workbench import Workbench
from elutq_cli.pipeline.stages.streams import Streams
from elutq_cli.pipeline.stages.tune.budget import keeps_activations
from elutq_formats.model_writer import TensorSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TunedModel:
    """What tuning end to end has made.

    Attributes:
        sources: the file's tensors.
        streams: of the calibration text, with those of the tuned model.
        n_tokens: that were learned from.
    """

    sources: Iterable[TensorSource]
    streams: Streams
    n_tokens: int


def tune_end_to_end(bench: Workbench, text: CalibrationText, streams: Streams, state: list[FloatArray]) -> TunedModel:
    """Tune the levels of all blocks.

    Args:
        bench: what there is to work with.
        text: to learn from.
        streams: of it, after the last block.
        state: of a run that was stopped; none at the start.
    """
    from elutq_cli.pipeline.stages.tune.end_to_end import THOUSANDTHS, EndToEnd
    from elutq_cli.pipeline.stages.tune.fused_block import learning_products
    from elutq_cli.pipeline.stages.tune.learned_model import LearnedModel

    tensors, recipe, spool = bench.tensors, bench.recipe, bench.spool
    keep = keeps_activations(tensors.config, recipe.sequence_length)
    model = LearnedModel(tensors.config, spool.sources(), bench.device, keep, learning_products(bench.device))
    tuning = EndToEnd.of_text(model, tensors, text.tokens, text.held_out, text.fresh, recipe)
    if state:
        tuning.resume(state)
    bench.progress.begin(THOUSANDTHS, "thousandths")
    bench.progress.advance(tuning.thousandths)
    while not tuning.finished:
        tuning.run(bench.progress)
        spool.finish_unit([*streams.arrays(), *tuning.state()])
    if tuning.ended_by_time:
        log.warning(
            "tuning had %d tokens in its %g minutes, which another run may not: for the same file again give "
            "a number of tokens instead (--tune-tokens)",
            tuning.n_tokens,
            recipe.tune_minutes,
        )
    if not tuning.keep_best():
        return TunedModel(spool.sources(), streams, tuning.n_tokens)
    tuned = spool.make_room(streams.hidden.shape)
    errors = model.measure(text.tokens, tuned, tensors.load, bench.backend, spool.make_room)
    held_out = None if text.held_out is None else model.hidden(text.held_out)
    sources = model.replace_tuned(spool.sources(), errors)
    return TunedModel(sources, replace(streams, hidden=tuned, held_out=held_out), tuning.n_tokens)
