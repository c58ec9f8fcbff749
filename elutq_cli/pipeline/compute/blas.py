"""The BLAS behind numpy: its threads, and its kernels where it does not find the right ones by itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import threadpoolctl

from elutq_cli.machine.processor import ROOT, processor_fields

ZEN5 = 26
"""The processor family that OpenBLAS takes for an older one without AVX-512, at half the speed (its issue 6029)."""


def configure_blas(threads: int | None) -> None:
    """Choose how many threads numpy's matrix products use. To be called before numpy is first imported.

    The pipeline wants one: it runs products on threads of its own, in pieces that do not depend on their number.
    BLAS's own threads wait for each other spinning, which on a busy machine made a run of 4 seconds take a minute.

    Args:
        threads: number of threads; None: BLAS decides (all cores).
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2^4 cycles: threads sleep at once after a product
    if _is_zen5():
        os.environ.setdefault("OPENBLAS_CORETYPE", "SKYLAKEX")
    if threads is not None:
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
            os.environ[variable] = str(threads)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let products use one thread each inside the block, even where numpy was imported before it could be told.

    Accelerate, the BLAS of macOS, cannot be told later: there a program that imports numpy before ``elutq`` sets
    VECLIB_MAXIMUM_THREADS=1 itself, or products of several threads get in each other's way.
    """
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def _is_zen5() -> bool:
    family, flags = (*processor_fields(ROOT, "cpu family", "flags"), "", "")[:2]  # of the first processor
    return family == str(ZEN5) and "avx512f" in flags.split()
