"""A program that quantizes a model and prints the most memory it took, and how much the forecast had said.

    python tests/peak_of_run.py SOURCE OUTPUT THREADS '{"options": "of the recipe"}' [TEXT]

Memory is that of the process without mapped files, sampled. Tuning is cut to a few steps: each takes the same.
"""

import json
import sys
import threading
from pathlib import Path

from elutq_cli.pipeline.compute.blas import configure_blas

configure_blas(1)

from elutq_cli.pipeline.compute.backend import native_backend  # noqa: E402
from elutq_cli.pipeline.recipe import Recipe  # noqa: E402
from elutq_cli.pipeline.run import preparation, quantize  # noqa: E402 (BLAS first)
from elutq_cli.pipeline.run.calibration_text import CalibrationText  # noqa: E402
from elutq_formats.open_source import open_source  # noqa: E402


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def few_steps():
    from elutq_cli.pipeline.stages.tune import block

    block.BLOCK_STEPS = 2


def main():
    folder, output, threads, options, *texts = sys.argv[1:]
    options = json.loads(options)
    tune = tuple(options.get("tune", ()))
    few = {"tune_tokens": 2048} if "e2e" in tune else {}
    recipe = Recipe(**options | few | {"tune": tune})
    if recipe.tune:
        few_steps()
    samples, ended = [resident()], threading.Event()

    def sample():
        while not ended.wait(0.003):
            samples.append(resident())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    with open_source(Path(folder)) as checkpoint, native_backend(int(threads)) as backend:
        text = CalibrationText.read(list(map(Path, texts)), checkpoint, recipe) if texts else None
        forecast = preparation.prepare(checkpoint, None, recipe, text, backend, None, "cpu").forecast
        quantize.quantize(checkpoint, Path(output), recipe, text, backend)
    ended.set()
    sampler.join()
    print(json.dumps({"peak": max(samples), "bound": forecast.memory_bytes}))


if __name__ == "__main__":
    main()
