#!/usr/bin/env python
"""Say whether this machine is ready to train: the same as `densecl doctor`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.main import tool

if __name__ == "__main__":
    sys.exit(tool("doctor"))
