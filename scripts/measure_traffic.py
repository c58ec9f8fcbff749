"""Measures what a cluster's workers would be sent of a calibrated run, block by block, beside what is foretold.

    python scripts/make_checkpoint.py llama3-8b --blocks 1 -o /tmp/llama3-8b
    python scripts/measure_traffic.py /tmp/llama3-8b --calibration text.txt --num-samples 4 --workers 16

Units run in this process, one after the other; arrays are counted as they would be put into a cluster's object store.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from elutq_cli.pipeline.compute.blas import configure_blas


class Counted:
    """An executor that does here what so many workers would; see ``Executor``."""

    def __init__(self, workers: int, put: Any, pack: Any) -> None:  # noqa: ANN401
        """Count with a shelf's ``put`` what ``pack`` finds in units, and in their results."""
        self.workers, self.threads = workers, 1
        self.returned_bytes = 0
        self._put, self._pack = put, pack

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], at_once: int = 1) -> Iterator[Any]:
        """Run units as their results are asked for."""
        for item in items:
            for array in self._pack(function, item)[1]:
                self._put(array)
            result = function(item)
            self.returned_bytes += sum(array.nbytes for array in self._pack(type, result)[1])
            yield result

    def join(self, describe: Callable[[None], str], unit_bytes: int) -> None:
        """There is only this process."""

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    """Parse the command line, run, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--method", default="correct")
    parser.add_argument("--workers", type=int, default=16)
    given = parser.parse_args()
    configure_blas(1)
    from elutq_cli.pipeline.compute.backend import native_backend
    from elutq_cli.pipeline.compute.shipping import Shelf, pack_unit
    from elutq_cli.pipeline.recipe import Recipe
    from elutq_cli.pipeline.run.calibrated_block import CalibratedBlock
    from elutq_cli.pipeline.run.calibration_text import CalibrationText
    from elutq_cli.pipeline.run.quantize import quantize
    from elutq_cli.pipeline.run.traffic import block_traffic
    from elutq_formats.open_source import open_source

    sizes = {"num_samples": given.num_samples, "sequence_length": given.sequence_length}
    recipe = Recipe(method=given.method, embedding_bits=16, output_bits=16, **sizes)
    shelf, quantize_block = Shelf(lambda array: None), CalibratedBlock.quantize
    executor = Counted(given.workers, shelf.place, pack_unit)
    with native_backend() as own, open_source(given.checkpoint) as source, tempfile.TemporaryDirectory() as folder:
        text = CalibrationText.read([given.calibration], source, recipe)
        held_out = 0 if text.held_out is None else text.held_out.size

        def counted(block: CalibratedBlock) -> None:
            before, begin = (shelf.shipped_bytes, executor.returned_bytes), time.perf_counter()
            quantize_block(block)
            after, seconds = (shelf.shipped_bytes, executor.returned_bytes), time.perf_counter() - begin
            sent, returned = ((now - then) / 1e9 for now, then in zip(after, before, strict=True))
            layer = block.layer
            foretold = block_traffic(source.config, layer, recipe, text.tokens.size, backend.light.workers, held_out)
            print(
                f"block {layer}, {given.workers} workers: sent {sent:.2f} GB, {foretold.sent / 1e9:.2f} foretold; "
                f"returned {returned:.2f}, {foretold.returned / 1e9:.2f} foretold; {seconds:.0f} s",
                flush=True,
            )

        backend = replace(own, executor=executor)
        CalibratedBlock.quantize = counted  # type: ignore[method-assign, assignment]
        quantize(source, Path(folder) / "out.gguf", recipe, text, backend)


if __name__ == "__main__":
    main()
