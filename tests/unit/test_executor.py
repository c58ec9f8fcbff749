"""Units of work: run here or elsewhere, in order, with the same results; what they are made of travels."""

import importlib.util
import json
import os
import pickle
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from elsewhere import Elsewhere, driver_of
from foreign_gguf import describe
from gguf import GGMLQuantizationType as Kinds
from typer.testing import CliRunner

from elutq_cli.api import quantize as quantize_model
from elutq_cli.app import app
from elutq_cli.pipeline.compute import backend as backend_module
from elutq_cli.pipeline.compute import ray_cluster
from elutq_cli.pipeline.compute.backend import make_backend, native_backend, numpy_backend
from elutq_cli.pipeline.compute.crew import Crew
from elutq_cli.pipeline.compute.executor import Threads
from elutq_cli.pipeline.compute.products import multiply, unit_rows
from elutq_cli.pipeline.compute.ray_cluster import RayCluster
from elutq_cli.pipeline.compute.ray_worker import run_as_worker
from elutq_cli.pipeline.compute.shipping import LARGE, pack_unit, run_unit
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.preparation import prepare
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.stages.feedback import inverse_factor
from elutq_cli.pipeline.stages.rotate import RotatedCheckpoint
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import CheckpointError, ElutqError
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


class Ahead(Elsewhere):
    """Has begun all units of a map before it returns a result of one, as a large cluster has; counts those of each."""

    def __init__(self, backend):
        super().__init__(backend)
        self.counts = []

    def map(self, function, items, at_once=1):
        results = list(super().map(function, items, at_once))
        self.counts.append((function.func.__name__, len(results)))
        yield from results


@pytest.mark.parametrize(
    ("model", "counts"),
    [("llama32-tied-head-dim", [2, 1, 2, 1] * 2), ("mixtral", [2, 1, *[2] * 4, *[1] * 4])],
)
def test_linears_that_share_an_input_are_units_of_one_map(tmp_path, model, counts):
    recipe = Recipe(method="correct", **SMALL, tensor_types=("attn_v=16",))  # no unit, but for q and k
    here = make(GOLDEN / model, tmp_path / "here.gguf", recipe, True)
    with native_backend(1, rounds=False) as other:
        ahead = Ahead(other)
        assert make(GOLDEN / model, tmp_path / "ahead.gguf", recipe, True, ahead) == here
    assert [count for name, count in ahead.counts if name == "quantize_part"] == counts


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


@pytest.mark.parametrize(
    ("executor", "device", "message"),
    [
        ("dask", "cpu", "executor dask is not known: choose threads, ray or ray:ADDRESS"),
        ("threads:4", "cpu", "executor threads:4 is not known"),
        ("ray", "cuda", "--executor ray computes on processors: leave out --device cuda"),
    ],
)
def test_an_executor_that_cannot_be_is_refused(executor, device, message):
    with pytest.raises(ElutqError, match=message):
        make_backend(device, 1, executor)


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ElutqError, match=r"^--executor ray needs Ray: pip install 'elutq\[ray\]'$"):
        quantize_model(GOLDEN / "llama1-mha", tmp_path / "out.gguf", executor="ray")
    assert list(tmp_path.iterdir()) == []


PLAN = ["quantize", str(GOLDEN / "llama1-mha"), "--group-size", "32", "--dry-run", "--threads", "1"]


def planned(*options):
    found = CliRunner().invoke(app, [*PLAN, *options], catch_exceptions=False)
    return json.loads(found.stdout) if "--json" in options else found.stdout


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_plan_without_a_cluster_is_of_several_numbers_of_workers(tmp_path, monkeypatch, calibrated):
    monkeypatch.setitem(sys.modules, "ray", None)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    sizes = ["--calibration", str(text), "--num-samples", "6", "--sequence-length", "24"] if calibrated else []
    plan = planned("--executor", "ray", "--json", *sizes)
    assert [share["workers"] for share in plan["workers"]] == [1, 4, 16, 64]
    one, four, sixteen, many = (share["seconds"] for share in plan["workers"])
    assert one == plan["seconds"]
    if calibrated:
        assert one > four >= sixteen >= many > 0
        assert all(0 < share["store_bytes"] < share["sent_bytes"] for share in plan["workers"])
        assert planned("--json", *sizes)["scratch_bytes"] < plan["scratch_bytes"]
    else:
        assert one > 3 * four > 0 and many <= sixteen
        assert {(share["sent_bytes"], share["store_bytes"]) for share in plan["workers"]} == {(0, 0)}
    printed = planned("--executor", "ray", *sizes)
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == ["1", "4", "16", "64"]
    assert "workers" not in planned("--json", *sizes)


