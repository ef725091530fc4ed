"""Training: the loops, the optimiser, checkpoints and the log of a run."""
