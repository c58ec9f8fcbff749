"""The fingerprint of a run: everything that its finished units depend on, by the name a user knows it by."""

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import threadpoolctl

import elutq_cli
import elutq_formats
import elutq_native
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.version import __version__
from elutq_formats.source import ModelSource
from elutq_native.products import has_rounded_products

CHECKPOINT, CALIBRATION, CODE = "checkpoint", "calibration", "elutq"


def fingerprint(
    checkpoint: ModelSource, recipe: Recipe, calibration: CalibrationText | None, device: str
) -> dict[str, str]:
    """Describe a run: two with the same fingerprint make the same file where ``describe_machine`` says the same.

    A run that is resumed on another kind of processor goes on: its file has the last digits of both.
    """
    found = {CHECKPOINT: checkpoint.identity(), "device": device}
    found |= {name.replace("_", " "): str(value) for name, value in asdict(recipe).items()}
    if calibration is not None:
        digest = hashlib.sha256(calibration.tokens.tobytes())
        for others in (calibration.held_out, calibration.fresh):
            if others is not None:
                digest.update(others.tobytes())
        digest.update(repr((calibration.sha256, [file.name for file in calibration.files])).encode())
        found[CALIBRATION] = digest.hexdigest()
    return found | {CODE: f"{__version__} {code_digest()}"}


def code_digest() -> str:
    """Return a hash of everything in this installation that results depend on."""
    digest = hashlib.sha256()
    for package, pattern in (
        (elutq_cli, "pipeline/**/*.py"),
        (elutq_cli, "reference/**/*.py"),
        (elutq_formats, "**/*.py"),
        (elutq_native, "**/*.py"),
        (elutq_native, "_elutq*"),
    ):
        folder = Path(package.__path__[0])
        for path in sorted(folder.glob(pattern)):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def describe_machine(_: None) -> str:
    """Say what the bits of a result depend on where this runs, beside the fingerprint: a unit of work."""
    blas = {f"{found['internal_api']} {found.get('architecture')}" for found in threadpoolctl.threadpool_info()}
    rounding = "products rounded" if has_rounded_products() else "products exact"
    return f"elutq {__version__} {code_digest()[:12]}, {', '.join(sorted(blas))}, {rounding}"


def _shown(value: str | None) -> str:
    """Return an option's value as a user would give it."""
    if value in (None, "None"):
        return "the default"
    try:
        parts = ast.literal_eval(value) if value.startswith("(") else None
    except (ValueError, SyntaxError):
        return value
    return value if parts is None else ",".join(map(str, parts)) or "none"


def explain_difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Name the first thing in which two fingerprints differ: what a user chose before what follows from it."""
    chosen = (CHECKPOINT, *([CALIBRATION] if (CALIBRATION in then) != (CALIBRATION in now) else ()), "method", "tune")
    for name in (*chosen, *then, *now):
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        if name == CHECKPOINT:
            return "whose checkpoint was another, or has changed since"
        if name == CALIBRATION:
            with_or_without = {(True, False): "with calibration", (False, True): "without calibration"}
            return with_or_without.get((before is not None, after is not None), "with another calibration text")
        if name == CODE:
            return "which another version of elutq began"
        return f"with {name} {_shown(before)}, not {_shown(after)}"
    return "which is the same"
