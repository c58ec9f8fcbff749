"""Make docs/accuracy.md's tables: every method on trained models, at 2, 3 and 4 bits.

    python scripts/accuracy_table.py --models smollm2-135m=FOLDER --texts wikitext2=TEST.txt novels=NOVEL.txt \
        --calibration CALIBRATION.txt
    python scripts/accuracy_table.py --render docs/accuracy.md

Models: checkpoints (scripts/real_models.py makes them) or GGUF files. Each file that the pipeline makes is evaluated in
the C runtime against the full precision in float32, head and embedding being float16 in it. The runtime's own error,
what elutq eval --of-runtime says, is measured on the first windows of the first text.

Rows go to a JSON file as they are made, with the commit, the date and the command; those that are there, by model,
text, method, bits, group size, sequences and seed, are not made again, and a run that was stopped goes on within the
file it was making.
A row that fails is a line on stderr, and the others are made.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from elutq_cli.pipeline.compute.blas import configure_blas

configure_blas(None)  # before numpy: its products use --threads, those of the pipeline one thread each

import numpy as np  # noqa: E402
import threadpoolctl  # noqa: E402
from accuracy_methods import HEAD_BITS, METHODS, counted_bits, recipe, usual_group_size  # noqa: E402
from accuracy_rows import BEGIN, BLOCKS, END, Row, Table, header, insert, line, shows_rows  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from elutq_cli.evaluation import Windows, evaluate, evaluate_all, split_windows  # noqa: E402
from elutq_cli.evaluation.models import open_dequantized, open_model  # noqa: E402
from elutq_cli.pipeline.compute.backend import make_backend, native_backend  # noqa: E402
from elutq_cli.pipeline.compute.inner_loops import NativeLoops  # noqa: E402
from elutq_cli.pipeline.recipe import Recipe  # noqa: E402
from elutq_cli.pipeline.run.calibration_text import CalibrationText  # noqa: E402
from elutq_cli.pipeline.run.fingerprint import code_digest  # noqa: E402
from elutq_cli.pipeline.run.quantize import quantize  # noqa: E402
from elutq_cli.pipeline.run.work_folder import work_folder  # noqa: E402
from elutq_cli.reference import Transformer  # noqa: E402
from elutq_cli.text_input import read_bytes, read_text  # noqa: E402
from elutq_formats.errors import ElutqError  # noqa: E402
from elutq_formats.open_source import open_source  # noqa: E402
from elutq_formats.source import ModelSource  # noqa: E402
from elutq_native import NativeError, default_threads  # noqa: E402

ROOT = Path(__file__).parents[1]
DIRTY = "-dirty"
CODE = ("elutq_cli", "formats", "native", "scripts")
"""What figures depend on."""


class KeptReference:
    """A model's logits on one text, computed from what its head is given: that is kept on disk.

    It is exact: the same float32 values go through the same head. Logits themselves would take a hundred times the
    room (12 GB for 40 windows of 512 tokens over 151,936), and half of that in float16 would change a KL divergence;
    the head's product takes a tenth of the whole pass, or less.
    """

    def __init__(self, source: ModelSource, windows: Windows, path: Path) -> None:
        """Compute what is not kept yet, (windows, tokens, hidden_size) float32 in a file."""
        self._model, self._path = Transformer(source), path
        if path.exists():
            return
        new = path.with_suffix(f".{os.getpid()}.new")  # another process may be at the same
        shape = (*windows.tokens.shape, source.config.hidden_size)
        try:
            kept = np.lib.format.open_memmap(new, "w+", dtype=np.float32, shape=shape)
            index = 0
            for group in self._model.window_hidden(windows.tokens):
                for hidden in group:
                    kept[index], index = hidden, index + 1
            kept.flush()
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def window_logits(
        self, windows: NDArray[np.int64], advance: Callable[[float], None], n_logits: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """See ``WindowLogitsModel``; ``windows`` are those whose states are kept."""
        head = self._model.load_head()
        for hidden, n_wanted in zip(np.load(self._path, mmap_mode="r"), n_logits, strict=True):
            yield head(hidden[-n_wanted:])
            advance(1.0)


@dataclass(frozen=True)
class Text:
    """A text, cut into windows for one model.

    Attributes:
        name: its name in the table.
        windows: of one model's tokens.
        reference: that model's logits on them.
    """

    name: str
    windows: Windows
    reference: KeptReference


@dataclass(frozen=True)
class Job:
    """One model file, and the texts that it is evaluated on."""

    model: str
    method: str
    bits: int
    group_size: int
    scale_bits: int
    num_samples: int
    seed: int
    texts: list[str]


def jobs(options: argparse.Namespace, table: Table, model: str, source: ModelSource) -> list[Job]:
    """Return the model files for which rows are missing, or all with --again."""
    found = []
    for bits in sorted(options.bits):
        for group_size in options.group_sizes or [usual_group_size(source.config)]:
            for method in [name for name in METHODS if name in options.methods]:
                scale_bits = METHODS[method].scale_bits or options.scale_bits
                drawn = (options.num_samples, options.seed) if METHODS[method].is_calibrated else (0, 0)
                file = method, bits, group_size, scale_bits, *drawn
                missing = [text for text in options.texts if not table.has((model, text, *file))]
                if wanted := list(options.texts) if options.again else missing:
                    found.append(Job(model, *file, wanted))
    return found


def cut_text(options: argparse.Namespace, name: str, model: str, source: ModelSource) -> Text:
    """Tokenize a text, and compute or find what the reference makes of it."""
    tokens = source.tokenizer().encode(read_text(options.texts[name]))
    windows = split_windows(tokens, options.ctx_size, options.chunks)
    digest = hashlib.sha256(source.identity().encode() + windows.tokens.tobytes() + code_digest().encode()).hexdigest()
    path = options.cache / f"{model}-{name}-{digest[:16]}.npy"
    for older in options.cache.glob(f"{model}-{name}-*.npy"):  # of other code; another text may be called {name}-2
        if older != path and re.fullmatch(r"[0-9a-f]{16}", older.stem.removeprefix(f"{model}-{name}-")):
            older.unlink(missing_ok=True)
    print(f"{model}: full precision on {name}", file=sys.stderr, flush=True)
    return Text(name, windows, KeptReference(source, windows, path))


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def make_file(job: Job, options: argparse.Namespace, source: ModelSource) -> tuple[Path, float | None]:
    """Quantize; return the file, and the seconds it took if that was in one go."""
    method = METHODS[job.method]
    made_of = [source.identity(), options.device]
    made_of += map(sha256_of, options.calibration) if method.is_calibrated else []
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    numbers = f"{job.bits}-g{job.group_size}s{job.scale_bits}-n{job.num_samples}-{job.seed}"
    name = f"{job.model}-{job.method}-{numbers}-{digest}"
    is_dirty = options.commit.endswith(DIRTY)
    output = options.cache / f"{name}-{options.commit[:12]}{DIRTY if is_dirty else ''}.gguf"
    for other in options.cache.glob(f"{name}-*.gguf*"):
        if other.name not in (output.name, work_folder(output).name):  # what another commit left when it was stopped
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    if output.exists() and not is_dirty:
        return output, None  # a run was stopped as it evaluated
    was_begun = work_folder(output).exists()
    chosen = recipe(job.method, job.bits, job.group_size, job.scale_bits, job.num_samples, job.seed)
    text = CalibrationText.read(options.calibration, source, chosen) if method.is_calibrated else None
    ours = method.loops is NativeLoops
    device, threads = options.device if ours else "cpu", options.threads
    with make_backend(device, threads) if ours else native_backend(threads, make_loops=method.loops) as backend:
        summary = quantize(source, output, chosen, text, backend, force=True, device=device)
    return output, None if was_begun else summary.seconds


def runtime_error(path: Path, options: argparse.Namespace, windows: Windows) -> float | None:
    """Return the KL divergence of the C runtime from a file's dequantized weights, on the first windows."""
    if options.runtime_chunks == 0:
        return None
    few = Windows(
        windows.tokens[: options.runtime_chunks], windows.first_scored[: options.runtime_chunks], windows.description
    )
    with (
        open_model(path, options.ctx_size, options.threads) as model,
        open_dequantized(path, options.ctx_size) as exact,
    ):
        return evaluate(model.logits_model, few, exact.logits_model).kl


