"""What a model file records of its origin."""

from dataclasses import replace

from elutq_cli.pipeline.recipe import IMPORT, Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.stages.divergence import Divergence
from elutq_cli.streams import printable
from elutq_cli.version import __version__
from elutq_formats.model_writer import Provenance
from elutq_formats.origin import Origin
from elutq_formats.source import ModelSource


def printable_origin(source: ModelSource) -> Origin:
    """Return where a model comes from, in names that are text: those of folders may be any bytes."""
    origin = source.origin()
    return replace(origin, source=printable(origin.source), name=printable(origin.name))


def describe_run(
    source: ModelSource,
    origin: Origin,
    recipe: Recipe,
    calibration: CalibrationText | None,
    divergence: Divergence | None,
    tuned_tokens: int | None,
) -> Provenance:
    """Return what the file records of how it was made; the recipe is that of the run, resolved."""
    provenance: dict[str, str | int | float | bool | list[str]] = {
        "version": __version__,
        "source": origin.source,
        "method": ", ".join(_stages(recipe, calibration is not None)),
        "recipe": recipe.to_json(),
        "seed": recipe.seed,
    }
    if origin.revision is not None:
        provenance["source_revision"] = origin.revision
    if origin.license is not None:
        provenance["license"] = printable(origin.license)
    if notes := source.notes_on(recipe.method == IMPORT):
        provenance["notes"] = list(notes)
    if calibration is not None:
        n_sequences, length = calibration.tokens.shape
        provenance |= {
            "calibration.files": [printable(file.name) for file in calibration.files],
            "calibration.sha256": list(calibration.sha256),
            "calibration.samples": n_sequences,
            "calibration.sequence_length": length,
            "calibration.held_out_samples": 0 if calibration.held_out is None else len(calibration.held_out),
        }
    if divergence is not None:
        provenance["calibration.kl_seen"] = divergence.seen
        if divergence.unseen is not None:
            provenance["calibration.kl_unseen"] = divergence.unseen
    if tuned_tokens is not None:
        provenance["tuned_tokens"] = tuned_tokens
    return provenance


def _stages(recipe: Recipe, calibrated: bool) -> tuple[str, ...]:
    """Return the stages that run, in their order."""
    if recipe.method == IMPORT:
        return (IMPORT,)
    first = ("rotate",) if recipe.rotate else ()
    if not calibrated:
        return (*first, "fit")
    tuned = {"block": "block reconstruction", "e2e": "end-to-end tuning"}
    chosen = ("allocate",) if recipe.allocates else ()
    aimed = ("correct",) if recipe.corrects else ()
    return (*first, *chosen, "calibrate", *aimed, *recipe.stages, *(tuned[name] for name in recipe.tune))
