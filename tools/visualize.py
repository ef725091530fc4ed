#!/usr/bin/env python
"""Pictures: views, schedules, curves, correspondences, reports: the same as `densecl plot`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.main import tool

if __name__ == "__main__":
    sys.exit(tool("plot"))