def make_rows(
    job: Job, options: argparse.Namespace, source: ModelSource, texts: dict[str, Text], table: Table
) -> list[Row]:
    """Make one model file and its row for every text; each is written as soon as it is known."""
    print(f"{job.model}: {job.method}, {job.bits} bits, groups of {job.group_size}", file=sys.stderr, flush=True)
    path, seconds = make_file(job, options, source)
    of_runtime = runtime_error(path, options, texts[job.texts[0]].windows)
    rows = []
    for name in job.texts:
        with open_model(path, options.ctx_size, options.threads) as model:
            found, full = evaluate_all([model.logits_model], texts[name].windows, texts[name].reference)
            kernels, stored = model.kind, model.block_bits_per_weight
        row: Row = {
            "model": job.model,
            "text": name,
            "method": job.method,
            "bits": job.bits,
            "group_size": job.group_size,
            "scale_bits": job.scale_bits,
            "num_samples": job.num_samples,
            "seed": job.seed,
            "bits_per_weight": counted_bits(job.method, job.bits, job.group_size) or stored,
            "kl": found.kl,
            "top1": found.top1,
            "ppl": found.ppl,
            "ppl_stderr": found.ppl_stderr,
            "reference_ppl": full.ppl,
            "runtime_kl": of_runtime if name == job.texts[0] else None,
            "seconds": seconds,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": options.commit,
            "command": command(options),
            "kernels": kernels,
            "threads": options.threads or default_threads(),
            "device": options.device,
        }
        table.put(row)
        rows.append(row)
    path.unlink()
    return rows


