"""Units of work: run here or elsewhere, in order, with the same results; what they are made of travels."""

import importlib.util
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from elsewhere import Elsewhere, driver_of
from foreign_gguf import describe
from gguf import GGMLQuantizationType as Kinds

from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.executor import Threads
from elutq_cli.pipeline.compute.products import multiply, unit_rows
from elutq_cli.pipeline.compute.shipping import LARGE, pack_unit, run_unit
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages import by_rows
from elutq_cli.pipeline.stages.rotate import RotatedCheckpoint
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError
from elutq_formats.open_source import open_source
from elutq_formats.pytorch_file import PyTorchFile

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
TEXT = "the quick brown fox jumps over a lazy dog " * 20
SMALL = {"bits": 3, "group_size": 32, "num_samples": 6, "sequence_length": 24}


def make(folder, output, recipe, calibrated, executor=None):
    with native_backend(2, rounds=False) as own:
        backend = own if executor is None else driver_of(own, executor)
        with Checkpoint.open(folder) as source:
            file = output.with_name("text.txt")
            file.write_text(TEXT)
            text = CalibrationText.read([file], source, recipe) if calibrated else None
            quantize(source, output, recipe, text, backend)
    return output.read_bytes()


RUNS = {
    "alone": (Recipe(bits=2, group_size=32), False),
    "fit": (Recipe(method="fit", **SMALL), True),
    "correct": (Recipe(method="correct", **SMALL), True),
    "allocate": (Recipe(method="allocate", target_bpw=4.5, **SMALL), True),
    "head chosen": (Recipe(method="allocate", **SMALL), True),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("model", "workers", "threads"),
    [("llama32-tied-head-dim", *of) for of in ((3, 64), (3, 1), (1, 64))] + [("gemma2", 3, 64), ("mixtral", 3, 64)],
)
def test_a_file_is_the_same_wherever_its_units_ran(tmp_path, model, workers, threads, name):
    recipe, calibrated = RUNS[name]
    here = make(GOLDEN / model, tmp_path / "here.gguf", recipe, calibrated)
    with native_backend(1, rounds=False) as other:
        elsewhere = Elsewhere(other, workers, threads)
        assert make(GOLDEN / model, tmp_path / "elsewhere.gguf", recipe, calibrated, elsewhere) == here
    assert elsewhere.n_units > 10


