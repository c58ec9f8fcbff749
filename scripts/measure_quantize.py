"""Measures the quantizer on a slice of a model: a table of stages, peak memory, and what the whole model would take.

    python scripts/make_checkpoint.py llama3-8b --blocks 2 -o /tmp/llama3-8b
    python scripts/measure_quantize.py /tmp/llama3-8b --blocks 32
    python scripts/measure_quantize.py /tmp/llama3-8b --blocks 32 --calibration text.txt --num-samples 16
    python scripts/measure_quantize.py /tmp/llama3-8b --blocks 32 --calibration text.txt --tune block,e2e --device cuda

Every second belongs to the innermost of the functions in STAGES that was running. What is done once for a model
(embedding, head) is counted once; what is done for each block, as often as the model has blocks. Processor time over
wall-clock time says how many cores a stage had; "alone" is its processor time spread over the threads it uses, what it
takes where nothing else runs. With a GPU that is the wall-clock time: a core waits while it computes.
"""

import argparse
import importlib
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from elutq_cli.pipeline.compute.blas import configure_blas

ALLOCATE, GRADIENTS, TIED = "allocate, errors", "allocate, gradients", "tied head, forward"
WRITE, TUNE_ALL = "write the file", "tune, end to end"
STAGES = {
    "load": (("run.tensors", "Tensors.load"),),
    "calibration forward": (("stages.calibrate", "block_statistics"), ("stages.calibrate", "input_statistics")),
    "Hessian products": (
        ("stages.moments", "add_gram"),
        ("stages.moments", "add_product"),
        ("stages.moments", "mirror_upper"),
    ),
    "what the stream lacks": (("stages.moments", "less_product"),),
    ALLOCATE: (("run.quantize", "allocate"),),
    GRADIENTS: (("stages.allocate", "gradient_squares"),),
    TIED: (("run.units", "tied_head_statistics"),),
    "Cholesky factor": (("run.tensors", "inverse_factor"),),
    "correction": (("run.calibrated_block", "correct"),),
    "fit levels": (("compute.inner_loops", "NativeLoops.fit_groups"),),
    "feedback, columns": (("compute.inner_loops", "NativeLoops.feedback_columns"),),
    "feedback, rest of the row": (("stages.feedback", "feedback"),),
    "refine, residual": (("stages.refine", "refine"),),
    "refine, groups": (("compute.inner_loops", "NativeLoops.refine_group"),),
    "tune, block": (("run.calibrated_block", "CalibratedBlock.tune"),),
    TUNE_ALL: (("run.end_to_end", "tune_end_to_end"),),
    "held out, forward": (("run.calibrated_block", "run_block"),),
    "compare predictions": (("run.units", "measure_divergence"),),
    "error": (("run.tensors", "measure"), ("stages.by_rows", "measure"), ("stages.measure", "measure")),
    "dequantize": (("stages.linear", "dequantize"), ("stages.by_rows", "dequantize")),
    "pack": (("compute.inner_loops", "NativeLoops.pack"),),
    "scratch files": (
        ("run.spool", "Spool.add"),
        ("run.spool", "Spool.finish_unit"),
        ("run.spool", "Spool.open_streams"),
    ),
    WRITE: (("run.quantize", "write_model"),),
}
CALLERS = tuple(f"elutq_cli.pipeline.run.{module}" for module in ("quantize", "units", "calibrated_block", "tensors"))
OTHER = "all else"
OF_BLOCKS = (ALLOCATE, GRADIENTS, TIED, TUNE_ALL)  # in proportion to the blocks, though not of one block
SERIAL = ("scratch files", WRITE, OTHER)
ONCE, BLOCKS = "once", "blocks"


class Device:
    """Where large products are computed: the processor."""

    def wait(self) -> None:
        """Return when it has done what it was told."""

    def take_peak(self) -> int:
        """Return the most bytes that it held since it was last asked."""
        return 0


class CudaDevice(Device):
    """The same of a GPU."""

    def wait(self) -> None:
        """Return when it has done what it was told."""
        import torch

        torch.cuda.synchronize()

    def take_peak(self) -> int:
        """Return the most bytes that it held since it was last asked."""
        import torch

        peak: int = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