def current_commit() -> str:
    """Return the commit that runs; marked when tracked code differs from it, and empty without git or a repository."""
    git = ["git", "-C", str(ROOT)]
    if shutil.which("git") is None:
        return ""
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    status = [*git, "status", "--porcelain", "-uno", "--", *CODE]
    changes = subprocess.run(status, capture_output=True, text=True)
    return head.stdout.strip() + (DIRTY if changes.stdout else "")


def is_of_other_code(row: Row, commit: str) -> bool:
    """Whether a row may have been made by other code than that of a commit: one that is marked may be any."""
    return row["commit"] != commit or commit.endswith(DIRTY)


def command(options: argparse.Namespace) -> str:
    """Return the command line, its files by their names alone: where they lie is nobody's business."""
    words = ["scripts/accuracy_table.py"]
    for name in ("models", "texts"):
        words += [f"--{name}", *(f"{key}={path.name}" for key, path in getattr(options, name).items())]
    words += ["--calibration", *(path.name for path in options.calibration)]
    words += ["--methods", *options.methods, "--bits", *map(str, options.bits)]
    words += ["--group-sizes", *map(str, options.group_sizes)] if options.group_sizes else []
    for name in ("scale_bits", "num_samples", "ctx_size", "chunks", "runtime_chunks", "seed"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    words += ["--device", options.device, *(["--threads", str(options.threads)] if options.threads else [])]
    return shlex.join(words)


def settings(options: argparse.Namespace) -> dict[str, object]:
    """Return what all rows of a JSON file have in common."""
    calibration = {path.name: sha256_of(path) for path in options.calibration}
    names = ("ctx_size", "chunks", "runtime_chunks")
    return {name: getattr(options, name) for name in names} | {"head_bits": HEAD_BITS, "calibration": calibration}


def named_paths(words: list[str], parser: argparse.ArgumentParser, flag: str) -> dict[str, Path]:
    """Read NAME=PATH."""
    found = {}
    for word in words:
        name, _, path = word.partition("=")
        if not re.fullmatch(r"[\w.-]+", name) or not path:
            parser.error(f"{flag} {word}: write NAME=PATH")
        found[name] = Path(path)
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=PATH", help="checkpoints or GGUF files")
    parser.add_argument("--texts", nargs="+", default=[], metavar="NAME=FILE", help="what is evaluated on")
    parser.add_argument("--calibration", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], choices=[1, 2, 3, 4])
    parser.add_argument(
        "--group-sizes",
        type=int,
        nargs="+",
        help="default: that of elutq quantize, or the largest below it that a model has",
    )
    parser.add_argument(
        "--scale-bits",
        type=int,
        choices=[8, 16],
        default=Recipe.scale_bits,
        help="of half scales and centers, but for the methods of others",
    )
    parser.add_argument("--num-samples", type=int, default=64, help="calibration sequences")
    parser.add_argument("--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40, help="windows of each text")
    parser.add_argument("--runtime-chunks", type=int, default=8, help="windows for the runtime's own error; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: all cores; on a busy machine fewer are faster")
    parser.add_argument("--device", default="cpu", help="where to quantize and tune: cpu, or torch's cuda, cuda:N")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "figures" / "accuracy.json", help="the rows")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "accuracy", help="for what is made on the way")
    parser.add_argument("--again", action="store_true", help="make rows that are there, too")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="put the tables into a page, and make no row")
    options = parser.parse_args(arguments)
    if options.render is None and not (options.models and options.texts and options.calibration):
        parser.error("give --models, --texts and --calibration, or --render")
    options.models = named_paths(options.models, parser, "--models")
    options.texts = named_paths(options.texts, parser, "--texts")
    has_torch = importlib.util.find_spec("torch") is not None
    tuned = [name for name in options.methods or METHODS if METHODS[name].is_tuned]
    if options.methods and tuned and not has_torch:
        parser.error(f"{' and '.join(tuned)} need torch, which is not installed")
    if tuned and not has_torch and options.render is None:
        print(f"torch is not installed: no rows of {', '.join(tuned)}", file=sys.stderr)
    options.methods = options.methods or [name for name in METHODS if has_torch or name not in tuned]
    return options


