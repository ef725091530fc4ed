#!/usr/bin/env python
"""Pack a folder of images into one LMDB file: the same as `densecl data pack`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.main import tool

if __name__ == "__main__":
    sys.exit(tool("data pack"))
