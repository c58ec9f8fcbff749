"""What can be checked before a weight is read: a run that cannot succeed is refused before it takes hours."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from elutq_cli.generation.template import ChatTemplate
from elutq_cli.machine.memory import available_memory
from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.torch_device import prepare_torch
from elutq_cli.pipeline.recipe import IMPORT, Plan, Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.forecast import Forecast
from elutq_cli.pipeline.run.imported import kept_layouts
from elutq_cli.pipeline.stages.allocate import check_target
from elutq_cli.pipeline.stages.rotate import check_rotatable
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError, UnsupportedModelError
from elutq_formats.gguf_source import GGUFSource
from elutq_formats.model_writer import texts_bytes
from elutq_formats.source import ModelSource

log = logging.getLogger(__name__)

MANY_BITS = 4
"""Weights alone do with these: at 2, 3 and 4 bits Qwen2.5-Coder-0.5B is 2.2, 0.27 and 0.05 nats away."""


TENSOR_ENTRY_BYTES, OTHER_METADATA_BYTES = 256, 1 << 14
"""What a file says at most of each of its tensors, and of itself, its configuration and where it comes from."""


@dataclass(frozen=True)
class Preparation:
    """A run that may begin.

    Attributes:
        config: of the model that is quantized: the checkpoint's, or that of the rotated one.
        plan: what becomes of its matrices.
        n_tokens: to calibrate on; 0 for weights alone.
        held_out_tokens: beside them.
        forecast: what the run will make and take.
        chat_template: that the file will have.
    """

    config: ModelConfig
    plan: Plan
    n_tokens: int
    held_out_tokens: int
    forecast: Forecast
    chat_template: str | None


def prepare(
    checkpoint: ModelSource,
    output: Path | None,
    recipe: Recipe,
    calibration: CalibrationText | None,
    backend: Backend,
    max_memory: float | None,
    device: str,
    workers: int | None = None,
    threads: int | None = None,
    warn: bool = True,
) -> Preparation:
    """Check and plan a run; warn of one that may take more memory than can be had.

    Args:
        checkpoint: the model; its weights are not read.
        output: the file to make; None: the disk is not looked at.
        recipe: how.
        calibration: sequences to calibrate on, or None: weights alone are fitted.
        backend: runs the inner loops.
        max_memory: refuse a run that may take more memory than so many GB; None: none.
        device: torch's name of where to tune.
        workers: that light units are divided among, see ``Backend.light``; None: the backend's.
        threads: of that process of the run that has the most; None: of the backend's.
        warn: log what may not be what the user wants.

    Raises:
        ElutqError: the recipe does not fit the model or the text, a tokenizer or template cannot be used, memory or
            disk are short, or the output would replace what the run reads.
    """
    _check_output_is_no_input(output, checkpoint, calibration)
    template, flaw = _check_texts(checkpoint)
    config = replace(checkpoint.config, tie_word_embeddings=False) if recipe.rotate else checkpoint.config
    if recipe.rotate:
        check_rotatable(config)
    recipe = recipe.resolved(calibration is not None)
    _check_experts(config, recipe)
    plan = Plan.make(config, recipe, kept=kept_layouts(checkpoint, backend.crew.map) if recipe.method == IMPORT else {})
    check_target(config, recipe)
    held_out = None if calibration is None else calibration.held_out
    if recipe.tune and all(entry.layout is None for block in plan.blocks for entry in block):
        raise ElutqError("tensor types leave every linear in float16, so that nothing is tuned: leave it out (--tune)")
    if recipe.tune and calibration is not None:
        prepare_torch(device, backend.crew.threads, "tuning")
        from elutq_cli.pipeline.stages.tune.descent import split_sequences

        split_sequences(len(calibration.tokens), 0 if held_out is None else len(held_out))
    n_tokens = 0 if calibration is None else calibration.tokens.size
    held_out_tokens = 0 if held_out is None else held_out.size
    encoding = 0 if calibration is None else calibration.encoding_bytes
    package, workers = checkpoint.package_bytes(), workers or backend.light.workers
    threads = threads or max(backend.crew.threads, backend.executor.threads)
    forecast = Forecast.make(config, plan, recipe, n_tokens, threads, encoding, package, held_out_tokens, workers)
    forecast = replace(forecast, metadata_bytes=_metadata_bytes(checkpoint, len(forecast.records)))
    forecast.check(output, max_memory)
    if warn:
        if flaw is not None:
            log.warning("%s: the template is left out, as the file cannot be mended", flaw)
        for warning in _warnings(config, plan, recipe, calibration, forecast, device):
            log.warning("%s", warning)
    return Preparation(config, plan, n_tokens, held_out_tokens, forecast, template)


def _metadata_bytes(checkpoint: ModelSource, n_tensors: int) -> int:
    """Return what the file takes beside its tensors, or a little more."""
    texts = checkpoint.tokenizer_json, checkpoint.chat_template, checkpoint.special_tokens
    return texts_bytes(checkpoint.config.vocab_size, *texts) + TENSOR_ENTRY_BYTES * n_tensors + OTHER_METADATA_BYTES


def _warnings(
    config: ModelConfig,
    plan: Plan,
    recipe: Recipe,
    calibration: CalibrationText | None,
    forecast: Forecast,
    device: str,
) -> Iterator[str]:
    """Yield what may not be what the user wants, each in one line."""
    fresh = 0 if calibration is None or calibration.fresh is None else calibration.fresh.size
    if calibration is not None and recipe.tune_tokens is not None and fresh < recipe.tune_tokens:
        yield (
            f"the text has {fresh} tokens that calibration leaves, fewer than the {recipe.tune_tokens} to tune on: "
            "those that it uses follow, and then all of them again"
        )
    if calibration is not None and calibration.used_up:
        names = ", ".join(str(file) for file in calibration.used_up)
        yield (
            f"{names}: calibration takes all of it, so that the text that is held out, of which KL divergence is "
            "reported, is of the other files alone"
        )
    shortage = forecast.describe_shortage(available_memory()) if device == "cpu" else None
    if shortage is not None:
        yield shortage
    if config.tie_word_embeddings and plan.head is not None:
        n_bytes = plan.head.record((config.vocab_size, config.hidden_size)).n_bytes
        yield (
            "the head, which is the embedding in this model, has other levels and is stored apart: "
            f"{n_bytes / 1e6:.1f} MB more than with the same bits for both (--embedding-bits, --output-bits)"
        )
    fewest = min((entry.layout.bits for block in plan.blocks for entry in block if entry.layout), default=MANY_BITS)
    if calibration is None and recipe.method != IMPORT and fewest < MANY_BITS:
        yield (
            f"{fewest} bits by weights alone lose much of a model: calibrate it on a text (--calibration FILE; elutq "
            f"write makes one where there is none), or give it {MANY_BITS} bits"
        )


def _check_experts(config: ModelConfig, recipe: Recipe) -> None:
    """Refuse what is not done to mixtures of experts."""
    if config.n_experts and recipe.tune:
        raise UnsupportedModelError(
            f"tuning (--tune) is not for experts, as {config.model_type} has them: leave it out"
        )
    if config.n_experts and recipe.method == IMPORT:
        raise UnsupportedModelError(
            f"levels of experts, as {config.model_type} has them, are not imported: elutq quantize takes the model"
        )


def _check_texts(checkpoint: ModelSource) -> tuple[str | None, str | None]:
    """Return the chat template, or None and what is wrong with one that can only be left out.

    Raises:
        ElutqError: those who run the file could not use the tokenizer, or a template of a folder, which can be edited.
    """
    tokenizer, source = checkpoint.tokenizer(), checkpoint.chat_template
    if source is None:
        return None, None
    try:
        ChatTemplate.for_tokenizer(source, tokenizer)
        if "messages" not in source:
            raise ElutqError("the chat template writes no messages, it is something else")
    except ElutqError as error:
        flaw = f"{checkpoint.chat_template_place}: {error}"
        if isinstance(checkpoint, GGUFSource):
            return None, flaw
        raise ElutqError(f"{flaw}: mend it, or take it away") from error
    return source, None


def _check_output_is_no_input(output: Path | None, checkpoint: ModelSource, text: CalibrationText | None) -> None:
    """Refuse to replace a file of the checkpoint, or a text, with ``--force`` too; model files beside it may be."""
    if output is None or not output.exists():
        return
    inputs = [*checkpoint.weight_files(), *(text.files if text is not None else ())]
    if checkpoint.path.is_dir():
        inputs += [file for file in checkpoint.path.iterdir() if file.suffix != ".gguf"]
    if any(file.exists() and output.samefile(file) for file in inputs):
        raise ElutqError(f"cannot write {output}: this run reads it; choose another name")
