#!/usr/bin/env python
"""Random weights, MoCo-v2 and DenseCL at one budget. The code is in benchmarks/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from benchmarks.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
