"""The NEON kernels and the runtime on AArch64, cross-compiled and run under an emulator (make aarch64)."""

import shutil
import subprocess
from pathlib import Path

import pytest
from make_models import main as make_models

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-gcc")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.mark.skipif(COMPILER is None, reason="no AArch64 cross compiler here (Debian: gcc-aarch64-linux-gnu)")
@pytest.mark.skipif(EMULATOR is None, reason="no AArch64 emulator here (Debian: qemu-user-static)")
def test_every_neon_kernel_and_whole_passes(tmp_path):
    """With and without SDOT: every kernel gives the scalar bits, every model the same logits token by token."""
    make_models(tmp_path / "models")
    command = ["make", "--silent", "--jobs=2", "aarch64", f"CHECKS={tmp_path}", f"CHECK_MODELS={tmp_path / 'models'}"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    print(finished.stdout, finished.stderr)
    assert finished.returncode == 0
    assert finished.stdout.count("0 mismatches") == 6  # neon, scalar; neon-i8mm, neon-dotprod, neon, scalar


def test_make_aarch64_says_what_to_install(tmp_path):
    command = [
        "make",
        "--silent",
        "aarch64",
        f"CHECKS={tmp_path}",
        f"CHECK_MODELS={tmp_path}",
        "AARCH64_CC=no-such-compiler",
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode != 0
    assert "apt-get install gcc-aarch64-linux-gnu" in finished.stderr
