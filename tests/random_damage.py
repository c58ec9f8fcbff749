"""How many examples hypothesis makes of random damage."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("ELUTQ_EXAMPLES")


def looking(max_examples):
    """Settings for so many examples, always the same ones; ELUTQ_EXAMPLES: for that many, others each time."""
    return settings(
        max_examples=int(EXAMPLES or max_examples),
        derandomize=EXAMPLES is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
