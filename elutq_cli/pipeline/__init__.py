"""The quantizer: recipes, and three wings of which each knows only the next: run, stages, compute."""
