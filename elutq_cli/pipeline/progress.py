"""How a run tells how far it is."""


class Progress:
    """Is told how far a run is, part by part. This one keeps it to itself; a subclass shows it."""

    def begin(self, total: int, unit: str) -> None:
        """Start a part of the run.

        Args:
            total: what the calls of ``advance`` will add up to.
            unit: of what, in the plural.
        """

    def advance(self, amount: int) -> None:
        """So much more of the part is done."""

    def note(self, text: str) -> None:
        """What there is to say beside the amount, in place of what was said before."""
