"""The BLAS behind numpy: its threads, and its kernels where it does not find the right ones by itself."""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let products use one thread each inside the block, even where numpy was imported before it could be told."""
    libraries = list(_loaded_openblas())
    before = [threads() for threads, _ in libraries]
    for _, set_threads in libraries:
        set_threads(1)
    try:
        yield
    finally:
        for (_, set_threads), n_threads in zip(libraries, before, strict=True):
            set_threads(n_threads)


def _loaded_openblas() -> Iterator[tuple[Callable[[], int], Callable[[int], None]]]:
    """Yield the functions that get and set the threads of each OpenBLAS in this process; numpy's wheels rename them."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return
    for path in sorted(set(re.findall(r"/.*openblas.*", maps))):
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            if hasattr(library, name.format("set")):
                yield getattr(library, name.format("get")), getattr(library, name.format("set"))
                break


def _is_zen5() -> bool:
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return False
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in processor.splitlines())}
    return fields.get("cpu family") == str(ZEN5) and "avx512f" in fields.get("flags", "").split()
