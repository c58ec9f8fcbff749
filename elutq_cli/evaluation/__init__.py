"""How good a model is: texts cut into windows, their tokens scored, and the models that can be measured."""

from elutq_cli.evaluation.score import Evaluation, LogitsModel, WindowLogitsModel, evaluate, evaluate_all, log_softmax
from elutq_cli.evaluation.windows import Windows, split_windows

__all__ = [
    "Evaluation",
    "LogitsModel",
    "WindowLogitsModel",
    "Windows",
    "evaluate",
    "evaluate_all",
    "log_softmax",
    "split_windows",
]
