"""Tuning with gradients, after the other stages: the only part of elutq that needs torch."""

import os

from elutq_formats.errors import ElutqError

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: its waiting threads spin otherwise


def prepare_torch(device: str, threads: int) -> None:
    """Check that torch is installed and has this device; let it use so many threads on the processor.

    Raises:
        ElutqError: it is not, or has not.
    """
    try:
        import torch
    except ImportError:
        raise ElutqError("--tune needs torch: pip install 'elutq[torch]'") from None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise ElutqError(f"torch has no device {device} here: use cpu, cuda or cuda:N") from None
    torch.set_num_threads(threads)
