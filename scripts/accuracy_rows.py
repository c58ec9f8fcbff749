"""The rows of the accuracy table: one JSON file, written after every row, and the Markdown made of it.

Nothing here computes a figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from accuracy_methods import METHODS

from elutq_cli.text_input import read_json
from elutq_formats.errors import ElutqError

Row = dict[str, Any]

KEY = ("model", "text", "method", "bits", "group_size", "scale_bits", "num_samples", "seed")
"""Fields that tell rows apart; ``num_samples`` (calibration sequences) and ``seed`` are 0 where a method sees none."""

FIGURES = ("bits_per_weight", "kl", "top1", "ppl", "ppl_stderr", "reference_ppl", "runtime_kl", "seconds")
"""Fields that were measured; ``runtime_kl`` may be None when it was not, ``seconds`` of a run that was resumed."""

CIRCUMSTANCES = ("date", "commit", "command", "kernels", "threads", "device")

TITLES = {
    "smollm2-135m": "SmolLM2-135M-Instruct",
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B-Instruct",
    "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B-Instruct",
}
"""What the tables call models of these names."""

SUMMARY = (
    ("fit", 2, 64, "2, weights alone"),
    ("allocate", 2, 64, "2, calibrated"),
    ("allocate", 2, 32, "2, calibrated, groups of 32"),
    ("block-e2e", 2, 32, "2, calibrated, groups of 32, tuned"),
    ("allocate", 3, 64, "3, calibrated"),
    ("allocate", 4, 64, "4, calibrated"),
)
"""Method, bits and group size of the rows of a summary, and what it calls them."""

BEGIN = "<!-- {} of docs/figures/accuracy.json, by scripts/accuracy_table.py --render THIS_PAGE -->"
END = "<!-- end of docs/figures/accuracy.json -->"


class Table:
    """The rows made so far, and what they all have in common.

    Attributes:
        path: the JSON file.
        settings: what every row was made with; rows made with anything else do not go into the same file.
        texts: SHA-256 by name.
        rows: in the order in which they were made.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Read the file, if it is there.

        Raises:
            ElutqError: it holds rows that were made with other settings.
        """
        self.path, self.settings = path, settings
        self.texts: dict[str, str] = {}
        self.rows: list[Row] = []
        if not path.exists():
            return
        found = read_json(path)
        if not isinstance(found, dict) or not {"texts", "rows", "settings"} <= found.keys():
            raise ElutqError(f"{path} is not a file of rows: give another --json")
        self.texts, self.rows = found["texts"], found["rows"]
        for name, value in settings.items():
            if found["settings"].get(name) != value:
                theirs = found["settings"].get(name)
                raise ElutqError(f"{path} was made with {name} {theirs}, not {value}: give another --json")

    def add_text(self, name: str, sha256: str) -> None:
        """Remember which text a name stands for.

        Raises:
            ElutqError: it stands for another.
        """
        if self.texts.setdefault(name, sha256) != sha256:
            raise ElutqError(f"{self.path} has rows of another text called {name}: give this one another name")

    def has(self, key: Sequence[Any]) -> bool:
        """Whether there is a row of this key."""
        return any(key_of(row) == tuple(key) for row in self.rows)

    def put(self, row: Row) -> None:
        """Add a row, in place of one of the same key, and write the file."""
        self.rows = [other for other in self.rows if key_of(other) != key_of(row)] + [row]
        new = self.path.with_name(self.path.name + ".new")
        contents = {"settings": self.settings, "texts": self.texts, "rows": self.rows}
        new.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)


def key_of(row: Row) -> tuple[Any, ...]:
    """Return what tells a row from others."""
    return tuple(row[name] for name in KEY)


def tables(rows: Sequence[Row]) -> str:
    """Return the Markdown of all rows: a section and a table for each model, its texts side by side."""
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    sections = []
    for model in in_order(by_model):
        texts = list(dict.fromkeys(row["text"] for row in by_model[model]))
        lines = [f"## {TITLES.get(model, model)}\n", header(texts), full_precision(texts, by_model[model])]
        lines += [line(texts, same) for same in together(by_model[model])]
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def together(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of one model file each, which has a row for every text, in the order of the table."""
    files: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        method = list(METHODS).index(row["method"])
        place = row["bits"], -row["scale_bits"], -row["group_size"], method, row["num_samples"], row["seed"]
        files.setdefault(place, []).append(row)
    return [files[key] for key in sorted(files)]


