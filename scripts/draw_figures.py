"""Draw the figures of the README and docs/ from JSON that the commands wrote.

    elutq eval calibrated-*.gguf weights-alone-*.gguf -f text.txt --reference CHECKPOINT --json > quality.json
    elutq bench model.gguf -p 0 -n 16 -t 1,2 -o json > speed.json
    elutq info model.gguf --json > layers.json
    python scripts/draw_figures.py -o docs/figures --quality quality.json --speed speed.json --layers layers.json

Each figure is drawn for the files that are given; --speed may name several. Evaluated files called SERIES-BITS make a
line each. --peers adds points of other programs: {"program": {"type": [bits per weight, KL]}}. Needs matplotlib (the
dev extra).
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

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
PEER, ROOF = "#555555", "#d5dbe3"
WIDTH = 7.2


def draw_quality(report: dict[str, Any], peers: dict[str, dict[str, list[float]]], output: Path) -> None:
    """Draw KL divergence and perplexity over bits per weight, from `elutq eval A B ... --reference C --json`."""
    quantized = [model for model in report["models"] if "kl" in model]
    full = next((model for model in report["models"] if "kl" not in model), None)
    series: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for model in sorted(quantized, key=lambda model: model["block_bits_per_weight"]):
        stem = Path(model["model"]).stem
        name, _, bits = stem.rpartition("-")
        is_number = re.fullmatch(r"[\d.]+", bits) is not None
        series[f"elutq, {name.replace('-', ' ')}" if is_number else stem].append(model)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(WIDTH, 3.2))
    for (name, models), colour in zip(series.items(), COLOURS * len(series), strict=False):
        bits = [model["block_bits_per_weight"] for model in models]
        left.plot(bits, [model["kl"] for model in models], "o-", color=colour, label=name)
        right.plot(bits, [model["ppl"] for model in models], "o-", color=colour)
    for name, points in peers.items():
        bits, divergences = zip(*points.values(), strict=True)
        left.plot(bits, divergences, "x", color=PEER, label=name)
        for at, (kind, (x, y)) in enumerate(points.items()):
            offset, side = ((0, -12), "center") if at % 2 else ((-6, -3), "right")  # so that neighbours stay readable
            left.annotate(kind, (x, y), offset, textcoords="offset points", ha=side, fontsize=7, color=PEER)
        left.set_xlim(left=left.get_xlim()[0] - 0.4)
    if full is not None:
        right.axhline(full["ppl"], linestyle="--", linewidth=1, color=PEER)
        text = f"full precision {full['ppl']:.1f}"
        right.annotate(text, (1, full["ppl"]), (0, -3), xycoords=("axes fraction", "data"), textcoords="offset points",
                       ha="right", va="top", fontsize=7, color=PEER)  # fmt: skip
        right.margins(y=0.12)
    left.set(xlabel="bits per weight of the blocks", yscale="log", title="KL divergence from full precision, nats")
    right.set(xlabel="bits per weight of the blocks", title="Perplexity")
    left.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    left.yaxis.set_minor_locator(ticker.NullLocator())
    figure.legend(loc="outside lower center", ncols=3)
    save(figure, output / "quality.svg")


def draw_speed(rows: list[dict[str, Any]], output: Path) -> None:
    """Draw decode speed beside the roof of the same run, from `elutq bench -o json`."""
    rows = [row for row in rows if row["n_gen"]]
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
    parser.add_argument("--quality", type=Path, help="of elutq eval, several models with --reference")
    parser.add_argument("--peers", type=Path, help="other programs' points for --quality")
    parser.add_argument("--speed", type=Path, nargs="+", default=[], help="of elutq bench -o json")
    parser.add_argument("--layers", type=Path, help="of elutq info --json")
    arguments = parser.parse_args()
    if arguments.quality:
        peers = json.loads(arguments.peers.read_text()) if arguments.peers else {}
        draw_quality(json.loads(arguments.quality.read_text()), peers, arguments.output)
    if arguments.speed:
        draw_speed([row for path in arguments.speed for row in json.loads(path.read_text())], arguments.output)
    if arguments.layers:
        draw_layers(json.loads(arguments.layers.read_text()), arguments.output)


if __name__ == "__main__":
    main()
