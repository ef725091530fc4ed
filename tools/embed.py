#!/usr/bin/env python
"""Features of a folder of images as a table: the same as `densecl embed`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.main import tool

if __name__ == "__main__":
    sys.exit(tool("embed"))
