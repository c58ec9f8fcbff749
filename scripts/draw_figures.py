"""Draw the figures of the README and docs/ from JSON that the commands wrote.

    elutq eval *.gguf -f text.txt --reference CHECKPOINT --json > quality.json
    elutq bench model.gguf -p 0 -n 128 -t 1,2 -o json > speed.json
    elutq info model.gguf --json > info.json
    python scripts/draw_figures.py -o docs/figures --quality quality.json --speed speed.json --layers info.json

Each figure is drawn for the files that are given; --speed may name several. Needs matplotlib (the dev extra).
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
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}

from matplotlib import pyplot  # noqa: E402 (the backend is chosen first)

BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
FULL_PRECISION = 16


def draw_quality(report: dict[str, Any], output: Path) -> None:
    """Draw perplexity and KL divergence over bits per weight, from `elutq eval A B ... --reference C --json`."""
    models = report["models"]
    quantized = [model for model in models if "kl" in model]
    full = [model for model in models if "kl" not in model]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2))
    for model in quantized:
        name = Path(model["model"]).stem
        left.errorbar(model["bits_per_weight"], model["ppl"], yerr=model["ppl_stderr"], fmt="o", capsize=2, label=name)
        right.plot(model["bits_per_weight"], model["kl"], "o", label=name)
    for model in full:
        left.axhline(model["ppl"], linestyle="--", color="gray", label=f"{Path(model['model']).name}, unquantized")
    text = f"{Path(report['file']).name}, {quantized[0]['windows']} windows of {quantized[0]['ctx']}, {report['rule']}"
    left.set(xlabel="bits per weight, all tensors", ylabel="perplexity", title=text)
    right.set(xlabel="bits per weight, all tensors", ylabel="KL divergence, nats", yscale="log")
    left.title.set_fontsize(8)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
    save(figure, output / "quality.svg")


def draw_speed(rows: list[dict[str, Any]], output: Path) -> None:
    """Draw decode speed beside the roof of the same run, from `elutq bench -o json`."""
    rows = [row for row in rows if row["n_gen"]]
    names = [f"{Path(row['model_filename']).stem}\n{row['n_threads']} threads, depth {row['n_depth']}" for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.5 * len(rows)))
    places = range(len(rows))
    axes.barh(places, [row["roof_ts"] for row in rows], color="lightgray", label="roof: a plain read of the same bytes")
    axes.barh(
        places,
        [row["avg_ts"] for row in rows],
        xerr=[row["stddev_ts"] for row in rows],
        height=0.5,
        label="decode",
    )
    for place, row in zip(places, rows, strict=True):
        label = f" {row['avg_ts']:.1f} ({100 * row['roof_fraction']:.0f} % of the roof)"
        axes.text(max(row["avg_ts"], row["roof_ts"]), place, label, va="center", fontsize=7)
    axes.set(
        yticks=list(places), yticklabels=names, xlabel="tokens/s", title=f"{rows[0]['cpu_info']}, {rows[0]['isa']}"
    )
    axes.margins(x=0.25)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    save(figure, output / "speed.svg")


def draw_layers(description: dict[str, Any], output: Path) -> None:
    """Draw each matrix's relative error over the blocks, from `elutq info --json`."""
    errors: dict[str, dict[int, float]] = defaultdict(dict)
    others = {}
    for tensor in description["tensors"]:
        if tensor["error"] is None:
            continue
        if match := BLOCK.fullmatch(tensor["name"]):
            errors[match[2]][int(match[1])] = tensor["error"]
        else:
            others[tensor["name"]] = tensor["error"]
    figure, axes = pyplot.subplots(figsize=(8, 3.2))
    for name, by_block in errors.items():
        blocks = sorted(by_block)
        axes.plot(blocks, [by_block[block] for block in blocks], "o-", markersize=3, label=name)
    for name, error in others.items():
        axes.axhline(error, linestyle=":", color="gray")
        axes.annotate(name, (0, error), fontsize=7, va="bottom")
    title = f"{description['name']}, {description['bits_per_weight']:.2f} bits per weight"
    axes.set(xlabel="block", ylabel="relative error", title=title, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)
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
    parser.add_argument("--speed", type=Path, nargs="+", default=[], help="of elutq bench -o json")
    parser.add_argument("--layers", type=Path, help="of elutq info --json")
    arguments = parser.parse_args()
    if arguments.quality:
        draw_quality(json.loads(arguments.quality.read_text()), arguments.output)
    if arguments.speed:
        draw_speed([row for path in arguments.speed for row in json.loads(path.read_text())], arguments.output)
    if arguments.layers:
        draw_layers(json.loads(arguments.layers.read_text()), arguments.output)


if __name__ == "__main__":
    main()
