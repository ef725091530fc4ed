#!/usr/bin/env python
"""Pre-train a backbone, or evaluate one linearly, as the config says. The code is in passl_densecl/cli/train."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
