"""Print hashes of all that the golden checkpoints come to: for before and after a change that is to change nothing.

usage: PYTHONPATH=.:formats:native python scripts/hash_golden.py [NAME ...] > before.txt; ...; diff before.txt after.txt

One line a hash: the reference's logits, the C runtime's on every kernel set (all tokens in one pass, and one by one),
and the bytes of the file that quantizing makes, by weights alone and calibrated. Hashes of two machines may differ:
their libraries round in other places.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend, native_backend
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.reference import Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.model_file import ModelFile
from elutq_native import Model, supported_kernels

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"
TEXT = "the quick brown fox jumps over a lazy dog " * 20
SMALL = {"bits": 3, "group_size": 32, "num_samples": 6, "sequence_length": 24}
RECIPES = {
    "alone": Recipe(bits=2, group_size=32),
    "calibrated": Recipe(method="correct", **SMALL),
    "rotated": Recipe(method="correct", rotate=True, **SMALL),
    "allocated": Recipe(method="allocate", target_bpw=4.5, **SMALL),
    "head chosen": Recipe(method="allocate", **SMALL),
}


def digest(data: bytes) -> str:
    """Return the first half of a hash."""
    return hashlib.sha256(data).hexdigest()[:32]


def run_logits(path: Path, isa: str, tokens: list[int], step: int) -> bytes:
    """Return the C runtime's logits of some tokens, so many at a time."""
    with Model(path, isa) as model, model.session(threads=1) as session:
        parts = [session.eval(tokens[at : at + step], all_logits=True) for at in range(0, len(tokens), step)]
    return np.concatenate(parts).tobytes()


def hash_checkpoint(folder: Path, scratch: Path, backend: Backend) -> None:
    """Print the hashes of one checkpoint."""
    tokens = np.load(folder / "expected.npz")["tokens"]
    with Checkpoint.open(folder) as checkpoint:
        print(f"{folder.name} reference {digest(Transformer(checkpoint).logits(tokens).tobytes())}")
        for name, recipe in RECIPES.items():
            path = scratch / f"{folder.name}-{name}.gguf"
            text = None if name == "alone" else CalibrationText.read([scratch / "text.txt"], checkpoint, recipe)
            try:
                quantize(checkpoint, path, recipe, text, backend)
            except ElutqError as error:
                print(f"{folder.name} {name} refused: {error}")
                continue
            print(f"{folder.name} {name} file {digest(path.read_bytes())}")
            print(f"{folder.name} {name} restored {digest(Transformer(ModelFile.open(path)).logits(tokens).tobytes())}")
            for isa in supported_kernels():
                for step in (len(tokens), 1):
                    print(f"{folder.name} {name} {isa} {step} {digest(run_logits(path, isa, tokens.tolist(), step))}")


def main() -> None:
    """Hash the checkpoints that are named, or all."""
    with tempfile.TemporaryDirectory() as scratch, native_backend(1, rounds=False) as backend:
        (Path(scratch) / "text.txt").write_text(TEXT)
        for folder in sorted(path for path in GOLDEN.iterdir() if path.is_dir()):
            if len(sys.argv) == 1 or folder.name in sys.argv[1:]:
                hash_checkpoint(folder, Path(scratch), backend)


if __name__ == "__main__":
    main()
