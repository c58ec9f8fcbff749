"""Runs: a checkpoint on its way to a model file, what it will take, and what is kept of it when it is stopped."""
