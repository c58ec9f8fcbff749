"""The families of models that are supported: one file each, named after the ``model_type`` of its ``config.json``."""

import pkgutil
from functools import cache
from importlib import import_module
from typing import cast

from elutq_formats.family import Family

MODEL_TYPES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""Of all families."""


@cache
def find_family(model_type: str) -> Family | None:
    """Return a family, or None where it is not supported; no file is read for a name that is none of theirs."""
    if model_type not in MODEL_TYPES:
        return None
    return cast(Family, import_module(f"{__name__}.{model_type}").FAMILY)