class Ray:
    """As much of Ray as joining a cluster asks for."""

    def __init__(self, *nodes):
        self.shut_down, self.submitted = False, []
        self._nodes = [
            {"Alive": alive, "NodeID": str(number), "NodeManagerAddress": f"node-{number}"}
            | {"Resources": {"CPU": float(cores), "memory": float(memory)}}
            for number, (cores, memory, alive) in enumerate(nodes)
        ]

    def init(self, **options):
        pass

    def nodes(self):
        return self._nodes

    def remote(self, function):
        def submit(*arguments):
            self.submitted.append(arguments)

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=submit))

    def shutdown(self):
        self.shut_down = True


@pytest.fixture
def cluster(monkeypatch):
    strategies = ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = object

    def join(*nodes, threads=None):
        monkeypatch.setitem(sys.modules, "ray", Ray(*nodes))
        monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
        with socket.create_server(("127.0.0.1", 0)) as head:
            return RayCluster(f"127.0.0.1:{head.getsockname()[1]}", threads)

    return join


def test_workers_are_those_of_nodes_with_enough_cores(cluster):
    nodes = (16, 1e9, True), (4, 1e9, True), (35, 1e9, True), (64, 1e9, False), (0, 1e9, True)
    found = {threads: cluster(*nodes, threads=threads).workers for threads in (16, 4, None)}
    assert found == {16: 3, 4: 13, None: 13}
    with pytest.raises(
        ElutqError, match=r"^no node of the Ray cluster 127\.0\.0\.1:\d+ has 36 cores: use a smaller --threads$"
    ):
        cluster(*nodes, threads=36)
    assert sys.modules["ray"].shut_down


def test_what_stays_here_has_all_cores_and_a_unit_those_it_is_given(cluster, monkeypatch):
    cluster((16, 1e9, True))  # whose Ray answers from now on
    monkeypatch.setattr(backend_module, "default_threads", lambda: 3)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"ray:127.0.0.1:{head.getsockname()[1]}"
        for threads, of_unit, most in ((1, 1, 3), (8, 8, 8), (None, 16, 16)):
            with make_backend("cpu", threads, address) as backend, Checkpoint.open(GOLDEN / "llama1-mha") as source:
                assert (backend.crew.threads, backend.executor.threads) == (3, of_unit)
                assert len(sys.modules["ray"].submitted) == backend.executor.workers  # who import elutq meanwhile
                sys.modules["ray"].submitted.clear()
                recipe = Recipe(bits=2, group_size=32)
                of_both = prepare(source, None, recipe, None, backend, None, "cpu").forecast.memory_bytes
                of_most = prepare(source, None, recipe, None, backend, None, "cpu", threads=most).forecast.memory_bytes
                assert of_both == of_most


def test_a_plan_is_of_the_workers_that_a_cluster_has(cluster):
    cluster((16, 1e9, True), (35, 1e9, True))  # whose Ray answers from now on
    with socket.create_server(("127.0.0.1", 0)) as head:
        plan = planned("--executor", f"ray:127.0.0.1:{head.getsockname()[1]}", "--json")
    assert [share["workers"] for share in plan["workers"]] == [51]
    assert sys.modules["ray"].shut_down


def test_memory_of_a_node_that_has_too_few_cores_is_no_units(cluster):
    """No unit would ever begin: Ray waits for a node that has both."""
    joined = cluster((16, 8e9, True), (4, 64e9, True), threads=16)
    with pytest.raises(ElutqError, match=r"may take 32\.0 GB of memory, and no node .* lends more than 8\.0 GB"):
        joined.join(lambda _: "", 32_000_000_000)


class StuckRay(Ray):
    """Takes units, and ends none of them."""

    class exceptions:
        RayError = RayTaskError = KeyError

    def __init__(self, *nodes, free):
        super().__init__(*nodes)
        self.n_looks, self.free = 0, free

    def put(self, array):
        return array

    def wait(self, units, timeout):
        return [], units

    def cancel(self, unit, force):
        pass

    def available_resources(self):
        self.n_looks += 1
        return {"CPU": self.free[min(self.n_looks, len(self.free)) - 1]}


@pytest.mark.parametrize(
    ("nodes", "free", "message", "n_looks"),
    [
        (
            [(4, 1e9, True)],
            [4.0],
            r"^the Ray cluster has run no unit of work for 5 minutes, and its cores are free: see",
            4,
        ),
        ([(4, 1e9, True)], [4.0, 4.0, 2.0, 4.0], "its cores are free", 7),
        (
            [(2, 1e9, True), (64, 9e9, False)],
            [2.0],
            r"^the .* has had no node with 4 cores and 0\.0 GB of memory for",
            0,
        ),
    ],
    ids=["idle", "idle again", "dead"],
)
def test_a_cluster_that_has_ceased_to_work_ends_the_run_in_a_line(monkeypatch, nodes, free, message, n_looks):
    ticks = iter(range(0, 10000, 100))
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setitem(sys.modules, "ray", Ray((4, 1e9, True)))
    with socket.create_server(("127.0.0.1", 0)) as head:
        joined = RayCluster(f"127.0.0.1:{head.getsockname()[1]}", 4)
    joined._ray = stuck = StuckRay(*nodes, free=free)
    joined._run = ray_task()
    with pytest.raises(ElutqError, match=message):
        list(joined.map(pair_of, [1, 2]))
    assert stuck.n_looks == n_looks


