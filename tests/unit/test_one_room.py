"""What the operating system is, is asked in one room on each side: elutq_cli/machine, and elutq_formats/file_system."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("elutq", "elutq_cli", "formats/elutq_formats", "native/elutq_native")
ROOMS = ("elutq_cli/machine/", "formats/elutq_formats/file_system.py")

MODULES = {"_winapi", "ctypes", "fcntl", "grp", "mmap", "msvcrt", "nt", "platform", "posix", "psutil", "pty", "pwd"}
MODULES |= {"readline", "resource", "select", "signal", "syslog", "termios", "tty", "winreg"}
"""Modules that some systems do not have, or that tell which system it is."""

OF_OS = ("sched_", "posix_", "fork", "spawn", "exec", "pread", "pwrite", "getrusage", "statvfs", "fstatvfs", "sysconf")
OF_OS += ("pathconf", "fpathconf", "uname", "getuid", "geteuid", "nice", "mkfifo", "getloadavg", "cpu_count", "fsync")
OF_OS += ("fdatasync", "set_blocking", "kill", "O_BINARY", "name", "startfile", "process_cpu_count", "register_at_fork")
OTHERS = {("sys", "platform"), ("sys", "getwindowsversion"), ("shutil", "disk_usage")}
FOLDERS = ("/proc", "/sys/", "/dev/")


def asked(source):
    """What a source asks the operating system for, by name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = node.module.partition(".")[0]
            found += [node.module] if module in MODULES else []
            found += [f"{module}.{alias.name}" for alias in node.names if is_of_system(module, alias.name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] if is_of_system(node.value.id, node.attr) else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(FOLDERS):
            found.append(node.value)
    return found


def is_of_system(module, name):
    return (module == "os" and name.startswith(OF_OS)) or (module, name) in OTHERS


def test_nothing_else_asks_what_system_it_is():
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if not place.startswith(ROOMS) and (names := asked(path.read_text("utf-8"))):
                found[place] = names
    assert found == {}


def test_what_asks_is_found():
    source = (
        "import os, fcntl\nfrom sys import platform\nimport os.path\nfrom signal import SIGTERM\n"
        "os.posix_fallocate(0, 0, 1)\nopen('/proc/cpuinfo')\nos.fspath('x')\nif os.name == 'nt': pass\n"
    )
    assert sorted(asked(source)) == [
        "/proc/cpuinfo",
        "fcntl",
        "os.name",
        "os.posix_fallocate",
        "signal",
        "sys.platform",
    ]
    assert asked("import os, sys\nos.environ, sys.stdin, os.path.join('/home', 'x')") == []


def test_the_rooms_are_there_and_ask():
    for room in ROOMS:
        sources = [ROOT / room] if room.endswith(".py") else sorted((ROOT / room).glob("*.py"))
        assert any(asked(path.read_text("utf-8")) for path in sources), f"{room} asks nothing"
