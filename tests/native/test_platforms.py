"""The operating system has one room in the C code, and compilers one header."""

import re
from pathlib import Path

from elutq_cli.commands.options import MOST_THREADS

NATIVE = Path(__file__).parents[2] / "native"
STANDARD = {"inttypes", "math", "stdarg", "stdatomic", "stdbool", "stddef", "stdint", "stdio", "stdlib", "string"}
"""Of the headers of C11, those that are used and that every platform has: Windows and macOS have no threads.h."""
PROCESSORS = {"arm_neon", "cpuid", "immintrin"}
"""Headers of compilers, for one kind of processor each."""


def sources():
    return [file for folder in ("include", "src") for file in sorted((NATIVE / folder).rglob("*.[ch]"))]


def included(text):
    return set(re.findall(r"^\s*#\s*include\s*<([^>]+)\.h>", text, re.M))


def test_only_the_operating_systems_room_includes_headers_of_a_platform():
    allowed = STANDARD | PROCESSORS
    beyond = {str(file): found for file in sources() if (found := included(file.read_text()) - allowed)}
    assert beyond
    assert {Path(name).parent for name in beyond} == {NATIVE / "src" / "os"}
    everything = set().union(*beyond.values())
    assert {"pthread", "unistd", "sys/mman", "sched"} <= everything  # what the room is for is found


def test_commands_take_as_many_threads_as_the_library():
    (most,) = re.findall(r"#define ELUTQ_MAX_THREADS (\d+)", (NATIVE / "src" / "threads.h").read_text())
    assert int(most) == MOST_THREADS


def without_comments(text):
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)


BEYOND_C11 = re.compile(
    r"__attribute__|__builtin\w*|\b(__asm__|asm)\s*(volatile)?\s*\(|#\s*pragma|_Pragma|__extension__|\b__?typeof|##__VA_ARGS__|\(\{|__int128|__declspec"
)


def test_only_one_header_has_what_c11_has_not():
    beyond = {file.name for file in sources() if BEYOND_C11.search(without_comments(file.read_text()))}
    assert beyond == {"compiler.h"}
