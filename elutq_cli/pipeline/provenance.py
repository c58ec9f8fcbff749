"""What a model file records of its origin."""

from pathlib import Path

from elutq_cli.pipeline.calibration_text import CalibrationText
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.streams import printable
from elutq_cli.version import __version__
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_writer import Provenance


def describe_origin(checkpoint: Checkpoint, recipe: Recipe, calibration: CalibrationText | None) -> Provenance:
    """Return what the file records of its origin; the recipe is that of the run, resolved."""
    source, revision = source_name(checkpoint.path)
    provenance: dict[str, str | int | float | bool | list[str]] = {
        "version": __version__,
        "source": source,
        "method": ", ".join(_stages(recipe, calibration is not None)),
        "recipe": recipe.to_json(),
        "seed": recipe.seed,
    }
    if revision is not None:
        provenance["source_revision"] = revision
    if (license_name := read_license(checkpoint.path)) is not None:
        provenance["license"] = license_name
    if checkpoint.notes:
        provenance["notes"] = list(checkpoint.notes)
    if calibration is not None:
        n_sequences, length = calibration.tokens.shape
        provenance |= {
            "calibration.files": [printable(file.name) for file in calibration.files],
            "calibration.sha256": list(calibration.sha256),
            "calibration.samples": n_sequences,
            "calibration.sequence_length": length,
        }
    return provenance


def _stages(recipe: Recipe, calibrated: bool) -> tuple[str, ...]:
    """Return the stages that run, in their order."""
    first = ("rotate",) if recipe.rotate else ()
    if not calibrated:
        return (*first, "fit")
    tuned = {"block": "block reconstruction", "e2e": "end-to-end tuning"}
    stages = {
        "fit": ("calibrate", "fit"),
        "feedback": ("calibrate", "feedback"),
        "refine": ("calibrate", "feedback", "refine"),
        "correct": ("calibrate", "correct", "feedback", "refine"),
        "allocate": ("allocate", "calibrate", "correct", "feedback", "refine"),
    }
    assert recipe.method is not None  # resolved
    return (*first, *stages[recipe.method], *(tuned[name] for name in recipe.tune))


def read_license(folder: Path) -> str | None:
    """Return the licence that a checkpoint's README.md has in its front matter, as the hub spells it."""
    if not (folder / "README.md").exists():
        return None
    from huggingface_hub import metadata_load

    try:
        fields = metadata_load(folder / "README.md") or {}
    except Exception:  # no text, or whatever a parser of YAML raises: then it says nothing
        return None
    found = fields.get("license")
    if found == "other":
        found = fields.get("license_name", found)
    return printable(found) if isinstance(found, str) and found else None


def source_name(folder: Path) -> tuple[str, str | None]:
    """Return a checkpoint's name, and its revision when the folder is a snapshot in the Hugging Face cache."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    return printable(folder.name), None
