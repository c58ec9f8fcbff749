"""What the units of a run work with."""

from dataclasses import dataclass

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.progress import Progress
from elutq_cli.pipeline.recipe import MatrixPlan, Recipe
from elutq_cli.pipeline.run.spool import Spool
from elutq_cli.pipeline.run.stacks import StackOnItsWay
from elutq_cli.pipeline.run.tensors import Tensors


@dataclass(frozen=True)
class Workbench:
    """What every unit of a run has at hand.

    Attributes:
        tensors: takes those of the checkpoint through the stages.
        recipe: how.
        backend: runs the stages.
        spool: takes what is finished.
        progress: is told of it.
        device: torch's name of where to tune.
    """

    tensors: Tensors
    recipe: Recipe
    backend: Backend
    spool: Spool
    progress: Progress
    device: str

    def open_stack(self, plan: MatrixPlan) -> StackOnItsWay:
        """Return a stack of the checkpoint, nothing of which is quantized yet."""
        return StackOnItsWay(plan, self.tensors, self.spool, self.backend)
