"""scripts/estimate_board.py counts the cycles of a kernel's block: its source must fit the kernels as they are."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from estimate_board import compile_block

CROSS, NATIVE = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("gcc")
NO_CROSS = "no AArch64 cross compiler here (Debian: gcc-aarch64-linux-gnu)"
NO_NATIVE = "no GCC for x86-64 here"
IS_X86 = platform.machine() == "x86_64"


@pytest.mark.parametrize(
    ("compiler", "kernel"),
    [
        pytest.param(CROSS, "arm/neon_dotprod.c", marks=pytest.mark.skipif(CROSS is None, reason=NO_CROSS)),
        pytest.param(NATIVE, "x86/avx512.c", marks=pytest.mark.skipif(not (IS_X86 and NATIVE), reason=NO_NATIVE)),
    ],
)
def test_the_block_compiles(compiler, kernel, tmp_path):
    source, command = compile_block(compiler, kernel, 2, 64, tmp_path)
    assembly = tmp_path / "block.s"
    finished = subprocess.run([*command, "-S", "-o", assembly, source], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "one_block:" in assembly.read_text()
