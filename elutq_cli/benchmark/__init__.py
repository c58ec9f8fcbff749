"""How fast a machine runs a model, and how close that is to what its memory allows."""
