"""What a command does before it uses the C runtime, and what a library leaves to the program that imports it."""

import os
import sys
from functools import cache

from elutq_cli.machine.processor import has_vector_kernels


def chosen_kernels() -> str:
    """Return the kernel set that models run with here: the best, unless ELUTQ_ISA names another that there is."""
    from elutq_native import supported_kernels

    names = supported_kernels()
    asked = os.environ.get("ELUTQ_ISA", "")
    return asked if asked in names else names[0]


@cache
def prepare_runtime() -> None:
    """Outlive model files that vanish beneath a call, and warn when only the slowest kernels run unasked; once."""
    # Here because it loads numpy, whose BLAS the commands set up first.
    from elutq_native import supported_kernels, survive_lost_pages

    survive_lost_pages()
    asked = os.environ.get("ELUTQ_ISA")
    if not asked and has_vector_kernels() and supported_kernels()[0] == "scalar":
        print(
            "elutq: only the scalar kernels run here, many times slower than vector ones: this processor (or the "
            "virtual machine) has no AVX2, FMA and F16C, or elutq was built without vector kernels",
            file=sys.stderr,
        )
