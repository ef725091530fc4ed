#!/usr/bin/env python
"""FCOS from pre-trained and random weights on a small COCO set. The code is in benchmarks/demo_detect."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from benchmarks.demo_detect import main

if __name__ == "__main__":
    sys.exit(main())
