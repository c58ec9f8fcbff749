"""How many sequences of a calibration text are held out: no stage is fitted to them, and they judge."""

HELD_OUT_EVERY, MOST_HELD_OUT = 8, 32
"""For every eight sequences to calibrate on one is held out, 32 at most."""


def n_held_out(n_sequences: int) -> int:
    """Return how many sequences are held out beside so many to calibrate on, where the text has them."""
    return min(-(-n_sequences // HELD_OUT_EVERY), MOST_HELD_OUT)
