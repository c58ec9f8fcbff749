"""Makes docs/accuracy.md's table: every method at 2, 3 and 4 bits, and chosen bits at some targets.

    .venv/bin/python scripts/accuracy_table.py tests/data/novels-6m --calibration CALIBRATION.txt \
        --texts HOUND.txt GARDEN.txt

Every model file is made by the pipeline and evaluated in the C runtime against the checkpoint; head and embedding are
fp16. Rows appear as they are done.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elutq_cli.pipeline.blas import configure_blas

configure_blas(1)  # before numpy: the stages run products on threads of their own

import numpy as np  # noqa: E402

from elutq_cli.evaluation import Evaluation, evaluate_all  # noqa: E402
from elutq_cli.evaluation.models import open_model  # noqa: E402
from elutq_cli.evaluation.windows import Windows, split_windows  # noqa: E402
from elutq_cli.pipeline.backend import NativeBackend, make_backend  # noqa: E402
from elutq_cli.pipeline.calibration_text import CalibrationText  # noqa: E402
from elutq_cli.pipeline.levels import CodeArray, FloatArray, HalfArray, levels, nearest  # noqa: E402
from elutq_cli.pipeline.quantize import quantize  # noqa: E402
from elutq_cli.pipeline.recipe import Recipe  # noqa: E402
from elutq_cli.reference import Transformer  # noqa: E402
from elutq_formats.checkpoint import Checkpoint  # noqa: E402
from elutq_formats.model_file import ModelFile  # noqa: E402


class UniformBackend(NativeBackend):
    """Evenly spaced levels from a group's smallest to its largest weight, in place of fitted ones."""

    def fit_groups(
        self,
        weights: FloatArray,
        bits: int,
        group_size: int,
        importance: FloatArray | None = None,
        n_starts: int | None = None,
    ) -> tuple[HalfArray, HalfArray, CodeArray]:
        """See ``fit.fit_groups``; importance and starts are not looked at."""
        groups = weights.reshape(len(weights), -1, group_size)
        low, high = groups.min(axis=-1), groups.max(axis=-1)
        step = (high - low) / (2**bits - 1)
        half_scales = (step[..., None] * 2.0 ** np.arange(bits) / 2).astype(np.float16)
        centers = ((low + high) / 2).astype(np.float16)
        return half_scales, centers, nearest(groups, levels(half_scales, centers)).reshape(weights.shape)


class FixedCodesBackend(NativeBackend):
    """Error feedback as ELUTQ's own code has it: the codes are chosen before a group's columns are compensated."""

    def feedback_columns(
        self, weights: FloatArray, factor: FloatArray, half_scales: HalfArray, centers: HalfArray
    ) -> tuple[CodeArray, FloatArray]:
        """See ``feedback.feedback_columns``."""
        group_levels = levels(half_scales, centers)
        codes, compensated = nearest(weights, group_levels), weights.copy()
        fixed = np.take_along_axis(group_levels, codes.astype(np.intp), axis=1)
        errors = np.empty_like(weights)
        for column in range(weights.shape[1]):
            errors[:, column] = (compensated[:, column] - fixed[:, column]) / factor[column, column]
            compensated[:, column + 1 :] -= errors[:, column, None] * factor[column, column + 1 :]
        return codes, errors


METHODS: dict[str, tuple[str, type[NativeBackend], bool, dict[str, Any]]] = {
    "uniform": ("uniform, round to nearest", UniformBackend, False, {}),
    "uniform-feedback": ("uniform + feedback (GPTQ)", UniformBackend, True, {"method": "feedback"}),
    "fit": ("HLQ fit, weights only", NativeBackend, False, {}),
    "fit-weighted": ("HLQ fit, columns weighted by the diagonal of H", NativeBackend, True, {"method": "fit"}),
    "fixed-codes": (
        "HLQ + feedback, codes fixed first (the authors')",
        FixedCodesBackend,
        True,
        {"method": "feedback"},
    ),
    "feedback": ("HLQ + feedback", NativeBackend, True, {"method": "feedback"}),
    "refine": ("+ refine", NativeBackend, True, {"method": "refine"}),
    "correct": ("+ correct", NativeBackend, True, {"method": "correct"}),
    "rotate": ("+ correct, rotated first", NativeBackend, True, {"method": "correct", "rotate": True}),
    "allocate": ("+ allocate (the default)", NativeBackend, True, {}),
    "block": ("+ allocate + tune block", NativeBackend, True, {"tune": ("block",)}),
    "e2e": ("+ allocate + tune e2e", NativeBackend, True, {"tune": ("e2e",)}),
    "block-e2e": ("+ allocate + tune block,e2e", NativeBackend, True, {"tune": ("block", "e2e")}),
}
"""Name -> label, backend, whether it is calibrated, and the recipe's options; in the order of the stages, which is that
of the table's rows. Tuning needs torch."""


@dataclass(frozen=True)
class Job:
    """One row of the table."""

    label: str
    backend: type[NativeBackend]
    calibrated: bool
    recipe: Recipe