def header(texts: Sequence[str]) -> str:
    """Return the head of a table."""
    names = ["bits", "group", "scales", "method", "sequences", "bits/weight"]
    names += [f"{figure} {text}" for figure in ("KL", "top-1, %", "perplexity") for text in texts]
    names += ["runtime's KL", "seconds"]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def full_precision(texts: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the line of the reference."""
    own = {row["text"]: format(row["reference_ppl"], ".2f") for row in rows}
    cells = ["", "", "", "full precision", "", "", *["0"] * len(texts), *["100"] * len(texts)]
    return f"| {' | '.join([*cells, *(own[text] for text in texts), '', ''])} |"


def line(texts: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the line of one model file, from its row for each text."""
    first, by_text = rows[0], {row["text"]: row for row in rows}
    cells = [
        str(first["bits"]),
        str(first["group_size"]),
        f"{first['scale_bits']} bits",
        METHODS[first["method"]].label + (f", seed {first['seed']}" if first["seed"] else ""),
        str(first["num_samples"] or ""),
    ]
    cells.append(f"{first['bits_per_weight']:.3f}")
    for name, scale, form in (("kl", 1, ".4f"), ("top1", 100, ".1f"), ("ppl", 1, ",.2f")):
        cells += [format(scale * by_text[text][name], form) if text in by_text else "" for text in texts]
    of_runtime = [row["runtime_kl"] for row in rows if row["runtime_kl"] is not None]
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    cells.append(f"{of_runtime[0]:.4f}" if of_runtime else "")
    cells.append(f"{seconds[0]:.0f}" if seconds else "")
    return f"| {' | '.join(cells)} |"


def in_order(models: Iterable[str]) -> list[str]:
    """Return the models that have a title in the order of these, and then the others."""
    return sorted(models, key=lambda model: (list(TITLES).index(model) if model in TITLES else len(TITLES), model))


def best_last(rows: Iterable[Row]) -> list[Row]:
    """Return rows in an order in which those of the smallest files, to a tenth of a bit a weight, come last.

    Of those the last are of most sequences, and of these of the first seed.
    """
    return sorted(rows, key=lambda row: (-round(row["bits_per_weight"], 1), row["num_samples"], -row["seed"]))


def summary(rows: Sequence[Row]) -> str:
    """Return the Markdown of the SUMMARY of all models, on the first text that each was evaluated on.

    Of the rows that are alike in what SUMMARY names it has the one that ``best_last`` puts last.
    """
    lines = ["| | bits | bits per weight of the blocks | perplexity | KL divergence, nats | same likeliest token |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for model in in_order({row["model"] for row in rows}):
        own = [row for row in rows if row["model"] == model]
        text = own[0]["text"]
        found = {(row["method"], row["bits"], row["group_size"]): row for row in best_last(own) if row["text"] == text}
        first = f"{TITLES.get(model, model)} | full precision | | {own[0]['reference_ppl']:.1f} | | |"
        lines.append(f"| {first}")
        for *file, name in SUMMARY:
            if (row := found.get(tuple(file))) is not None:
                figures = (
                    f"{row['bits_per_weight']:.3g} | {row['ppl']:,.1f} | {row['kl']:.2g} | {100 * row['top1']:.0f} % |"
                )
                lines.append(f"| | {name} | {figures}")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {"Every row": tables, "A summary": summary}
"""What a page may hold, between BEGIN with this name and END."""


def insert(page: str, rows: Sequence[Row]) -> str:
    """Return a page with the figures of these rows in place of those that it shows."""
    for name, render in BLOCKS.items():
        before, begin, rest = page.partition(BEGIN.format(name))
        _, end, after = rest.partition(END)
        if end:
            page = f"{before}{begin}\n\n{render(rows)}\n\n{end}{after}"
    return page


def shows_rows(page: str) -> bool:
    """Whether a page has a place for figures."""
    return any(BEGIN.format(name) in page for name in BLOCKS) and END in page
