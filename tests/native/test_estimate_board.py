"""scripts/estimate_board.py counts the cycles of a kernel's block: its source must fit the kernels as they are."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from estimate_board import compile_block

KERNELS = [("aarch64-linux-gnu-gcc", "arm/neon_dotprod.c")]
if platform.machine() == "x86_64":
    KERNELS.append(("gcc", "x86/avx512.c"))


@pytest.mark.parametrize(("compiler", "kernel"), KERNELS)
def test_the_block_compiles(compiler, kernel, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    source, command = compile_block(compiler, kernel, 2, 64, tmp_path)
    assembly = tmp_path / "block.s"
    finished = subprocess.run([*command, "-S", "-o", assembly, source], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "one_block:" in assembly.read_text()
