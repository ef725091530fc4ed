#!/usr/bin/env python
"""Pre-train a backbone, or evaluate one linearly, as the config says: the same as `densecl train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.main import tool

if __name__ == "__main__":
    sys.exit(tool("train"))
