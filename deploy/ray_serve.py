"""One model on every machine of a Ray cluster, behind one address (docs/deploying.md).

    serve run --app-dir deploy ray_serve:app model=/models/model.gguf replicas=4

Every machine has elutq and the file. What the address answers is what `elutq serve` answers.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

import ray
from prometheus_client import start_http_server
from ray import serve
from starlette.applications import Starlette

import elutq
from elutq_cli.server.endpoint import make_app
from elutq_cli.server.engine import Engine
from elutq_formats.errors import ElutqError

METRICS_PORT = 9464
"""Where Prometheus asks each machine: the one address would answer for any of them."""

SHUTDOWN_SECONDS = 25
"""Seconds that texts have to come to their end when their replica is told to leave."""


@serve.deployment(
    max_replicas_per_node=1,
    graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
    health_check_period_s=5,
    health_check_timeout_s=30,
)
@serve.ingress()
class Replica:
    """The model on one machine."""

    def __init__(self, model: str, parallel: int, api_key: str | None) -> None:
        """Open a model.

        Args:
            model: its file, or ``org/name`` on the hub.
            parallel: texts made at a time.
            api_key: what clients have to present, if anything.
        """
        self._open = ExitStack()
        language_model = self._open.enter_context(elutq.load(model, parallel=parallel))
        language_model.start()
        self._engine = self._open.enter_context(Engine(language_model, max_queue=parallel))
        self._app = make_app(self._engine, language_model.file.name, api_key, hosts=None)
        node = ray.util.get_node_ip_address()
        metrics, _ = start_http_server(METRICS_PORT, node, self._engine.metrics.registry)
        self._open.callback(metrics.shutdown)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Return what answers requests."""
        return self._app

    def __del__(self) -> None:
        """End everything; Ray has waited for the texts under way."""
        self._open.close()


def app(arguments: dict[str, str]) -> serve.Application:
    """Return the application.

    Args:
        arguments: ``model``; ``replicas`` (1), one a machine; ``parallel`` (8), texts that each makes at a time.

    Raises:
        ElutqError: one is unknown, or no number, or there is no model.
    """
    if unknown := arguments.keys() - {"model", "replicas", "parallel"}:
        raise ElutqError(f"{min(unknown)} is not known: give model, replicas or parallel")
    if "model" not in arguments:
        raise ElutqError("say which model: model=FILE, or org/name on the hub")
    replicas, parallel = (
        _count(name, arguments.get(name, usual)) for name, usual in (("replicas", 1), ("parallel", 8))
    )
    options = {"num_replicas": replicas, "max_ongoing_requests": parallel}  # others wait with Ray
    return Replica.options(**options).bind(arguments["model"], parallel, os.environ.get("ELUTQ_API_KEY"))


def _count(name: str, text: str | int) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise ElutqError(f"{name} is {text!r}: give a number from 1")
    return int(text)
