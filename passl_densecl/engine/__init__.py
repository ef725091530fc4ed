"""Training: the loops, the optimizer, checkpoints and the log of a run."""
