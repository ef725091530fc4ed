#!/usr/bin/env python
"""Convert weights between the names and formats of seven projects. The code is in passl_densecl/cli/convert."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
