"""Estimates decode speed on boards that are not at hand, from the cycles that llvm-mca gives the kernels' inner loops.

    apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross llvm-19
    python scripts/estimate_board.py            # the table
    python scripts/estimate_board.py --check    # this machine: predicted cycles beside measured ones

Method. Decoding a token takes every block of every matrix once, so a token takes the longer of two times: the blocks'
cycles over the threads' clocks, and the blocks' bytes over what the memory delivers. Cycles come from the shipped
kernel, compiled by GCC as in the package, with everything in L1; the loops over 8 and 16 cells are unrolled to straight
lines for llvm-mca, and a group of 128 columns (32 cells) of kind free16 is extrapolated from them, since each cell adds
the same. Attention, norms and tables are left out: a few percent of a short context.

Uncertainty. LLVM describes neither the Cortex-A76 and A78 nor Apple's cores after the A7: the Neoverse N1 (an A76 for
servers) stands in for the former, the A7 for the latter, which overstates its cycles. Cycles are taken 30 % up and
down, and the memory as delivering 0.5 to 0.85 of its peak to the CPU's reads; the figure quoted is at 0.65.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from elutq_cli.shapes import named_shape
from elutq_formats.hlq import block_bytes, block_count

ROOT = Path(__file__).parents[1]
GROUP, HEAD_BITS = 128, 4
CYCLES_SPREAD = 0.3
READ_SHARES = (0.5, 0.65, 0.85)  # of the peak bandwidth
BRANCH = re.compile(r"\s+(b\.|cbn?z|tbn?z|j[a-z]+\s)")
PAPER = "ELUTQ, arXiv 2510.19482: LLaMA2-7B, 2 bits, Apple M2, 4 threads: 25 tokens/s"


@dataclass(frozen=True)
class Board:
    """A board: what llvm-mca calls a core like its own, threads, clock, and peak memory bandwidth."""

    name: str
    core: str
    threads: int
    ghz: float
    peak_gb_s: float
    source: str


BOARDS = (
    Board(
        "Raspberry Pi 5",
        "neoverse-n1",
        4,
        2.4,
        17.1,
        "product brief: 4 A76 at 2.4 GHz, LPDDR4X-4267, 32 bits",
    ),
    Board(
        "RK3588, big cores",
        "neoverse-n1",
        4,
        2.4,
        34.1,
        "datasheet: 4 A76 to 2.4 GHz, LPDDR4X-4266, 64 bits",
    ),
    Board("Jetson Orin Nano", "neoverse-n1", 6, 1.7, 102.4, "datasheet (Super): 6 A78AE at 1.7 GHz, 102 GB/s"),
    Board("Jetson AGX Orin", "neoverse-n1", 12, 2.2, 204.8, "datasheet (64 GB): 12 A78AE at 2.2 GHz, 204.8 GB/s"),
    Board(
        "Apple M2", "apple-m1", 4, 3.49, 100.0, "Apple: 4 performance cores, 100 GB/s; 3.49 GHz as measured by others"
    ),
)

# One block of a matrix as gemv meets it, with the requests for lines that come with a block on average (stream.h).
BLOCK = """
#include "hlq_block.h"
#undef ELUTQ_FOR_SHAPE
#define ELUTQ_FOR_SHAPE(...) (void)0; /* not all shapes: one block is enough */
#include "{kernel}"
#define BLOCK_BYTES {block_bytes}
KERNEL __attribute__((noinline, used)) void one_block(const uint8_t *block, const int8_t *entries,
                                                      const uint8_t *multipliers, float scale, float sum, float *f) {{
    for (int i = 0; i < ELUTQ_PAGE_LINES * BLOCK_BYTES / (ELUTQ_PAGE_BYTES / 4); i++)
        __builtin_prefetch(block + ELUTQ_PAGE_BYTES + i * ELUTQ_LINE_BYTES, 0, 2);
    const struct elutq_matrix matrix = {{.bits = {bits}, .group_size = {group}}};
    const struct elutq_block one = elutq_block_of(&matrix, 0, {bits}, block);
    add_block(&one, {group} / 4, entries, multipliers, scale, sum, (struct elutq_asking){{.by_line = false}}, f);
}}
"""
# A loop over eight blocks that stay in L1.
TIMER = """
#include <stdio.h>
#include <time.h>
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
static _Alignas(64) uint8_t blocks[65536];
static _Alignas(64) int8_t entries[1024];
static _Alignas(64) uint8_t multipliers[64];
static float f[256];
int main(void) {
    double best_block = 1, best_cycle = 1;
    for (int round = 0; round < 40; round++) {
        double begin = seconds();
        for (int i = 0; i < 4000; i++)
            for (int tile = 0; tile < 8; tile++)
                one_block(blocks + tile * BLOCK_BYTES, entries, multipliers, 1, 1, f + 32 * tile);
        double middle = seconds();
        unsigned long n = 0;
        for (int i = 0; i < 1000000; i++)
            __asm__ volatile(ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD : "+r"(n)); /* a cycle each */
        double end = seconds();
        best_block = middle - begin < best_block ? middle - begin : best_block;
        best_cycle = end - middle < best_cycle ? end - middle : best_cycle;
    }
    printf("%g\\n", best_block / 32000 / (best_cycle / 1e7));
    return 0;
}
"""


def run(*command: object) -> str:
    """Runs a command and returns its output."""
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def compile_block(compiler: str, kernel: str, bits: int, group: int, folder: Path) -> tuple[Path, list[str]]:
    """Writes the source of a block; returns it and the command that compiles it."""
    source = folder / f"block-{bits}-{group}.c"
    source.write_text(BLOCK.format(kernel=kernel, bits=bits, group=group, block_bytes=block_bytes(bits, group)))
    flags = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno"]
    return source, [compiler, *flags, f"-I{ROOT}/native/include", f"-I{ROOT}/native/src"]


@cache
def predicted_cycles(tools: tuple[str, str], kernel: str, core: str, bits: int) -> float:
    """Cycles of a block of groups of 128 by llvm-mca."""
    compiler, mca = tools
    unroll = ["--param", "max-completely-peeled-insns=100000", "--param", "max-completely-peel-times=64"]
    cycles = {}
    with tempfile.TemporaryDirectory() as name:
        for group in (32, 64):
            source, command = compile_block(compiler, kernel, bits, group, Path(name))
            lines = run(*command, *unroll, "-S", "-o", "-", source).splitlines()
            begin, end = (
                lines.index("one_block:"),
                next(i for i, line in enumerate(lines) if ".size\tone_block" in line),
            )
            body = [line for line in lines[begin + 1 : end] if not line.lstrip().startswith((".", "//", "ret"))]
            assert not any(BRANCH.match(line) for line in body), "a loop is left"
            assembly = source.with_suffix(".s")
            assembly.write_text("\n".join(body) + "\n")
            arm = kernel.startswith("arm")
            target = ["-mtriple=aarch64", "-mattr=+dotprod"] if arm else ["-mtriple=x86_64"]
            report = run(mca, *target, f"-mcpu={core}", "-iterations=200", assembly)
            total = next(line for line in report.splitlines() if line.startswith("Total Cycles:"))
            cycles[group] = int(total.split()[-1]) / 200
    return cycles[64] + (GROUP // 32 - 2) * (cycles[64] - cycles[32])


def measured_cycles(kernel: str, bits: int) -> float:
    """Cycles of a block of groups of 128 on this machine, with everything in L1."""
    with tempfile.TemporaryDirectory() as name:
        source, command = compile_block("gcc", kernel, bits, GROUP, Path(name))
        timer = TIMER.replace("ADD", '"add $1, %0\\n"')
        source.write_text(source.read_text() + timer)
        run(*command, source, "-o", f"{name}/timer", "-lm")
        return float(run(f"{name}/timer"))


def blocks_of(bits: int) -> dict[int, int]:
    """Blocks that decoding a token of LLaMA2-7B reads, by their bits."""
    config = named_shape("llama2-7b")
    linears = [shape for layer in range(config.num_hidden_layers) for shape in config.linear_shapes(layer).values()]
    blocks = {HEAD_BITS: block_count(config.vocab_size, config.hidden_size, GROUP)}
    blocks[bits] = blocks.get(bits, 0) + sum(block_count(*shape, GROUP) for shape in linears)
    return blocks


def estimate(tools: tuple[str, str]) -> None:
    """Prints the table."""
    print(
        "| board | bits | bytes/cycle of a core | compute alone, tokens/s | memory alone | expected | range | bound |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for board in BOARDS:
        cycles = {bits: predicted_cycles(tools, "arm/neon_dotprod.c", board.core, bits) for bits in (2, 3, 4)}
        for bits in (2, 3, 4):
            blocks = blocks_of(bits)
            n_bytes = sum(n * block_bytes(b, GROUP) for b, n in blocks.items())
            n_cycles = sum(n * cycles[b] for b, n in blocks.items())
            compute = board.threads * board.ghz * 1e9 / n_cycles
            low, middle, high = (share * board.peak_gb_s * 1e9 / n_bytes for share in READ_SHARES)
            low, high = min(low, compute / (1 + CYCLES_SPREAD)), min(high, compute / (1 - CYCLES_SPREAD))
            bound = "memory" if middle < compute else "compute"
            per_cycle = block_bytes(bits, GROUP) / cycles[bits]
            speeds = f"{compute:.1f} | {middle:.1f} | {min(middle, compute):.1f} | {low:.1f} - {high:.1f}"
            print(f"| {board.name}, {board.threads} threads | {bits} | {per_cycle:.1f} | {speeds} | {bound} |")
    print(f"\n{PAPER}\n")
    for board in BOARDS:
        print(f"{board.name}: {board.source}")


def check(mca: str) -> None:
    """Prints predicted and measured cycles of this machine's AVX-512 kernel, whose loops unroll to lines too."""
    print("| kernels | bits | llvm-mca, cycles a block | measured | measured / llvm-mca |")
    print("|---|---:|---:|---:|---:|")
    for bits in (2, 3, 4):
        predicted, measured = (
            predicted_cycles(("gcc", mca), "x86/avx512.c", "znver4", bits),
            measured_cycles("x86/avx512.c", bits),
        )
        print(f"| avx512 | {bits} | {predicted:.0f} | {measured:.0f} | {measured / predicted:.2f} |")


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with this machine, an x86-64 with AVX-512 VBMI")
    parser.add_argument("--mca", default="llvm-mca-19", help="llvm-mca of LLVM 19 or later")
    parser.add_argument("--cc", default="aarch64-linux-gnu-gcc", help="GCC for AArch64")
    arguments = parser.parse_args()
    for tool in (arguments.mca, "gcc" if arguments.check else arguments.cc):
        if shutil.which(tool) is None:
            print(f"estimate_board: {tool} is not installed; see --help", file=sys.stderr)
            return 2
    if arguments.check:
        check(arguments.mca)
    else:
        estimate((arguments.cc, arguments.mca))
    return 0


if __name__ == "__main__":
    sys.exit(main())
