"""elutq_cli/machine: what Linux, macOS and Windows say, each in the place of the system that the test runs on."""

import ctypes
import errno
import os
import signal
import struct
import sys
import threading
import time
import types
from pathlib import Path, PureWindowsPath

import pytest

from elutq_cli.machine import apple, console, disk, file_lock, keyboard, memory, processor, sensors, windows
from elutq_cli.machine.sensors import Throttling
from elutq_cli.machine.signals import interruptible, leaving_in_order
from elutq_formats import file_system


@pytest.fixture
def system(monkeypatch):
    """Make the modules of the rooms believe that they are on another system."""

    def believe(name, *modules):
        for module in modules:
            monkeypatch.setattr(module, "sys", types.SimpleNamespace(platform=name, stdin=sys.stdin))

    return believe


@pytest.fixture
def sysctl(monkeypatch):
    """The values of macOS's kernel, by name: texts, and numbers of 4 bytes or 8."""
    values = {}

    def call(name, buffer, size, new, new_size):
        value = values.get(name.decode())
        if value is None:
            return -1
        ctypes.memmove(buffer, value, len(value))
        size._obj.value = len(value)
        return 0

    monkeypatch.setattr(apple.ctypes, "CDLL", lambda name: types.SimpleNamespace(sysctlbyname=call))
    return values


def put(root, **files):
    """Write files of a system's, by path with dots for slashes."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Kernel32:
    """Windows' kernel32, with what a machine of 16 GB and a console would say."""

    modes = None

    def __init__(self):
        self.modes = {windows.STDIN: 0x1F7, windows.STDOUT: 0x3}
        self.pages = []
        self.GetStdHandle = lambda number: number + 100
        self.GetCurrentProcess = lambda: 7

    def GlobalMemoryStatusEx(self, status):
        assert status._obj.length == 64  # what Windows insists on
        status._obj.total, status._obj.available = 16 << 30, 5 << 30
        return 1

    def K32GetProcessMemoryInfo(self, process, counters, length):
        assert (process.value, length) == (7, 72)
        counters._obj.peak = 123456789
        return 1

    def GetConsoleMode(self, handle, mode):
        number = handle.value - 100
        if number not in self.modes:
            return 0
        mode._obj.value = self.modes[number]
        return 1

    def SetConsoleMode(self, handle, mode):
        self.modes[handle.value - 100] = mode.value

    def SetConsoleCP(self, number):
        self.pages.append(number)

    SetConsoleOutputCP = SetConsoleCP


@pytest.fixture
def kernel32(monkeypatch):
    kernel = Kernel32()
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    return kernel


def test_macos_tells_its_memory_by_pages_that_can_be_had(system, sysctl):
    system("darwin", memory)
    sysctl["hw.pagesize"] = struct.pack("<q", 16384)
    for name, count in zip(memory._FREE_PAGES, (1000, 200, 30), strict=True):
        sysctl[name] = struct.pack("<i", count)
    assert memory.available_memory(Path("/nowhere")) == 16384 * 1230
    del sysctl["vm.page_purgeable_count"]
    assert memory.available_memory(Path("/nowhere")) == memory.total_memory(Path("/nowhere")) // 2


def test_windows_tells_its_memory_and_the_peak(system, kernel32):
    system("win32", memory)
    assert (memory.total_memory(), memory.available_memory(), memory.peak_memory()) == (16 << 30, 5 << 30, 123456789)


