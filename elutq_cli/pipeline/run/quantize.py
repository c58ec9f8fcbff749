"""The driver: takes a checkpoint through the stages, block by block, to a model file."""

import logging
import time
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import IMPORT, Plan, Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.fingerprint import describe_machine, fingerprint
from elutq_cli.pipeline.run.imported import describe_others
from elutq_cli.pipeline.run.preparation import prepare
from elutq_cli.pipeline.run.provenance import describe_run, printable_origin
from elutq_cli.pipeline.run.spool import Spool
from elutq_cli.pipeline.run.tensors import Tensors
from elutq_cli.pipeline.run.units import Run
from elutq_cli.pipeline.run.workbench import Workbench
from elutq_cli.pipeline.stages.allocate import allocate
from elutq_cli.pipeline.stages.checked_weights import CheckedWeights
from elutq_cli.pipeline.stages.rotate import RotatedCheckpoint
from elutq_formats.atomic import check_output
from elutq_formats.model_file import ModelFile
from elutq_formats.model_writer import write_model
from elutq_formats.source import ModelSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a run made.

    Attributes:
        bits_per_weight: over all tensors.
        size_bytes: of the file.
        seconds: wall-clock time.
        errors: relative error of every quantized matrix, by its name in the file.
        kl_seen: KL divergence of the predictions from the checkpoint's on sequences that calibration saw, in nats a
            token; None without a calibration text.
        kl_unseen: the same on sequences of that text which no stage was fitted to; None where it has none to spare.
    """

    bits_per_weight: float
    size_bytes: int
    seconds: float
    errors: dict[str, float]
    kl_seen: float | None = None
    kl_unseen: float | None = None


def quantize(
    checkpoint: ModelSource,
    output: Path,
    recipe: Recipe,
    calibration: CalibrationText | None,
    backend: Backend,
    force: bool = False,
    resume: bool = True,
    max_memory: float | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
    warned: bool = False,
) -> Summary:
    """Quantize a checkpoint into a model file.

    Without calibration one matrix is in memory at a time; with it, one block and its Hessians. Finished blocks, and the
    activations of the calibration sequences between them, are in a work folder beside the output, and a run that was
    stopped goes on after them.

    Args:
        checkpoint: the model.
        output: the file to make.
        recipe: how.
        calibration: sequences for error feedback, or None: weights alone are fitted.
        backend: runs the inner loops.
        force: replace the output if it is there, and what a stopped run of another kind has finished.
        resume: use what a stopped run has finished; otherwise it is removed.
        max_memory: refuse to start when the run may take more memory than so many GB.
        progress: is told of the weights just done; None: nobody is.
        device: torch's name of where to tune.
        warned: `prepare` has been called for this run before, and has warned.

    Raises:
        ElutqError: anything that is wrong with the input or the disk; then there is no output.
    """
    begin = time.perf_counter()
    check_output(output, force)
    recipe = recipe.resolved(calibration is not None)
    source = CheckedWeights(RotatedCheckpoint(checkpoint, recipe.seed) if recipe.rotate else checkpoint, backend.crew)
    preparation = prepare(checkpoint, output, recipe, calibration, backend, max_memory, device, warn=not warned)
    plan = preparation.plan
    backend.executor.join(describe_machine, preparation.forecast.memory_bytes)
    others = describe_others(checkpoint, plan) if recipe.method == IMPORT else []
    for note in (*checkpoint.notes_on(recipe.method == IMPORT), *others):
        log.warning("%s", note)
    with Spool(output, fingerprint(checkpoint, recipe, calibration, device), resume, force) as spool:
        progress = progress or Progress()
        if recipe.allocates and calibration is not None:
            find = partial(allocate, source, recipe, calibration.tokens, backend, spool.make_room, progress.note)
            found = spool.remember(lambda: {name: astuple(layout) for name, layout in find().items()})
            plan = Plan.make(source.config, recipe, {name: Layout(*fields) for name, fields in found.items()})
        tensors = Tensors(source, recipe, backend, spool, progress)
        run = Run(Workbench(tensors, recipe, backend, spool, progress, device), plan, calibration)
        sources, divergence = run.add_all()
        origin = printable_origin(checkpoint)
        write_model(
            output,
            source.config,
            sources,
            origin=origin,
            tokenizer_json=checkpoint.tokenizer_json,
            chat_template=preparation.chat_template,
            special_tokens=checkpoint.special_tokens,
            sampling=checkpoint.sampling,
            provenance=describe_run(checkpoint, origin, recipe, calibration, divergence, run.tuned_tokens),
            force=force,
        )
    file = ModelFile.open(output)
    errors = {record.name: record.error for record in file.tensors.values() if record.error is not None}
    kl = (None, None) if divergence is None else (divergence.seen, divergence.unseen)
    return Summary(file.bits_per_weight(), file.size_bytes, time.perf_counter() - begin, errors, *kl)
