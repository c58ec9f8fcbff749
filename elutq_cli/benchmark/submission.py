"""One row of docs/benchmarks.md's table of machines: what somebody measured, made for pasting into an issue."""

from elutq_cli.benchmark.report import Row
from elutq_cli.machine.memory import total_memory
from elutq_cli.machine.processor import cpu_model, machine_name, platform_name
from elutq_cli.machine.sensors import Throttling, temperature_c
from elutq_cli.streams import shown_line
from elutq_cli.version import __version__
from elutq_formats.errors import ElutqError

COLUMNS = (
    ("machine", "---"),
    ("memory, GB", "---:"),
    ("model", "---"),
    ("threads", "---:"),
    ("kernels", "---"),
    ("prompt, tokens/s", "---:"),
    ("tokens/s", "---:"),
    ("roof, tokens/s", "---:"),
    ("°C before, after", "---:"),
    ("throttled", "---"),
    ("elutq", "---"),
)
"""The table's head: the name of each column, and how it is aligned."""


class Watch:
    """What the machine said of itself from the first test to the last."""

    def __init__(self) -> None:
        self._before = Throttling.read()
        self._temperatures = [temperature_c()]
        self._slowed_down: list[bool | None] = []

    def look(self) -> None:
        """Look once more, after a test."""
        self._temperatures.append(temperature_c())
        self._slowed_down.append(Throttling.read().since(self._before))

    @property
    def temperatures(self) -> str:
        """The temperatures before and after; empty where none is told."""
        known = [value for value in (self._temperatures[0], self._temperatures[-1]) if value is not None]
        return ", ".join(f"{value:.0f}" for value in known) if len(known) == 2 else ""

    @property
    def throttled(self) -> str:
        """Whether the processor was slowed down, as far as the system tells."""
        told = [answer for answer in self._slowed_down if answer is not None]
        return ("yes" if any(told) else "no") if told else ""


def check_tests(sizes: dict[str, list[int]], output: str, profile: bool) -> None:
    """Check that what was asked for is a row: rows of others have to be compared with it.

    Args:
        sizes: what each option asks for, by its name.
        output: the form of the output.
        profile: whether operations are timed too.

    Raises:
        ElutqError: it is not.
    """
    for option, values in sizes.items():
        if len(values) > 1:
            raise ElutqError(f"--submit-text is one row: give {option} one number")
    if sizes["-n"] == [0]:
        raise ElutqError("--submit-text tells the speed of decoding: give -n a number above 0")
    for option, usual in (("-d", 0), ("--parallel", 1)):
        if sizes[option] != [usual]:
            raise ElutqError(f"--submit-text is of one text from its start, as all rows are: leave out {option}")
    if output != "md" or profile:
        raise ElutqError("--submit-text prints a row of its own: leave out -o and --profile")


def to_row(rows: list[Row], watch: Watch) -> str:
    """Return the row of a decode test and, where there was one, the prefill test before it.

    Args:
        rows: the fields of each test.
        watch: what the machine said meanwhile.
    """
    decode = rows[-1]
    prompt = _speed(rows[0]) if len(rows) > 1 else ""
    memory = total_memory()
    names = dict.fromkeys(name for name in (machine_name(), cpu_model()) if name)  # once where both are the same
    size = float(str(decode["model_size"])) / 1e9
    cells = (
        f"{', '.join(names)}, {platform_name()}",
        "" if memory is None else f"{memory / 1e9:.1f}",
        f"{decode['model_filename']}, {size:.2f} GB",
        str(decode["n_threads"]),
        str(decode["isa"]),
        prompt,
        _speed(decode),
        f"{float(str(decode['roof_ts'])):.2f}",
        watch.temperatures,
        watch.throttled,
        __version__,
    )
    return f"| {' | '.join(shown_line(cell).replace('|', '/') for cell in cells)} |"


def _speed(row: Row) -> str:
    return f"{float(str(row['avg_ts'])):.2f} ± {float(str(row['stddev_ts'])):.2f} ({row['test']})"