@pytest.mark.parametrize(("name", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_kilobytes_on_linux_and_in_bytes_on_macos(system, monkeypatch, name, unit):
    import resource

    system(name, memory)
    monkeypatch.setattr(resource, "getrusage", lambda whose: types.SimpleNamespace(ru_maxrss=77))
    assert memory.peak_memory() == 77 * unit


def test_linux_tells_all_of_its_memory(tmp_path, system):
    system("linux", memory)
    put(tmp_path, proc__meminfo="MemTotal:  4000 kB\nMemAvailable:  3000 kB\n")
    assert (memory.total_memory(tmp_path), memory.available_memory(tmp_path)) == (4096000, 3072000)


def test_boards_and_processors_have_names(tmp_path, system, sysctl, monkeypatch):
    system("linux", processor)
    put(tmp_path, proc__cpuinfo="processor : 0\nmodel name\t: Some CPU @ 2 GHz\nflags : a b\n")
    assert processor.cpu_model(tmp_path) == "Some CPU @ 2 GHz"
    assert processor.machine_name(tmp_path) is None
    put(tmp_path, sys__class__dmi__id__product_name="To Be Filled By O.E.M.\n")
    assert processor.machine_name(tmp_path) is None
    path = tmp_path / "proc/device-tree/model"
    path.parent.mkdir()
    path.write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert processor.machine_name(tmp_path) == "Raspberry Pi 5 Model B Rev 1.0"
    system("darwin", processor)
    sysctl |= {"machdep.cpu.brand_string": b"Apple M2\0", "hw.model": b"Mac14,2\0"}
    assert (processor.cpu_model(), processor.machine_name()) == ("Apple M2", "Mac14,2")
    system("win32", processor)
    monkeypatch.setattr(windows, "registry_text", lambda key, name: {"SystemProductName": "ThinkPad"}.get(name))
    assert processor.machine_name() == "ThinkPad"
    assert processor.cpu_model()


@pytest.mark.parametrize(
    ("name", "libc", "machine", "shown"),
    [
        ("linux", "glibc", "x86_64", "linux-glibc-x86_64"),
        ("linux", "", "aarch64", "linux-musl-aarch64"),
        ("linux", "libc", "x86_64", "linux-musl-x86_64"),
        ("darwin", "", "arm64", "macos-arm64"),
        ("win32", "", "AMD64", "windows-amd64"),
    ],
)
def test_the_platform_has_one_name(system, monkeypatch, name, libc, machine, shown):
    system(name, processor)
    monkeypatch.setattr(processor.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert processor.platform_name() == shown
    assert processor.has_vector_kernels()


def test_linux_tells_frequency_temperature_and_energy(tmp_path):
    put(
        tmp_path,
        sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq="2400000\n",
        sys__devices__system__cpu__cpu1__cpufreq__scaling_cur_freq="1500000\n",
        sys__class__thermal__thermal_zone0__temp="51234\n",
        sys__class__thermal__thermal_zone1__temp="not a number\n",
    )
    put(tmp_path, **{"sys__class__powercap__intel-rapl:0__energy_uj": "2500000\n"})
    assert sensors.frequency_mhz(tmp_path) == 2400
    assert sensors.temperature_c(tmp_path) == 51.234
    assert sensors.energy_joules(tmp_path) == 2.5
    assert sensors.temperature_c(tmp_path / "nowhere") is None


def test_a_processor_that_counts_how_often_it_is_slowed_down_is_compared_with_before(tmp_path):
    count = "sys__devices__system__cpu__cpu0__thermal_throttle__core_throttle_count"
    put(tmp_path, **{count: "7\n"})
    before = Throttling.read(tmp_path)
    assert Throttling.read(tmp_path).since(before) is False
    put(tmp_path, **{count: "8\n"})
    assert Throttling.read(tmp_path).since(before) is True
    assert Throttling.read(tmp_path / "nowhere").since(Throttling.read(tmp_path / "nowhere")) is None


RASPBERRIES = [f"sys__devices__platform__{soc}__{soc}:firmware__get_throttled" for soc in ("soc", "soc@107c000000")]


@pytest.mark.parametrize(
    ("bits", "slow"), [("0", False), ("50000", False), ("1", False), ("2", True), ("4", True), ("8", True)]
)
@pytest.mark.parametrize("file", RASPBERRIES, ids=["4", "5"])
def test_a_raspberry_tells_what_slows_it_down_now(tmp_path, file, bits, slow):
    put(tmp_path, **{file: f"{bits}\n"})
    now = Throttling.read(tmp_path)
    assert now.since(now) is slow


@pytest.mark.parametrize(
    ("before", "after", "slow"),
    [
        ("0", "40000", True),
        ("0", "80000", True),
        ("20000", "60000", True),
        ("0", "10000", False),
        ("60000", "60000", False),
    ],
)
def test_a_raspberry_tells_what_slowed_it_down_in_between(tmp_path, before, after, slow):
    """When one looks it is over: a heat sink takes seconds."""
    put(tmp_path, **{RASPBERRIES[0]: before})
    began = Throttling.read(tmp_path)
    put(tmp_path, **{RASPBERRIES[0]: after})
    assert Throttling.read(tmp_path).since(began) is slow


def test_a_cooling_device_that_holds_the_clock_down_counts_and_a_fan_does_not(tmp_path):
    folder = "sys__class__thermal__cooling_device"
    put(tmp_path, **{f"{folder}0__type": "pwm-fan\n", f"{folder}0__cur_state": "3\n"})
    put(tmp_path, **{f"{folder}1__type": "thermal-cpufreq-0\n", f"{folder}1__cur_state": "0\n"})
    before = Throttling.read(tmp_path)
    assert before.since(before) is False
    put(tmp_path, **{f"{folder}1__cur_state": "2\n"})
    assert Throttling.read(tmp_path).since(before) is True


@pytest.mark.parametrize(("limit", "slow"), [("100", False), ("63", True)])
def test_macos_tells_whether_it_slows_down(system, monkeypatch, limit, slow):
    system("darwin", sensors)
    said = types.SimpleNamespace(stdout=f"Note:\n\tCPU_Speed_Limit \t= {limit}\n")
    monkeypatch.setattr(sensors.subprocess, "run", lambda *command, **options: said)
    assert Throttling.read().now is slow


def test_a_lock_keeps_a_second_process_out_and_goes_with_its_file(tmp_path):
    path = tmp_path / "lock"
    with path.open("ab") as first, path.open("ab") as second:
        file_lock.lock_file(first)
        with pytest.raises(OSError):
            file_lock.lock_file(second)
    with path.open("ab") as third:
        file_lock.lock_file(third)


def test_on_windows_a_byte_beyond_the_file_is_locked(tmp_path, system, monkeypatch):
    system("win32", file_lock)
    locked = []
    fake = types.SimpleNamespace(
        LK_NBLCK=2, locking=lambda number, mode, n: locked.append((os.lseek(number, 0, os.SEEK_CUR), mode, n))
    )
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    with (tmp_path / "lock").open("ab") as file:
        file.write(b"elutq\n")
        file_lock.lock_file(file)
    assert locked == [(1 << 30, 2, 1)]
    assert (tmp_path / "lock").read_bytes() == b"elutq\n"


@pytest.mark.parametrize("name", ["linux", "win32"])
def test_room_is_there_before_it_is_written(tmp_path, system, name):
    system(name, disk)
    with (tmp_path / "room").open("wb+") as file:
        disk.reserve(file, (1 << 20) + 5)
        assert (os.fstat(file.fileno()).st_size, file.tell()) == ((1 << 20) + 5, 0)
        assert os.fstat(file.fileno()).st_blocks * 512 > 1 << 20


def test_room_is_written_where_a_file_system_cannot_set_it_aside(tmp_path, system, monkeypatch):
    system("linux", disk)

    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with (tmp_path / "room").open("wb+") as file:
        disk.reserve(file, 3)
        assert file.read() == bytes(3)


def test_macos_sets_room_aside_by_fcntl(tmp_path, system, monkeypatch):
    import fcntl

    system("darwin", disk)
    asked = []
    monkeypatch.setattr(fcntl, "fcntl", lambda file, number, wanted: asked.append((number, wanted)))
    with (tmp_path / "room").open("wb+") as file:
        disk.reserve(file, 5000)
        assert os.fstat(file.fileno()).st_size == 5000
    # F_PREALLOCATE of F_ALLOCATEALL from F_PEOFPOSMODE, in the 32 bytes of fstore_t
    assert asked == [(42, struct.pack("<IiqqQ", 4, 3, 0, 5000, 0))] and len(asked[0][1]) == 32


def test_on_windows_a_nameless_file_goes_when_it_is_closed(tmp_path, system, monkeypatch):
    system("win32", disk)
    flags = {"O_BINARY": 1 << 24, "O_NOINHERIT": 1 << 25, "O_TEMPORARY": 1 << 26}
    for flag, value in flags.items():
        monkeypatch.setattr(os, flag, value, raising=False)
    asked, really = [], os.open

    def remember(path, wanted):
        asked.append(wanted)
        return really(path, wanted & ~sum(flags.values()))

    monkeypatch.setattr(os, "open", remember)
    with disk.open_nameless(tmp_path / "room") as file:
        file.write(b"x")
    assert asked[0] & sum(flags.values()) == sum(flags.values())


def test_a_windows_console_takes_utf_8_and_colours(system, kernel32, tmp_path):
    system("win32", console)
    with (tmp_path / "out").open("w", encoding="cp1252", newline="") as stream:
        console.prepare_console((stream,))
        stream.write("→ é\n")
    assert (tmp_path / "out").read_bytes() == "→ é\n".encode()
    assert kernel32.pages == [65001, 65001]
    assert kernel32.modes[windows.STDOUT] == 0x7


def test_elsewhere_the_streams_are_what_the_locale_makes_them(tmp_path):
    with (tmp_path / "out").open("w", encoding="cp1252") as stream:
        console.prepare_console((stream,))
        assert stream.encoding == "cp1252"


def test_on_windows_what_is_typed_is_not_shown_meanwhile(system, kernel32):
    system("win32", keyboard)
    keyboard.prepare_keyboard()
    with keyboard.unseen_keyboard():
        assert kernel32.modes[windows.STDIN] == 0x1F3
    assert kernel32.modes[windows.STDIN] == 0x1F7


def test_the_line_editor_of_macos_has_commands_of_its_own(system, monkeypatch):
    system("darwin", keyboard)
    told = []
    editor = types.SimpleNamespace(__doc__="Importing this module enables ... libedit", parse_and_bind=told.append)
    monkeypatch.setitem(sys.modules, "readline", editor)
    keyboard.prepare_keyboard()
    assert told == ["bind ^I rl_complete"]


def test_the_first_ctrl_c_cancels_at_once_and_the_second_ends():
    cancelled = threading.Event()
    with pytest.raises(KeyboardInterrupt), interruptible(cancelled.set):
        signal.raise_signal(signal.SIGINT)
        assert cancelled.wait(10)
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_being_told_to_leave_is_an_exception():
    with pytest.raises(SystemExit) as left, leaving_in_order():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_on_macos_a_file_goes_through_the_drives_cache(tmp_path, system, monkeypatch):
    import fcntl

    system("darwin", file_system)
    asked, synced = [], []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, number: asked.append(number))
    file_system.sync(tmp_path)
    assert (asked, synced) == ([51], [])

    def refuse(descriptor, number):
        raise OSError(errno.ENOTSUP, "a network's drive")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    file_system.sync(tmp_path)
    assert len(synced) == 1


def test_on_windows_files_are_synced_and_folders_are_not_opened(tmp_path, system, monkeypatch):
    system("win32", file_system)
    monkeypatch.setattr(os, "O_BINARY", 0, raising=False)
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file_system.sync(tmp_path)
    assert synced == []
    (tmp_path / "file").touch()
    file_system.sync(tmp_path / "file")
    assert len(synced) == 1
    assert file_system.longest_name(tmp_path) == 255


def test_long_paths_of_windows_take_a_prefix_and_no_other_path_does():
    long = "C:\\" + "\\".join(["folder"] * 40)
    assert file_system._verbatim(long) == "\\\\?\\" + long
    assert file_system._verbatim("\\\\?\\" + long) == "\\\\?\\" + long
    share = "\\\\server\\share\\" + "x" * 200
    assert file_system._verbatim(share) == "\\\\?\\UNC\\server\\share\\" + "x" * 200
    assert file_system._verbatim("C:\\short.gguf") == "C:\\short.gguf"
    assert PureWindowsPath(file_system._verbatim(long)).name == "folder"
    assert file_system.reachable(Path("/tmp") / ("x" * 200)) == Path("/tmp") / ("x" * 200)
