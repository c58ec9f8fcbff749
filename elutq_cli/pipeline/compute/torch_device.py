"""Whether torch is here, with the device that is asked for."""

import os

from elutq_formats.errors import ElutqError


def prepare_torch(device: str, threads: int, needed_for: str) -> None:
    """Check that torch is installed and has this device; let it use so many threads on the processor.

    Args:
        device: torch's name of it: cpu, cuda or cuda:N.
        threads: of products on the processor.
        needed_for: what asks for torch, for messages.

    Raises:
        ElutqError: it is not, or has not.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: its waiting threads spin otherwise
    try:
        import torch
    except ImportError:
        raise ElutqError(f"{needed_for} needs torch: pip install 'elutq[torch]'") from None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise ElutqError(f"torch has no device {device} here: use cpu, cuda or cuda:N") from None
    torch.set_num_threads(threads)
