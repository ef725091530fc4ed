"""Weights are data: reading, writing, naming, extracting and loading them, without running anything from a file."""