def jobs(options: argparse.Namespace) -> list[Job]:
    """Returns the rows that were asked for."""
    common = {"output_bits": 16, "embedding_bits": 16, "seed": options.seed}
    text = {"num_samples": options.num_samples}
    found = []
    for bits in sorted(options.bits):
        for group_size in sorted(options.group_sizes, reverse=True):
            for method in sorted(options.methods, key=list(METHODS).index):
                label, backend, calibrated, chosen = METHODS[method]
                chosen = chosen | text if calibrated else chosen
                recipe = Recipe(bits=bits, group_size=group_size, **common, **chosen)
                found.append(Job(label, backend, calibrated, recipe))
    for target in options.targets:
        recipe = Recipe(target_bpw=target, **common, **text)
        found.append(Job(f"--target-bpw {target:g}", NativeBackend, True, recipe))
    return found


class RecordedLogits:
    """The checkpoint's logits on one text, computed once and kept on disk."""

    def __init__(self, checkpoint: Checkpoint, windows: Windows, path: Path) -> None:
        """Compute them: (windows, tokens, vocab_size) float32."""
        shape = (*windows.tokens.shape, checkpoint.config.vocab_size)
        self.recorded = np.lib.format.open_memmap(path, "w+", dtype=np.float32, shape=shape)
        for index, found in enumerate(Transformer(checkpoint).window_logits(windows.tokens)):
            self.recorded[index] = found

    def window_logits(self, windows: FloatArray, advance: Callable[[float], None]) -> Iterator[FloatArray]:
        """Yield the logits of each window."""
        yield from self.recorded


def run(
    job: Job,
    options: argparse.Namespace,
    checkpoint: Checkpoint,
    texts: list[tuple[Windows, RecordedLogits]],
    folder: Path,
) -> dict:
    """Makes one model file, evaluates it on every text and returns the row's figures."""
    output = folder / "model.gguf"
    calibration = CalibrationText.read(options.calibration, checkpoint, job.recipe) if job.calibrated else None
    ours = job.backend is NativeBackend  # the others change its inner loops, and stay on the processor
    with make_backend(options.device, options.threads) if ours else job.backend(options.threads) as backend:
        summary = quantize(checkpoint, output, job.recipe, calibration, backend, force=True, device=options.device)
    results: list[Evaluation] = []
    with open_model(output, options.ctx_size, options.threads) as model:
        for windows, reference in texts:
            results.append(evaluate_all([model.logits_model], windows, reference)[0])
    return {
        "label": job.label,
        "bits": None if job.recipe.target_bpw else job.recipe.bits,
        "group_size": None if job.recipe.target_bpw else job.recipe.group_size,
        "bits_per_weight": ModelFile.open(output).block_bits_per_weight(),
        "kl": [result.kl for result in results],
        "top1": [result.top1 for result in results],
        "ppl": [result.ppl for result in results],
        "seconds": summary.seconds,
    }


def header(names: list[str]) -> str:
    """Returns the head of the Markdown table for texts of these names."""
    cells = ["bits", "group", "method", "bits/weight"]
    cells += [f"{figure} {name}" for figure in ("KL", "top-1, %", "ppl") for name in names] + ["seconds"]
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def line(row: dict) -> str:
    """Returns one line of the Markdown table."""
    cells = [str(row["bits"] or "chosen"), str(row["group_size"] or "chosen"), row["label"]]
    cells += [f"{row['bits_per_weight']:.3f}", *(f"{kl:.4f}" for kl in row["kl"])]
    cells += [*(f"{100 * top1:.1f}" for top1 in row["top1"]), *(f"{ppl:.2f}" for ppl in row["ppl"])]
    return f"| {' | '.join([*cells, format(row['seconds'], '.0f')])} |"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, nargs="+")
    parser.add_argument("--texts", type=Path, required=True, nargs="+")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--targets", type=float, nargs="*", default=[2.5, 3.0])
    parser.add_argument("--num-samples", type=int, default=64, help="calibration sequences")
    parser.add_argument("--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40, help="windows of each text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", help="where to quantize and tune: cpu, or torch's cuda, cuda:N")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args(arguments)


def main() -> None:
    """Makes the table on stdout."""
    options = parse(sys.argv[1:])
    rows = []
    with Checkpoint.open(options.model) as checkpoint, tempfile.TemporaryDirectory() as folder:
        tokenizer = checkpoint.tokenizer()
        texts = []
        for index, path in enumerate(options.texts):
            tokens = tokenizer.encode(path.read_text(encoding="utf-8"))
            windows = split_windows(tokens, options.ctx_size, options.chunks)
            texts.append((windows, RecordedLogits(checkpoint, windows, Path(folder) / f"{index}.npy")))
        print(header([path.stem.rsplit("-", 1)[-1] for path in options.texts]))
        for job in jobs(options):
            rows.append(run(job, options, checkpoint, texts, Path(folder)))
            print(line(rows[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
