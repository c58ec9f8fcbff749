"""What `elutq quantize` and `elutq import` share: a run with its bars and its last lines, and the plan of one."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from elutq_cli.machine.signals import INTERRUPTED, leaving_in_order
from elutq_cli.pipeline.progress import Progress
from elutq_cli.streams import ShownLines, printable, shown_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from elutq_cli.pipeline.recipe import Recipe
    from elutq_formats.source import ModelSource

WIDE_GAP = 1.25
"""Divergence on unseen text over that on seen text, from which on it is said what helps."""


def make_file(
    model: Path,
    output: Path,
    recipe: Recipe,
    json_output: bool,
    verbose: bool,
    **options: Any,  # noqa: ANN401 (each its own type)
) -> None:
    """Make a model file and print what was made.

    Args:
        model: see ``elutq_cli.api.quantize``.
        output: the file to make.
        recipe: how.
        json_output: print one JSON object.
        verbose: log each tensor's error.
        options: others of ``elutq_cli.api.quantize``.

    Raises:
        ElutqError: see there.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from elutq_cli.api import quantize

    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(ShownLines())
    logging.basicConfig(handlers=[log], level=logging.INFO if verbose else logging.WARNING)
    try:
        with ExitStack() as stack:
            stack.enter_context(leaving_in_order())
            stack.enter_context(logging_redirect_tqdm())
            summary = quantize(model, output, recipe, progress=stack.enter_context(ProgressBars()), **options)
    except KeyboardInterrupt:
        print("elutq: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if json_output:
        print(json.dumps({"model": printable(model), "output": printable(output)} | asdict(summary)))
        return
    print(
        f"{shown_line(output)}: {summary.bits_per_weight:.3f} bits per weight, {summary.size_bytes / 1e6:.2f} MB, "
        f"{summary.seconds:.1f} s"
    )
    if summary.kl_seen is not None:
        print(describe_divergence(summary.kl_seen, summary.kl_unseen))


def describe_divergence(seen: float, unseen: float | None) -> str:
    """Say how far predictions are from the checkpoint's, and what to do where it is more than calibration thinks."""
    line = f"KL divergence from the checkpoint, nats a token: {seen:.3g} on text that calibration saw, "
    if unseen is None:
        return line + "more on other text: to tell how much, give it a text longer than what it uses"
    line += f"{unseen:.3g} on text of the same kind that it did not see"
    return line + (": more text narrows this gap (--num-samples)" if unseen > WIDE_GAP * seen else "")


class ProgressBars(Progress):
    """Shows the part that runs as a bar, where stderr is a terminal; a context manager that takes it away."""

    def __init__(self) -> None:
        """Show nothing yet."""
        from tqdm import tqdm

        self.bar = tqdm(disable=True)

    def begin(self, total: int, unit: str) -> None:
        """See ``Progress``."""
        self.bar.close()
        disable = not sys.stderr.isatty()
        self.bar = type(self.bar)(total=total, unit=" " + unit, unit_scale=True, disable=disable, file=sys.stderr)

    def advance(self, amount: int) -> None:
        """See ``Progress``."""
        self.bar.update(amount)

    def note(self, text: str) -> None:
        """See ``Progress``."""
        self.bar.set_postfix_str(text)

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()


def print_forecast(
    checkpoint: ModelSource,
    output: Path | None,
    recipe: Recipe,
    calibration: list[Path],
    device: str,
    threads: int | None,
    max_memory: float | None,
    json_output: bool,
    resume: bool,
    force: bool,
    executor: str = "threads",
) -> None:
    """Print what a run would make and take; on a cluster, with its workers, or several numbers where none answers.

    Raises:
        ElutqError: it would be refused.
    """
    from elutq_cli.pipeline.compute.backend import light_workers, make_backend, names_ray
    from elutq_cli.pipeline.recipe import IMPORT
    from elutq_cli.pipeline.run.calibration_text import CalibrationText
    from elutq_cli.pipeline.run.estimate import estimate_work
    from elutq_cli.pipeline.run.fingerprint import fingerprint
    from elutq_cli.pipeline.run.forecast import shown_size, shown_time
    from elutq_cli.pipeline.run.imported import describe_others
    from elutq_cli.pipeline.run.preparation import prepare
    from elutq_cli.pipeline.run.scaling import share_out
    from elutq_cli.pipeline.run.spool import Spool
    from elutq_native import default_threads

    for note in checkpoint.notes_on(recipe.method == IMPORT):
        print(shown_line(note), file=sys.stderr)
    counts: Sequence[int] = _workers_of(executor, threads) if names_ray(executor, device) else ()
    with make_backend(device, threads) as backend:
        text = CalibrationText.read(calibration, checkpoint, recipe, max_memory) if calibration else None
        is_here = all(file.exists() for file in checkpoint.weight_files())  # not only what the hub says of it
        if output is not None and is_here:
            Spool(output, fingerprint(checkpoint, recipe, text, device), resume, force).check()
        here = default_threads() if counts else backend.crew.threads  # the process that calls a cluster has all cores
        most, size = max(here, backend.crew.threads), backend.crew.threads / here
        workers = light_workers(max(counts, default=1), size)
        run = prepare(checkpoint, output, recipe, text, backend, max_memory, device, workers, most)
        for line in describe_others(checkpoint, run.plan) if recipe.method == IMPORT else []:
            print(shown_line(line), file=sys.stderr)
        forecast = run.forecast
        work = estimate_work(run.config, run.plan, recipe, run.n_tokens, backend, run.held_out_tokens, size)
    shares = share_out(run.config, run.plan, recipe, run.n_tokens, run.held_out_tokens, work, counts)
    if json_output:
        records = [
            asdict(record) | {"kind": record.kind.name if record.group_size else None} for record in forecast.records
        ]
        shared = {"workers": list(map(asdict, shares))} if shares else {}
        print(json.dumps(asdict(forecast) | {"records": records, "seconds": work.seconds()} | shared))
        return
    for record in forecast.records:
        if record.bits != 32:
            groups = "" if record.group_size is None else f", groups of {record.group_size}, {record.kind}"
            each = "" if record.n_experts is None else f", each of {record.n_experts} experts"
            print(f"{record.name:28} {record.rows:7} x {record.columns:<7} {record.bits} bits{groups}{each}")
    if recipe.resolved(bool(calibration)).allocates:
        print("bits and groups of the blocks' linears are chosen when they are quantized, within this total")
    print(f"output       {shown_size(forecast.output_bytes + forecast.metadata_bytes)}")
    print(f"scratch disk {shown_size(forecast.scratch_bytes)} beside the output")
    print(f"peak memory  {shown_size(forecast.memory_bytes)} at most, without the page cache")
    if forecast.tuning_bytes:
        print(f"of that      {shown_size(forecast.tuning_bytes)} to tune, on --device")
    counted = ", tuning on them too" if recipe.tune else ""
    shown_threads = f"{backend.crew.threads} thread{'s' if backend.crew.threads > 1 else ''}"
    each = f"with {shown_threads} of this machine{counted}, as busy as it is now"
    if not shares:
        print(f"time         about {shown_time(work.seconds())} {each}")
        return
    print(f"of a worker  as much memory for each of its units of work, {each}")
    print("workers  minutes, without what travels  sent, GB  travels at most, GB  object store here, GB")
    for share in shares:
        sizes = share.sent_bytes, share.carried_bytes, share.store_bytes
        sent, carried, store = (f"{n_bytes / 1e9:.1f}" for n_bytes in sizes)
        print(f"{share.workers:7}  {share.seconds / 60:29.0f}  {sent:>8}  {carried:>19}  {store:>21}")


def _workers_of(executor: str, threads: int | None) -> Sequence[int]:
    """Return how many workers a Ray cluster has, or several numbers and why on stderr, where none can be joined."""
    from elutq_cli.pipeline.compute.ray_cluster import RayCluster
    from elutq_cli.pipeline.run.scaling import COUNTS
    from elutq_formats.errors import ElutqError

    try:
        cluster = RayCluster(executor.partition(":")[2] or None, threads)
    except ElutqError as error:
        print(shown_line(f"planned for {', '.join(map(str, COUNTS))} workers: {error}"), file=sys.stderr)
        return COUNTS
    cluster.close()
    return (cluster.workers,)