class Stopwatch:
    """Adds up wall-clock and processor seconds by stage and by part of the model."""

    def __init__(self, device: Device) -> None:
        """Start with everything at zero."""
        self.device = device
        self.device_bytes: dict[str, int] = defaultdict(int)
        self.part = ONCE
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.running = [OTHER]
        self.last = self.now()

    def now(self) -> tuple[float, float]:
        """Return wall-clock and processor seconds."""
        self.device.wait()
        return time.perf_counter(), time.process_time()

    def switch(self, change: Callable[[], Any]) -> None:
        """Charge the time since the last switch to what was running, then let another run."""
        now = self.now()
        stage = self.running[-1]
        if ALLOCATE in self.running and stage != GRADIENTS:
            stage = ALLOCATE
        for kind in range(2):
            self.seconds[stage, self.part][kind] += now[kind] - self.last[kind]
        self.device_bytes[stage] = max(self.device_bytes[stage], self.device.take_peak())
        self.last = now
        change()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed; calls from other threads than the driver's belong to what it waits for."""
        driver = threading.get_ident()

        def timed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            if threading.get_ident() != driver:
                return function(*arguments, **options)
            if stage == "load" and isinstance(arguments[1], str):
                part = BLOCKS if arguments[1].startswith("model.layers.") else ONCE
                self.switch(lambda: setattr(self, "part", part))
            self.switch(lambda: self.running.append(stage))
            try:
                result = function(*arguments, **options)
            finally:
                self.switch(self.running.pop)
            return self.steps(stage, result) if isinstance(result, Iterator) else result

        return timed

    def steps(self, stage: str, iterator: Iterator[Any]) -> Iterator[Any]:
        """Time each step of a generator; what it yields is the caller's to free."""
        while True:
            self.switch(lambda: self.running.append(stage))
            try:
                item = [next(iterator)]
            except StopIteration:
                return
            finally:
                self.switch(self.running.pop)
            yield item.pop()

    def share_writing(self, output: Path) -> None:
        """Divide the time of writing the file between blocks and the rest by their bytes."""
        from elutq_formats.model_file import ModelFile

        tensors = ModelFile.open(output).tensors.values()
        in_blocks = sum(tensor.n_bytes for tensor in tensors if tensor.name.startswith("blk."))
        part = in_blocks / sum(tensor.n_bytes for tensor in tensors)
        whole = [sum(self.seconds[WRITE, where][kind] for where in (ONCE, BLOCKS)) for kind in range(2)]
        self.seconds[WRITE, BLOCKS] = [part * seconds for seconds in whole]
        self.seconds[WRITE, ONCE] = [(1 - part) * seconds for seconds in whole]

    def instrument(self) -> None:
        """Replace the functions of STAGES, those of them that are there, in the modules that call them."""
        for stage, places in STAGES.items():
            for module_name, path in places:
                holder: Any = importlib.import_module(f"elutq_cli.pipeline.{module_name}")
                *outer, name = path.split(".")
                for attribute in outer:
                    holder = getattr(holder, attribute)
                if hasattr(holder, name):
                    setattr(holder, name, self.wrap(stage, getattr(holder, name)))
                for caller in map(importlib.import_module, CALLERS):
                    if not outer and holder is not caller and hasattr(caller, name):
                        setattr(caller, name, getattr(holder, name))


class PeakMemory:
    """Samples this process's memory without mapped files: RssAnon + RssShmem of /proc/self/status."""

    def __init__(self) -> None:
        """Start sampling."""
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            now = sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
            self.peak_bytes = max(self.peak_bytes, now)

    def stop(self) -> int:
        """Stop, and return the peak in bytes."""
        self._stop.set()
        self._thread.join()
        return self.peak_bytes


