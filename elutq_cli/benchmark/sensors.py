"""What the system tells of its processor: model, frequency, temperature, energy. None where it tells nothing."""

import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

_SYS = Path("/sys")
_PROC_CPUINFO = Path("/proc/cpuinfo")


def _numbers(paths: Iterable[Path]) -> list[float]:
    """Returns what can be read of files that hold one number each."""
    values = []
    for path in paths:
        try:
            values.append(float(path.read_text()))
        except (OSError, ValueError):
            continue
    return values


def _cpuinfo(*keys: str) -> list[str]:
    try:
        lines = _PROC_CPUINFO.read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() in keys]


def cpu_model() -> str:
    """Returns the processor's name."""
    names = _cpuinfo("model name", "Model", "Hardware")
    return names[0] if names else platform.processor() or platform.machine()


def frequency_mhz() -> float | None:
    """Returns the highest current clock of the cores, in MHz."""
    cores = _SYS / "devices/system/cpu"
    clocks = [kilohertz / 1e3 for kilohertz in _numbers(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    clocks = clocks or [float(value) for value in _cpuinfo("cpu MHz")]
    return max(clocks, default=None)


def temperature_c() -> float | None:
    """Returns the highest temperature of the thermal zones, in degrees Celsius."""
    return max((value / 1e3 for value in _numbers((_SYS / "class/thermal").glob("thermal_zone*/temp"))), default=None)


def energy_joules() -> float | None:
    """Returns the energy the processor packages have used since some moment, in joules (RAPL); it may wrap around."""
    packages = _numbers((_SYS / "class/powercap").glob("intel-rapl:[0-9]/energy_uj"))
    return sum(packages) / 1e6 if packages else None


def peak_rss() -> int:
    """Returns the peak resident memory of this process in bytes, mapped file pages included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
