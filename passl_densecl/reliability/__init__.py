"""What keeps a run alive, out of the loop's sight: its log, checkpoints, lock, signals, and what is found bad."""
