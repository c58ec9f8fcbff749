"""Draw the figures of the README and docs/ from JSON that the commands wrote.

    elutq bench model.gguf -p 0 -n 16 -t 1,2 -o json > speed.json
    elutq info model.gguf --json > layers.json
    python scripts/draw_figures.py -o docs/figures --accuracy accuracy.json --speed speed.json --layers layers.json

Each figure is drawn for the files that are given; --speed may name several. The first is of scripts/accuracy_table.py.
Needs matplotlib (the dev extra).
"""

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from accuracy_rows import TITLES, best_last, in_order

from elutq_cli.text_input import read_json
from elutq_formats.errors import ElutqError

matplotlib.use("svg")
matplotlib.rcParams |= {
    "svg.hashsalt": "elutq",  # the same input gives the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",  # readable on a dark page too
}

from matplotlib import pyplot, ticker  # noqa: E402 (settings come first)

BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
COLOURS = ("#1f5fa8", "#d1701f", "#3c8a3c", "#8a4fa0")
OTHERS, ROOF = "#777777", "#d5dbe3"
STYLES = ("^:", OTHERS), ("s:", OTHERS), ("D--", COLOURS[1]), ("o--", COLOURS[0]), ("o-", COLOURS[0])
"""Markers, lines and colours of METHODS_DRAWN."""

WIDTH = 7.2


METHODS_DRAWN = {
    "uniform": "round to nearest",
    "uniform-feedback": "GPTQ",
    "fixed-codes": "the ELUTQ authors' way",
    "fit": "elutq, weights alone",
    "allocate": "elutq, calibrated",
}
"""The methods of the quality figure, by their names in the rows, and what it calls them."""


def draw_quality(rows: list[dict[str, Any]], output: Path) -> None:
    """Draw KL divergence over bits per weight, a line a method, beside each other for the models.

    Args:
        rows: of scripts/accuracy_table.py; drawn are those on each model's first text in groups of 64, and of a
            method's rows at some bits the one that ``best_last`` puts last.
        output: folder.
    """
    models = in_order({row["model"] for row in rows})
    figure, axes = pyplot.subplots(1, len(models), figsize=(WIDTH, 3.2), sharex=True, sharey=True, squeeze=False)
    for panel, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row["model"] == model and row["group_size"] == 64]
        own = [row for row in own if row["text"] == own[0]["text"]]
        for (method, name), style in zip(METHODS_DRAWN.items(), STYLES, strict=True):
            drawn = {row["bits"]: row for row in best_last(own) if row["method"] == method}
            in_order_of_size = sorted(drawn.values(), key=lambda row: -row["bits_per_weight"])
            points = [row["bits_per_weight"] for row in in_order_of_size], [row["kl"] for row in in_order_of_size]
            panel.plot(*points, style[0], color=style[1], label=name if panel is axes[0][0] else None)
        panel.set(xlabel="bits per weight of the blocks", yscale="log", title=TITLES.get(model, model))
        panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.yaxis.set_minor_locator(ticker.NullLocator())
    axes[0][0].set_ylabel("KL divergence, nats")
    figure.legend(loc="outside lower center", ncols=3)
    save(figure, output / "quality.svg")


def draw_speed(rows: list[dict[str, Any]], output: Path) -> None:
    """Draw decode speed beside the roof of the same run, from `elutq bench -o json`."""
    rows = [row for row in rows if row["n_gen"]]
    if not rows:
        raise ElutqError("--speed has no row of decode: measure with elutq bench -n")
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.9 + 0.36 * len(rows)))
    places = range(len(rows))
    roofs, speeds = [row["roof_ts"] for row in rows], [row["avg_ts"] for row in rows]
    axes.barh(places, roofs, height=0.7, color=ROOF, label="the roof: a plain read of the same bytes")
    axes.barh(places, speeds, height=0.4, color=COLOURS[0], label="decode")
    for place, row in zip(places, rows, strict=True):
        label = f"{row['avg_ts']:.1f}, {100 * row['roof_fraction']:.0f} % of the roof"
        ends = max(row["avg_ts"], row["roof_ts"])
        axes.annotate(label, (ends, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(yticks=list(places), yticklabels=[name_run(row) for row in rows], xlabel="tokens per second")
    axes.set_title(f"{rows[0]['cpu_info']}, {rows[0]['isa']} kernels")
    axes.set_xlim(0, 1.3 * max(roofs + speeds))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    save(figure, output / "speed.svg")


def name_run(row: dict[str, Any]) -> str:
    """Return what a row of `elutq bench` measured."""
    threads = f"{row['n_threads']} thread{'s' if row['n_threads'] > 1 else ''}"
    depth = f", after {row['n_depth']} tokens" if row["n_depth"] else ""
    return f"{Path(row['model_filename']).stem}, {threads}{depth}"


def draw_layers(description: dict[str, Any], output: Path) -> None:
    """Draw each matrix's bits, and its relative error as colour, over the blocks, from `elutq info --json`."""
    cells: dict[str, dict[int, tuple[int, float]]] = defaultdict(dict)
    for tensor in description["tensors"]:
        if tensor["error"] is not None and (match := BLOCK.fullmatch(tensor["name"])):
            cells[match[2]][int(match[1])] = tensor["bits"], tensor["error"]
    if not cells:
        raise ElutqError("--layers has no matrix of a block whose error is known")
    n_blocks = max(max(blocks) for blocks in cells.values()) + 1
    errors = [[blocks.get(block, (0, float("nan")))[1] for block in range(n_blocks)] for blocks in cells.values()]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.9 + 0.3 * len(cells)))
    image = axes.imshow(errors, aspect="auto", cmap="Blues", vmin=0)
    most = max(max(row) for row in errors)
    for y, blocks in enumerate(cells.values()):
        for x, (bits, error) in blocks.items():
            colour = "white" if error > 0.6 * most else "black"
            axes.text(x, y, str(bits), ha="center", va="center", fontsize=8 if n_blocks <= 24 else 5, color=colour)
    axes.set(yticks=range(len(cells)), yticklabels=[name.removeprefix("ffn_") for name in cells], xlabel="block")
    blocks_bits = f"{description['block_bits_per_weight']:.2f} bits per weight in the blocks"
    axes.set_title(f"{description['name']}, {blocks_bits}: bits of each matrix, and its error")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=16))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="relative error", pad=0.02)
    bar.outline.set_visible(False)
    save(figure, output / "layers.svg")


def save(figure: Any, path: Path) -> None:  # noqa: ANN401 (matplotlib is typed in its newest versions only)
    """Write a figure without the date, so that the same input gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    print(path)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--accuracy", type=Path, help="of scripts/accuracy_table.py")
    parser.add_argument("--speed", type=Path, nargs="+", default=[], help="of elutq bench -o json")
    parser.add_argument("--layers", type=Path, help="of elutq info --json")
    arguments = parser.parse_args()
    if not (arguments.accuracy or arguments.speed or arguments.layers):
        parser.error("there is nothing to draw: give --accuracy, --speed or --layers")
    try:
        if arguments.accuracy:
            draw_quality(read_json(arguments.accuracy)["rows"], arguments.output)
        if arguments.speed:
            draw_speed([row for path in arguments.speed for row in read_json(path)], arguments.output)
        if arguments.layers:
            draw_layers(read_json(arguments.layers), arguments.output)
    except ElutqError as error:
        sys.exit(f"draw_figures.py: {error}")
    except (KeyError, TypeError, ValueError) as error:
        sys.exit(f"draw_figures.py: the JSON is of something else: {error!r}")


if __name__ == "__main__":
    main()