def run(options: argparse.Namespace) -> bool:
    """Make all missing rows; return whether every one of them could be made."""
    options.commit = current_commit()  # of what has just been imported, whatever becomes of the files meanwhile
    table, whole = Table(options.json, settings(options)), True
    for name, path in options.texts.items():
        table.add_text(name, sha256_of(path))
    options.cache.mkdir(parents=True, exist_ok=True)
    for model, path in options.models.items():
        with open_source(path) as source:
            for note in source.notes_on(keeps_levels=False):
                print(f"{model}: {note}", file=sys.stderr)
            missing = jobs(options, table, model, source)
            if n := sum(row["model"] == model and is_of_other_code(row, options.commit) for row in table.rows):
                print(
                    f"{model}: {n} rows are of other code than today's; --again makes those asked for anew",
                    file=sys.stderr,
                )
            wanted = [text for text in options.texts if any(text in job.texts for job in missing)]
            texts = {name: cut_text(options, name, model, source) for name in wanted}
            print(f"{model}\n{header(wanted)}" if missing else f"{model}: every row is there", flush=True)
            for job in missing:
                try:
                    print(line(wanted, make_rows(job, options, source, texts, table)), flush=True)
                except (ElutqError, NativeError, OSError, MemoryError) as error:
                    place = f"{model}, {job.method}, {job.bits} bits, groups of {job.group_size}"
                    print(f"{place}: {error or 'out of memory'}", file=sys.stderr, flush=True)
                    whole = False
    return whole


def main() -> None:
    """Make rows, or render them."""
    options = parse(sys.argv[1:])
    try:
        if options.render is None:
            with threadpoolctl.threadpool_limits(options.threads, user_api="blas"):
                sys.exit(0 if run(options) else 1)
        page = read_text(options.render)
        if not shows_rows(page):
            lines = [BEGIN.format(name) for name in BLOCKS]
            raise ElutqError(f"{options.render} has no place for figures: a line {' or '.join(lines)}, and {END}")
        rows = Table(options.json, {}).rows
        if not rows:
            raise ElutqError(f"{options.json} has no rows to show")
        options.render.write_text(insert(page, rows), encoding="utf-8")
    except ElutqError as error:
        sys.exit(f"accuracy_table.py: {error}")


if __name__ == "__main__":
    main()
