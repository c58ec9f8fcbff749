"""What is raised for an option of a text that is out of range."""

from typing import Any

from elutq_formats.errors import ElutqError


class OptionError(ElutqError):
    """An option of a text is out of range.

    Attributes:
        option: the attribute of ``SamplingOptions`` or ``TextOptions``.
        problem: what is wrong with it, to be read after a name.
    """

    def __init__(self, option: str, problem: str, name: str | None = None) -> None:
        """Describe it; ``name`` is what a user of the command line knows it by, where that is another."""
        super().__init__(f"{name or option} {problem}")
        self.option, self.problem, self._name = option, problem, name

    def __reduce__(self) -> tuple[Any, ...]:
        """Come through to another process as it is."""
        return type(self), (self.option, self.problem, self._name)
