"""Several processes, one batch: collectives, the process group, and who is still there."""
