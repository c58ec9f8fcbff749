"""A Ray cluster as an executor: joined, asked, planned for, and when it fails; a Ray of these tests takes its place."""

import json
import pickle
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from elutq_cli.api import quantize as quantize_model
from elutq_cli.app import app
from elutq_cli.pipeline.compute import backend as backend_module
from elutq_cli.pipeline.compute import ray_cluster
from elutq_cli.pipeline.compute.backend import make_backend, numpy_backend
from elutq_cli.pipeline.compute.ray_cluster import RayCluster
from elutq_cli.pipeline.compute.ray_worker import run_as_worker
from elutq_cli.pipeline.compute.shipping import pack_unit
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.run import estimate
from elutq_cli.pipeline.run.preparation import prepare
from elutq_cli.pipeline.stages.feedback import inverse_factor
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError, FailureError

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
TEXT = "the quick brown fox jumps over a lazy dog " * 20


def pair_of(item):
    return item


@pytest.mark.parametrize(
    ("executor", "device", "message"),
    [
        ("dask", "cpu", "executor dask is not known: choose threads, ray or ray:ADDRESS"),
        ("threads:4", "cpu", "executor threads:4 is not known"),
        ("ray", "cuda", "executor ray computes on processors: leave out device cuda"),
    ],
)
def test_an_executor_that_cannot_be_is_refused(executor, device, message):
    with pytest.raises(ElutqError, match=message):
        make_backend(device, 1, executor)


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ElutqError, match=r"^executor ray needs Ray: pip install 'elutq\[ray\]'$"):
        quantize_model(GOLDEN / "llama1-mha", tmp_path / "out.gguf", executor="ray")
    assert list(tmp_path.iterdir()) == []


PLAN = ["quantize", str(GOLDEN / "llama1-mha"), "--group-size", "32", "--dry-run", "--threads", "1"]


def planned(*options):
    found = CliRunner().invoke(app, [*PLAN, *options], catch_exceptions=False)
    return json.loads(found.stdout) if "--json" in options else found.stdout


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_plan_without_a_cluster_is_of_several_numbers_of_workers(tmp_path, monkeypatch, calibrated):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(estimate, "_seconds", lambda run: (run(), 1.0)[1])  # a clock that other jobs do not move
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
        ElutqError, match=r"^no node of the Ray cluster 127\.0\.0\.1:\d+ has 36 cores: use fewer \(--threads\)$"
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
    with pytest.raises(FailureError, match=message):
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
        with pytest.raises(ElutqError, match=message) as caught:
            list(joined.map(pair_of, []))
        assert caught.value.bad_input == ("lost" not in message)


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
    with pytest.raises(FailureError, match=f"^cannot join the Ray cluster {address}: Connection refused$"):
        RayCluster(None if of_environment else address, 1)
