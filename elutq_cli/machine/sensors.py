"""What the system tells of its processor while it works: frequency, temperature, energy, whether it was slowed down.

Linux tells all of it to anybody; macOS tells whether it slows the processor down. None where nothing is told.
"""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elutq_cli.machine.processor import processor_fields

ROOT = Path("/")

_CPUS = "sys/devices/system/cpu"
_RASPBERRY = "sys/devices/platform/soc*/soc*:firmware/get_throttled"
"""Where a Raspberry Pi's firmware tells; on the 5 addresses are parts of those names."""
_SINCE_BOOT = 16
"""From this bit on it tells what has been since it started, below what is now."""
_SLOWS = 0b1110
"""Of either half: a capped clock, throttling, a soft limit; too low a voltage does not slow it down by itself."""


def frequency_mhz(root: Path = ROOT) -> float | None:
    """Return the highest current clock of the cores, in MHz."""
    clocks = [kilohertz / 1e3 for kilohertz in _numbers((root / _CPUS).glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    clocks = clocks or [float(value) for value in processor_fields(root, "cpu MHz")]
    return max(clocks, default=None)


def temperature_c(root: Path = ROOT) -> float | None:
    """Return the highest temperature of the thermal zones, in degrees Celsius."""
    zones = (root / "sys/class/thermal").glob("thermal_zone*/temp")
    return max((value / 1e3 for value in _numbers(zones)), default=None)


def energy_joules(root: Path = ROOT) -> float | None:
    """Return the energy the processor packages have used since some moment, in joules (RAPL); it may wrap around."""
    packages = _numbers((root / "sys/class/powercap").glob("intel-rapl:[0-9]/energy_uj"))
    return sum(packages) / 1e6 if packages else None


@dataclass(frozen=True)
class Throttling:
    """What tells, at one moment, whether the system slows its processor down; two moments are compared.

    Attributes:
        events: how often the processor was slowed down since it started (Intel), or in which ways (Raspberry Pi); None
            where that is not told.
        now: whether it is slowed down at this moment; None where that is not told.
    """

    events: int | None
    now: bool | None

    @staticmethod
    def read(root: Path = ROOT) -> "Throttling":
        """Read it.

        Args:
            root: where Linux has /sys.
        """
        if sys.platform == "darwin":
            return Throttling(None, _macos_limit())
        if (bits := _raspberry(root)) is not None:
            return Throttling(bits >> _SINCE_BOOT & _SLOWS, bits & _SLOWS != 0)
        counts = _numbers((root / _CPUS).glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        return Throttling(int(sum(counts)) if counts else None, _held_down(root))

    def since(self, before: "Throttling") -> bool | None:
        """Return whether the processor was slowed down since a moment before; None where that is not told."""
        told = [moment.now for moment in (before, self) if moment.now is not None]
        if self.events is not None and before.events is not None:
            told.append(self.events != before.events)
        return any(told) if told else None


def _raspberry(root: Path) -> int | None:
    """Return what a Raspberry Pi's firmware tells; None where there is none."""
    for path in root.glob(_RASPBERRY):
        try:
            return int(path.read_text("ascii").strip(), 16)
        except (OSError, ValueError):
            continue
    return None


def _held_down(root: Path) -> bool | None:
    """Whether Linux, by its cooling devices, holds the clock down now."""
    states = []
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        try:
            kind = (device / "type").read_text("utf-8", "replace").strip().lower()
        except OSError:
            continue
        if kind.startswith(("cpufreq", "thermal-cpufreq", "processor", "cpu")):
            states += _numbers([device / "cur_state"])
    return any(states) if states else None


def _macos_limit() -> bool | None:
    """Whether macOS holds the processor below its full speed."""
    try:
        said = subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    limits = [line.partition("=")[2].strip() for line in said.splitlines() if "CPU_Speed_Limit" in line]
    return any(limit != "100" for limit in limits) if limits else None


def _numbers(paths: Iterable[Path]) -> list[float]:
    """Return what can be read of files that hold one number each."""
    values = []
    for path in paths:
        try:
            values.append(float(path.read_text("ascii")))
        except (OSError, ValueError):
            continue
    return values
