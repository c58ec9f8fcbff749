"""What `elutq eval` prints: figures as JSON, or for a reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elutq_cli.streams import printable, shown_line

if TYPE_CHECKING:
    from elutq_cli.evaluation import Evaluation, Windows
    from elutq_cli.evaluation.models import EvaluatedModel
    from elutq_cli.evaluation.tasks import TaskResult

OF_REFERENCE = ("ppl", "ppl_stderr", "nll", "tasks")
"""Figures of the reference that stand beside those of a single model."""


def print_json(
    given: dict[str, Any],
    rows: list[EvaluatedModel],
    n_models: int,
    results: list[Evaluation],
    answers: dict[Path, list[TaskResult]],
) -> None:
    """Print one JSON object.

    Args:
        given: what was asked for.
        rows: the models, and then the reference if there is one.
        n_models: how many of them are models; one stands in the object itself, with its reference's own figures.
        results: of each, on the text; empty when there is none.
        answers: of each, by the file of questions.
    """
    entries = []
    for index, row in enumerate(rows):
        entry = row.describe() | (results[index].to_dict() if results else {})
        if answers:
            entry["tasks"] = [{"file": printable(path)} | found[index].to_dict() for path, found in answers.items()]
        entries.append(entry)
    if n_models > 1:
        print(json.dumps(given | {"models": entries}))
        return
    own = {} if len(entries) == 1 else {key: entries[-1][key] for key in OF_REFERENCE if key in entries[-1]}
    print(json.dumps(given | entries[0] | {f"reference_{key}": value for key, value in own.items()}))


def print_text(
    rows: list[EvaluatedModel],
    n_models: int,
    windows: Windows | None,
    results: list[Evaluation],
    answers: dict[Path, list[TaskResult]],
) -> None:
    """Print for a reader what `print_json` prints; windows is None when there is no text."""
    if windows is not None and n_models == 1:
        print_result(results, windows, rows)
    elif windows is not None:
        print_table(results, windows, rows)
    for index, (path, found) in enumerate(answers.items()):
        print("\n" if index or results else "", end="")
        print_answers(path, found, rows)


def print_result(results: list[Evaluation], windows: Windows, rows: list[EvaluatedModel]) -> None:
    """Print one model's result for a reader, and its reference's."""
    model, result, own = rows[0], results[0], results[-1]
    print(f"model       {shown_line(model.name)} ({model.kind})")
    blocks = "" if model.block_bits_per_weight is None else f" ({model.block_bits_per_weight:.3f} in the blocks)"
    print(f"size        {model.size_bytes / 1e6:.2f} MB, {model.bits_per_weight:.3f} bits per weight{blocks}")
    print(f"perplexity  {result.ppl:.4f} +- {result.ppl_stderr:.4f}  (nll {result.nll:.5f} nats per token)")
    print(f"scored      {result.n_tokens} tokens in {result.windows} windows of {result.ctx}: {windows.description}")
    if result.kl is not None and result.top1 is not None:
        agreement = f"KL divergence {result.kl:.5f} nats, top-1 agreement {100 * result.top1:.2f} %"
        figures = f"perplexity {own.ppl:.4f} +- {own.ppl_stderr:.4f}, {agreement}"
        print(f"reference   {shown_line(rows[-1].name)}: {figures}")


def print_table(results: list[Evaluation], windows: Windows, rows: list[EvaluatedModel]) -> None:
    """Print several models' results for a reader."""
    n_scored = results[0].n_tokens
    print(f"{n_scored} tokens in {len(windows)} windows of {windows.ctx}: {windows.description}\n")
    names = [shown_line(row.name) for row in rows]
    width = max(map(len, names))
    compared = results[0].kl is not None
    heads = f"{'model':{width}} {'bits/weight':>11} {'MB':>10} {'perplexity':>20}"
    print(heads + (f" {'KL, nats':>9} {'top-1, %':>9}" if compared else ""))
    for name, row, result in zip(names, rows, results, strict=True):
        figures = f"{result.ppl:.4f} +- {result.ppl_stderr:.4f}"
        line = f"{name:{width}} {row.bits_per_weight:>11.3f} {row.size_bytes / 1e6:>10.2f} {figures:>20}"
        if result.kl is not None and result.top1 is not None:
            line += f" {result.kl:>9.5f} {100 * result.top1:>9.2f}"
        print(line)


def print_answers(path: Path, answers: list[TaskResult], rows: list[EvaluatedModel]) -> None:
    """Print what share of questions the models answered rightly."""
    rule = "the choice of the highest log-likelihood, and (acc_norm) of the highest per character"
    print(shown_line(f"{answers[0].n_questions} questions of {path}: {rule}"), end="\n\n")
    names = [shown_line(row.name) for row in rows]
    width = max(map(len, [*names, "model"]))
    print(f"{'model':{width}} {'acc':>17} {'acc_norm':>17}")
    for name, result in zip(names, answers, strict=True):
        acc, acc_norm = _share(result.acc, result.acc_stderr), _share(result.acc_norm, result.acc_norm_stderr)
        print(f"{name:{width}} {acc:>17} {acc_norm:>17}")


def _share(mean: float, stderr: float | None) -> str:
    return f"{mean:.4f}" if stderr is None else f"{mean:.4f} +- {stderr:.4f}"
