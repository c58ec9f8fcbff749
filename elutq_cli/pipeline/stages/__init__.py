"""Stages: what is done to a block and its matrices. They know of no files, and not which machine computes."""
