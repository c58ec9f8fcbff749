"""Threads of the BLAS behind numpy. To be set before numpy is first imported, since they are read only then."""

import os


def configure_blas(threads: int | None) -> None:
    """Choose how many threads numpy's matrix products use, and let them sleep at once when a product is done.

    By default OpenBLAS's threads spin for some 25 ms after each product. The stages alternate between products and
    their own threads, which would get half of each core meanwhile: feedback took 35 % longer.

    Args:
        threads: number of threads; None: BLAS decides (all cores).
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    if threads is not None:
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
