"""Units of work on a Ray cluster: needs the extra elutq[ray].

An array that several units are given goes into the object store once, and from there to a node once; what becomes of a
unit whose worker or node dies is Ray's to see to: it runs again, elsewhere.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from elutq_cli.pipeline.compute.crew import Item, Result
from elutq_cli.pipeline.compute.ray_worker import difference, run_as_worker
from elutq_cli.pipeline.compute.shipping import Shelf, pack_unit
from elutq_formats.errors import ElutqError, FailureError

AHEAD = 2
"""Units that wait or work for each worker: one beside the one at work, so that none waits for this process."""

RETRIES = 100
"""Times that a unit runs again when its worker or node has died."""

SPREAD = "SPREAD"
"""Units go to nodes by turns: by default Ray asks this machine's first, and leaves them there when it has not heard yet
that another has become free."""

ANSWER_SECONDS = 10
"""How long a cluster's head may take to answer."""

LOOK_SECONDS, PATIENCE_SECONDS = 10.0, 300.0
"""How often it is looked whether a unit that does not end can; how long none may be at work before the run is ended."""

UNIMPORTED = "failed to import on the worker"
"""What Ray says where a unit's function is not to be had."""


class RayCluster:
    """A cluster's workers, each of so many threads.

    Attributes:
        workers: units that run at the same time.
        threads: of each.
    """

    def __init__(self, address: str | None, threads: int | None) -> None:
        """Join a cluster.

        Args:
            address: HOST:PORT of its head; None: that of RAY_ADDRESS, or the one that this machine belongs to.
            threads: of a unit; None: as many as the smallest node has cores.

        Raises:
            ElutqError: Ray is not installed, the cluster cannot be reached, or no node has so many cores.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise ElutqError("executor ray needs Ray: pip install 'elutq[ray]'") from None
        self._ray: Any = ray
        _knock(address or os.environ.get("RAY_ADDRESS", ""))
        where = address or "of this machine (ray start has not been run here, or RAY_ADDRESS leads elsewhere)"
        try:
            ray.init(address=address or "auto", log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise FailureError(f"cannot join the Ray cluster {where}: {reason}") from error
        nodes = [node for node in ray.nodes() if node["Alive"] and _cores(node) >= 1]
        self.threads = threads or min(map(_cores, nodes), default=1)
        self._nodes = [node for node in nodes if _cores(node) >= self.threads]  # others never run a unit
        self.workers = sum(_cores(node) // self.threads for node in self._nodes)
        if self.workers == 0:
            self.close()
            raise ElutqError(f"no node of the Ray cluster {where} has {self.threads} cores: use fewer (--threads)")
        self._memory = 0
        self._kind: tuple[bytes, str] | None = None
        self._asked: list[tuple[str, str, Any]] = []
        self._idle_since: float | None = None
        self._shelf: Shelf[Any] = Shelf(lambda array: ray.put(array))
        self._run = ray.remote(run_as_worker)

    def wake(self) -> None:
        """Let workers import what units need while this process still reads what they are to have."""
        for _ in range(self.workers):
            self._submit(type, None)

    @property
    def shipped_bytes(self) -> int:
        """What this process has put into the object store."""
        return self._shelf.shipped_bytes

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], at_once: int = 1) -> Iterator[Result]:
        """Run units as workers become free, a few ahead of the results that are asked for.

        Raises:
            ElutqError: a node is other than this machine; or see ``_result``.
        """
        self._check_nodes()
        pending: deque[Any] = deque()
        try:
            for item in items:
                pending.append(self._submit(function, item))
                del item  # its arrays are in the store
                if len(pending) >= AHEAD * self.workers:
                    yield self._result(pending.popleft())
            while pending:
                yield self._result(pending.popleft())
        finally:
            for unit in pending:
                self._ray.cancel(unit, force=False)

    def join(self, describe: Callable[[None], str], unit_bytes: int) -> None:
        """Have Ray run a unit only where so much memory is not taken by others; ask every node what it is.

        They are heard when the first unit is about to run.

        Raises:
            ElutqError: no node has so much memory.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        most = max(int(node["Resources"].get("memory", 0)) for node in self._nodes)
        if unit_bytes > most:
            raise ElutqError(
                f"a unit of this run may take {unit_bytes / 1e9:.1f} GB of memory, and no node of the Ray cluster "
                f"lends more than {most / 1e9:.1f} GB: use larger nodes, or ray start --memory"
            )
        self._memory = unit_bytes
        for node in self._nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            unit = self._submit(describe, None, num_cpus=1, memory=0, scheduling_strategy=there)
            self._asked.append((node["NodeID"], node["NodeManagerAddress"], unit))
        self._kind = pack_unit(describe, None)[0], describe(None)

    def _check_nodes(self) -> None:
        """Hear what the nodes have said that they are, those that have been asked.

        Raises:
            ElutqError: one is other than this machine.
        """
        asked, self._asked = self._asked, []
        for number, name, unit in asked:
            try:
                found = self._result(unit)
            except ElutqError:
                if any(node["Alive"] and node["NodeID"] == number for node in self._ray.nodes()):
                    raise
                continue  # it has died meanwhile
            if self._kind is not None and found != self._kind[1]:
                raise ElutqError(difference(name, found, self._kind[1]))

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()

    def _submit(self, function: Callable[[Item], Result], item: Item, **options: Any) -> Any:  # noqa: ANN401
        text, arrays = pack_unit(function, item)
        stored = [self._shelf.place(array) for array in arrays]
        own = {"num_cpus": self.threads, "memory": self._memory, "max_retries": RETRIES, "scheduling_strategy": SPREAD}
        return self._run.options(**own | options).remote(text, self.threads, self._kind, *stored)

    def _result(self, unit: Any) -> Any:  # noqa: ANN401
        """Wait for a unit.

        Raises:
            ElutqError: as the unit did; or its workers died over and over, or none is left that could run it.
        """
        self._idle_since = None
        try:
            while not self._ray.wait([unit], timeout=LOOK_SECONDS)[0]:
                self._check_alive()
            result, warnings = self._ray.get(unit)
        except self._ray.exceptions.RayTaskError as error:
            if UNIMPORTED in str(error.cause):
                reason = str(error.cause).strip().splitlines()[-1]
                raise ElutqError(f"a worker of the Ray cluster cannot import elutq as it is here: {reason}") from error
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise FailureError(f"the Ray cluster lost a unit of work: {str(error).splitlines()[0]}") from error
        for warning in warnings:
            logging.getLogger(warning.name).handle(warning)
        return result

    def _check_alive(self) -> None:
        """Look whether units are at work, or could be.

        Raises:
            FailureError: for PATIENCE_SECONDS they were not.
        """
        nodes = [node for node in self._ray.nodes() if node["Alive"] and self._fits(node)]
        if nodes and self._ray.available_resources().get("CPU", 0.0) < sum(map(_cores, nodes)):
            self._idle_since = None  # cores are taken, be it by others' units
            return
        now = time.monotonic()
        self._idle_since = now if self._idle_since is None else self._idle_since
        if now - self._idle_since < PATIENCE_SECONDS:
            return
        how_long = f"for {PATIENCE_SECONDS / 60:.0f} minutes"
        if nodes:
            raise FailureError(
                f"the Ray cluster has run no unit of work {how_long}, and its cores are free: see its logs "
                "(/tmp/ray/session_latest/logs on each node), start it again, and then this run: it goes on"
            )
        raise FailureError(
            f"the Ray cluster has had no node with {self.threads} cores and {self._memory / 1e9:.1f} GB of memory "
            f"{how_long}: start some (ray start), and then this run: it goes on"
        )

    def _fits(self, node: dict[str, Any]) -> bool:
        """Whether a node could run a unit."""
        return _cores(node) >= self.threads and node["Resources"].get("memory", 0) >= self._memory


def _knock(address: str) -> None:
    """Look whether anybody answers at HOST:PORT; Ray itself logs for two minutes, and ends the process.

    Raises:
        FailureError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        return  # for Ray to read
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FailureError(f"cannot join the Ray cluster {address}: {reason}") from error


def _cores(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))
