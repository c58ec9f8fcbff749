"""Calls of tools: how families of models write them, one notation a file, and what reads them from a reply."""
