"""Results as a Markdown table, CSV, a JSON list, or one JSON object a line."""

import csv
import io
import json
from collections.abc import Callable, Iterable

from elutq_cli.streams import shown_line

Row = dict[str, object]


def to_json(rows: Iterable[Row]) -> str:
    """Returns one list with an object for each test."""
    return json.dumps(list(rows), indent=2)


def to_jsonl(rows: Iterable[Row]) -> str:
    """Returns one object a line."""
    return "\n".join(json.dumps(row) for row in rows)


def to_csv(rows: Iterable[Row]) -> str:
    """Returns a table with a header; lists are left to the JSON forms."""
    flat = [{key: _cell(value) for key, value in row.items() if not isinstance(value, list | dict)} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, flat[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().rstrip("\n")


def to_markdown(rows: Iterable[Row]) -> str:
    """Returns a table for a reader; profiled operations follow as a second one."""
    rows = list(rows)
    first = rows[0]
    size = float(str(first["model_size"])) / 1e9
    lines = [
        f"{shown_line(first['model_filename'])}: {size:.2f} GB | {first['cpu_info']} | {first['isa']}",
        "",
        "| test | threads | tokens/s | read GB/s | roof tokens/s | of roof | J/token |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        speed = f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
        fraction = row["roof_fraction"]
        cells = [
            str(row["test"]),
            str(row["n_threads"]),
            speed,
            _number(row["read_gbps"], 1),
            _number(row["roof_ts"], 2),
            "" if fraction is None else f"{100 * float(str(fraction)):.0f} %",
            _number(row["joules_per_token"], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        if "operations_s" in row:
            lines += ["", *_operations(row)]
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Iterable[Row]], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "jsonl": to_jsonl,
}


def _cell(value: object) -> object:
    return shown_line(value) if isinstance(value, str) else value


def _number(value: object, digits: int) -> str:
    return "" if value is None else f"{float(str(value)):.{digits}f}"


def _operations(row: Row) -> Iterable[str]:
    operations = row["operations_s"]
    assert isinstance(operations, dict)
    total = sum(operations.values()) or 1.0
    yield f"{row['test']}, {row['n_threads']} threads: share of the time in each operation"
    yield "| " + " | ".join(operations) + " |"
    yield "|" + "---:|" * len(operations)
    yield "| " + " | ".join(f"{100 * seconds / total:.1f} %" for seconds in operations.values()) + " |"
