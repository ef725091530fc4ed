"""Speed and memory of this project against baselines; each figure is a ratio of two things timed in the same run."""