@pytest.mark.parametrize("scale_bits", [8, 16])
def test_rows_of_the_vocabulary_are_units_of_their_own(tmp_path, monkeypatch, scale_bits):
    """By weights alone, embedding and head would each be as long as many blocks; the head at other bits is another."""
    monkeypatch.setattr(by_rows, "ROWS_AT_ONCE", 1)
    recipe, novels = Recipe(scale_bits=scale_bits, output_bits=3), GOLDEN.parent / "novels-6m"
    here = make(novels, tmp_path / "here.gguf", recipe, False)
    with native_backend(1, rounds=False) as other, Checkpoint.open(novels) as checkpoint:
        elsewhere, config = Elsewhere(other), checkpoint.config
        assert make(novels, tmp_path / "elsewhere.gguf", recipe, False, elsewhere) == here
    n_linears = sum(len(config.linear_names(layer)) for layer in range(config.num_hidden_layers))
    n_runs = -(-config.vocab_size // by_rows.SUPERBLOCK_ROWS)
    assert n_runs > 1 and elsewhere.n_units == n_linears + 2 * n_runs


class Ahead(Elsewhere):
    """Has begun all units of a map before it returns a result of one, as a large cluster has; counts those of each."""

    def __init__(self, backend):
        super().__init__(backend)
        self.counts = []

    def map(self, function, items, at_once=1):
        results = list(super().map(function, items, at_once))
        self.counts.append((function.func.__name__, len(results)))
        yield from results


SHARING = {
    "llama32-tied-head-dim": [2, 1, 2, 1] * 2,  # q and k; o; gate and up; down
    "mixtral": [2, 1, *[2] * 4, *[1] * 4],
}


@pytest.mark.parametrize("model", SHARING)
def test_linears_that_share_an_input_are_units_of_one_map(tmp_path, model):
    recipe = Recipe(method="correct", **SMALL, tensor_types=("attn_v=16",))  # v is no unit
    assert counts_of_parts(tmp_path, model, recipe, True) == SHARING[model]


def test_experts_are_units_of_one_map(tmp_path):
    assert counts_of_parts(tmp_path, "mixtral", Recipe(bits=2, group_size=32), False) == [4] * 3


def counts_of_parts(folder, model, recipe, calibrated):
    """Make a file here and where all units of a map begin at once; return how many rows' those were in each map."""
    here = make(GOLDEN / model, folder / "here.gguf", recipe, calibrated)
    with native_backend(1, rounds=False) as other:
        ahead = Ahead(other)
        assert make(GOLDEN / model, folder / "ahead.gguf", recipe, calibrated, ahead) == here
    return [count for name, count in ahead.counts if name == "quantize_part"]


def test_a_unit_carries_an_array_once_and_no_backend():
    with native_backend(1) as here, native_backend(2) as there:
        large = np.ones((LARGE // 4, 1), dtype=np.float32)
        text, arrays = pack_unit(pair_of, (large, [large], here, np))
        assert len(arrays) == 1 and len(text) < 1000
        first, [again], backend, module = run_unit(text, arrays, there)
    assert first is again is arrays[0] and backend is there and module is np


def pair_of(item):
    return item


def sources(tmp_path):
    """A source of each kind that a unit may be given, where what it is made with is installed."""
    llama = GOLDEN / "llama1-mha"
    yield from (llama, GOLDEN / "mixtral", GOLDEN.parent / "quantized" / "awq-gemm")
    for kind in (Kinds.F32, Kinds.F16, Kinds.BF16, Kinds.Q4_0, Kinds.Q5_1):
        yield describe(llama).quantized(kind).write(tmp_path / f"{kind.name}.gguf")
    if importlib.util.find_spec("torch"):
        import torch

        folder = tmp_path / "bin"
        shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        with Checkpoint.open(llama) as found:
            weights = {name: torch.from_numpy(found.load(name)) for name in found.names}
        torch.save(weights, folder / "pytorch_model.bin")
        yield folder


def test_every_source_travels_by_its_path_and_reads_the_same(tmp_path):
    backend = numpy_backend()
    for place in sources(tmp_path):
        with open_source(place) as here:
            text, arrays = pack_unit(pair_of, (here, RotatedCheckpoint(here, 0)))
            assert arrays == [] and len(text) < 20_000, place
            there, rotated = run_unit(text, arrays, backend)
            for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
                np.testing.assert_array_equal(there.load(name), here.load(name))
            assert rotated.config == RotatedCheckpoint(here, 0).config


def test_a_file_of_torch_that_is_another_where_it_arrives_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    place = tmp_path / "weights.bin"
    torch.save({"a": torch.zeros(3)}, place)
    text, arrays = pack_unit(pair_of, PyTorchFile(place))
    os.utime(place, (1, 1))
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        run_unit(text, arrays, numpy_backend())


def test_what_is_no_unit_is_refused_when_it_is_sent():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pack_unit(lambda item: item, 1)


@pytest.mark.parametrize("at_once", [1, 4])
def test_threads_yield_in_order_and_begin_nothing_that_nobody_asks_for(at_once):
    crew, begun = Crew(3), []

    def unit(number):
        begun.append(number)
        return number * number

    found = Threads(crew).map(unit, iter(range(20)), at_once)
    assert begun == []
    assert [next(found) for _ in range(3)] == [0, 1, 4]
    assert len(begun) <= 4
    found.close()
    assert len(begun) <= 4
    crew.close()


def test_an_error_of_a_unit_is_its_callers():
    crew = Crew(2)
    found = Threads(crew).map(lambda number: 1 // number, [1, 0, 1], 2)
    with pytest.raises(ZeroDivisionError):
        list(found)
    crew.close()


@pytest.mark.parametrize("n_rows", [1, 511, 4096, 14336, 128256])
@pytest.mark.parametrize("workers", [1, 2, 7, 64])
def test_units_of_rows_are_whole_tiles_for_all_workers(n_rows, workers):
    found = unit_rows(n_rows, workers)
    assert [rows.start for rows in found] == [0, *(rows.stop for rows in found[:-1])] and found[-1].stop == n_rows
    assert all(rows.start % 512 == 0 and rows.stop - rows.start <= 8192 for rows in found)
    if workers > 1 and n_rows >= 512 * workers:
        assert len(found) >= workers // 2


def test_a_product_cut_into_units_is_the_same():
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(1300, 700)).astype(np.float32), rng.normal(size=(700, 600)).astype(np.float32)
    with native_backend(2) as backend:
        whole = multiply(left, right, backend)
        parts = [multiply(left[rows], right, backend) for rows in unit_rows(len(left), 3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
