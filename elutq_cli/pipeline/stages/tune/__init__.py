"""Tuning with gradients, after the other stages; needs torch."""
