#!/usr/bin/env python
"""Prepare or check a detector's or segmenter's config for these weights. The code is in passl_densecl/cli/transfer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.transfer import main

if __name__ == "__main__":
    sys.exit(main())