def print_table(
    watch: Stopwatch, slice_blocks: int, blocks: int, threads: int | None, tuning_growth: float
) -> tuple[float, float]:
    """Print seconds by stage; return the whole model's, as measured here and with the cores to itself.

    Args:
        watch: has measured.
        slice_blocks: blocks that were measured.
        blocks: of the whole model.
        threads: of the run; None: it ran on a device, where processor time says nothing of the time alone.
        tuning_growth: how much more end-to-end tuning computes for the whole model, head included.
    """
    scale = blocks / slice_blocks
    print(
        f"{'stage':26}{'once, s':>9}{'a block, s':>12}{f'{blocks} blocks, s':>14}"
        f"{'cores':>8}{'alone, s':>10}{'part':>7}{'' if threads else '  device, GB'}"
    )
    rows = []
    for stage in [*STAGES, OTHER]:
        once, in_blocks = watch.seconds[stage, ONCE], watch.seconds[stage, BLOCKS]
        if stage in OF_BLOCKS:
            once, in_blocks = [0.0, 0.0], [a + b for a, b in zip(once, in_blocks, strict=True)]
        growth = tuning_growth if stage == TUNE_ALL else scale
        whole, processor = (once[kind] + in_blocks[kind] * growth for kind in range(2))
        alone = processor / (1 if stage in SERIAL else threads) if threads else whole
        rows.append((stage, once[0], in_blocks[0] / slice_blocks, whole, processor / max(whole, 1e-9), alone))
    total, alone_total = sum(row[3] for row in rows), sum(row[5] for row in rows)
    for stage, once_s, block_s, whole_s, cores, alone in rows:
        if whole_s > 0.0:
            part = alone / alone_total
            device = "" if threads else f"{watch.device_bytes[stage] / 1e9:12.2f}"
            print(f"{stage:26}{once_s:9.2f}{block_s:12.2f}{whole_s:14.1f}{cores:8.2f}{alone:10.1f}{part:7.1%}{device}")
    print(f"{'all':26}{sum(r[1] for r in rows):9.2f}{sum(r[2] for r in rows):12.2f}{total:14.1f}{alone_total:18.1f}")
    return total, alone_total


def main() -> None:
    """Parse the command line, run, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--blocks", type=int, help="blocks of the whole model; default: those of the checkpoint")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--embedding-bits", type=int, help="16: next to no time goes into it; default: the recipe's")
    parser.add_argument("--output-bits", type=int, help="16: next to no time goes into it; default: the recipe's")
    parser.add_argument("--method", help="the recipe's; default: its own")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--tune", default="", help="block, e2e or block,e2e")
    parser.add_argument("--device", default="cpu", help="cpu, or torch's cuda, cuda:N")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--work", type=Path, help="folder for the output; default: the system's temporary folder")
    arguments = parser.parse_args()
    configure_blas(1)
    from elutq_cli.api import quantize
    from elutq_cli.pipeline.recipe import Plan, Recipe
    from elutq_cli.pipeline.run.forecast import Forecast
    from elutq_cli.pipeline.stages.tune.budget import end_to_end_products
    from elutq_formats.open_source import open_source
    from elutq_native import default_threads

    options: dict[str, Any] = {"method": arguments.method}
    if arguments.calibration is not None:
        options |= {"num_samples": arguments.num_samples, "sequence_length": arguments.sequence_length}
    if arguments.tune:
        options["tune"] = tuple(arguments.tune.split(","))
    recipe = Recipe(
        bits=arguments.bits,
        group_size=arguments.group_size,
        embedding_bits=arguments.embedding_bits,
        output_bits=arguments.output_bits,
        **options,
    )
    with open_source(arguments.checkpoint) as checkpoint:
        config = checkpoint.config
    slice_blocks = config.num_hidden_layers
    blocks = arguments.blocks or slice_blocks
    watch = Stopwatch(Device() if arguments.device == "cpu" else CudaDevice())
    watch.instrument()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        memory = PeakMemory()
        watch.switch(lambda: None)
        output = Path(folder) / "model.gguf"
        summary = quantize(
            arguments.checkpoint,
            output,
            recipe,
            calibration=arguments.calibration,
            device=arguments.device,
            threads=arguments.threads,
        )
        watch.switch(lambda: None)
        watch.share_writing(output)
        peak = memory.stop()
    threads = (arguments.threads or default_threads()) if arguments.device == "cpu" else None
    whole = end_to_end_products(replace(config, num_hidden_layers=blocks), recipe)
    growth = whole / end_to_end_products(config, recipe)
    total, alone = print_table(watch, slice_blocks, blocks, threads, growth)
    n_tokens = arguments.num_samples * arguments.sequence_length if arguments.calibration else 0
    bound = Forecast.make(
        config, Plan.make(config, recipe), recipe, n_tokens, arguments.threads or default_threads()
    ).memory_bytes
    print(
        f"measured: {summary.seconds:.1f} s for {slice_blocks} blocks on {os.cpu_count()} cores, peak memory "
        f"{peak / 1e9:.2f} GB without mapped files of {bound / 1e9:.2f} foretold, load average {os.getloadavg()[0]:.1f}"
    )
    to_itself = f", {alone / 60:.1f} minutes with {threads} cores to itself" if threads else ""
    print(f"extrapolated to {blocks} blocks: {total / 60:.1f} minutes as busy as now{to_itself}")


if __name__ == "__main__":
    main()
