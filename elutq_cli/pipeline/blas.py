"""Threads of the BLAS behind numpy. To be set before numpy is first imported, since they are read only then."""

import os


def configure_blas(threads: int | None) -> None:
    """Choose how many threads numpy's matrix products use.

    The pipeline wants one: it runs products on threads of its own, in pieces that do not depend on their number.
    BLAS's own threads wait for each other spinning, which on a busy machine made a run of 4 seconds take a minute.

    Args:
        threads: number of threads; None: BLAS decides (all cores).
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2^4 cycles: threads sleep at once after a product
    if threads is not None:
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
