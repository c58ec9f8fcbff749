"""Inner loops of the stages: numpy functions that define what the C code does."""