class DyingRay(Ray):
    """Its units say what a node is: another than this machine, or nothing, where it dies before it has answered."""

    class exceptions:
        class RayTaskError(Exception):
            pass

        class RayError(Exception):
            pass

    def put(self, array):
        return array

    def wait(self, units, timeout):
        return units, []

    def get(self, answer):
        if answer is None:
            raise self.exceptions.RayError("it doesn't exist any more")
        return answer, []


@pytest.mark.parametrize(
    ("answers", "alive", "message"),
    [
        (["this", "this"], True, None),
        (["this", None], False, None),
        (["this", None], True, "^the Ray cluster lost a unit of work: it doesn't exist any more$"),
        (
            ["this", "that"],
            True,
            "^node node-1 of the Ray cluster would make another file: it has that, and .* this: use",
        ),
    ],
    ids=["same", "dead", "lost", "other"],
)
def test_nodes_are_asked_what_they_are_and_may_die_before_they_answer(cluster, monkeypatch, answers, alive, message):
    joined = cluster((4, 1e9, True), (4, 1e9, True))
    monkeypatch.setattr(sys.modules["ray.util.scheduling_strategies"], "NodeAffinitySchedulingStrategy", NoPlace)
    joined._ray, given = DyingRay((4, 1e9, True), (4, 1e9, alive)), iter(answers)
    task = SimpleNamespace(remote=lambda *arguments: next(given))
    joined._run = SimpleNamespace(options=lambda **options: task)
    joined.join(this, 0)
    assert joined._kind == (pack_unit(this, None)[0], "this")
    if message is None:
        assert list(joined.map(pair_of, [])) == []
    else:
        with pytest.raises(ElutqError, match=message):
            list(joined.map(pair_of, []))


class NoPlace:
    def __init__(self, number, soft):
        pass


def this(_):
    return "this"


def test_a_worker_that_is_another_refuses_units(monkeypatch):
    """Its node may have joined when the others had been asked."""
    ray = ModuleType("ray")
    ray.util = SimpleNamespace(get_node_ip_address=lambda: "node-9")
    monkeypatch.setitem(sys.modules, "ray", ray)
    text, describe = pack_unit(pair_of, 5)[0], pack_unit(this, None)[0]
    assert run_as_worker(text, 1, (describe, "this")) == run_as_worker(text, 1, None) == (5, [])
    with pytest.raises(
        ElutqError, match=r"^node node-9 of the Ray cluster would make another file: it has this, and .* that"
    ):
        run_as_worker(text, 1, (describe, "that"))


def not_positive_definite(item):
    hessian, backend = item
    return inverse_factor(hessian, 1e-9, backend, "its linear").shape


def test_what_a_unit_warns_of_is_logged_where_it_is_asked_for(cluster, monkeypatch, caplog):
    joined, ray = cluster((1, 1e9, True)), DyingRay()
    hessian = np.ones((300, 300), dtype=np.float32)
    text, arrays = pack_unit(not_positive_definite, (hessian, numpy_backend()))
    answer = pickle.dumps(run_as_worker(text, 1, None, *arrays))
    assert "damping raised" in caplog.text
    caplog.clear()
    joined._ray = SimpleNamespace(wait=ray.wait, get=pickle.loads, exceptions=ray.exceptions)
    assert joined._result(answer) == (300, 300)
    assert {record.getMessage() for record in caplog.records} >= {
        "its linear: its Hessian is not positive definite: damping raised to 1e-08"
    }
    assert all(record.name == "elutq_cli.pipeline.stages.feedback" for record in caplog.records)


def ray_task():
    """A task that can be submitted."""
    task = SimpleNamespace(remote=lambda *arguments: object())
    return SimpleNamespace(options=lambda **options: task)


@pytest.mark.parametrize("of_environment", [False, True])
def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch, of_environment):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
    monkeypatch.setitem(sys.modules, "ray", Ray())
    monkeypatch.setenv("RAY_ADDRESS", address if of_environment else "")
    with pytest.raises(ElutqError, match=f"^cannot join the Ray cluster {address}: Connection refused$"):
        RayCluster(None if of_environment else address, 1)
