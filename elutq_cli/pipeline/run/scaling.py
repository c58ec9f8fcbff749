"""What each of several workers does of a run: time, what travels, and the memory of all, before any of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from elutq_cli.pipeline.compute.backend import light_workers
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run.estimate import Work
from elutq_cli.pipeline.run.traffic import branch_traffics, run_traffic
from elutq_formats.config import ModelConfig

COUNTS = 1, 4, 16, 64
"""Workers that a plan is made for where no cluster says how many it has."""


@dataclass(frozen=True)
class Share:
    """A run on a cluster of so many workers, each a node of its own.

    Attributes:
        workers: how many.
        seconds: that it takes, without what travels.
        sent_bytes: what the machine that calls puts into the object store.
        carried_bytes: what travels at most, results included.
        store_bytes: the most that lies in the object store of the machine that calls.
    """

    workers: int
    seconds: float
    sent_bytes: int
    carried_bytes: int
    store_bytes: int


def share_out(
    config: ModelConfig,
    plan: Plan,
    recipe: Recipe,
    n_tokens: int,
    held_out_tokens: int,
    work: Work,
    counts: Iterable[int] = COUNTS,
) -> list[Share]:
    """Plan a run for each of these numbers of workers.

    Args:
        config: of the model.
        plan: what becomes of its matrices.
        recipe: how to quantize.
        n_tokens: to calibrate on; 0 for weights alone.
        held_out_tokens: beside them.
        work: that there is to do.
        counts: numbers of workers.
    """
    recipe, found = recipe.resolved(n_tokens > 0), []
    for workers in counts:
        few = light_workers(workers, work.size)
        whole = run_traffic(config, plan, recipe, n_tokens, few, held_out_tokens)
        store = 0.0
        if n_tokens > 0:
            of_layers = (
                branch_traffics(config, layer, recipe, n_tokens, few, held_out_tokens)
                for layer in range(config.num_hidden_layers)
            )
            store = max(branch.sent for branches in of_layers for branch in branches)
        sizes = map(int, (whole.sent, whole.carried(workers), store))
        found.append(Share(workers, work.seconds(workers), *sizes))
    return found
