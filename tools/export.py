#!/usr/bin/env python
"""Write a backbone or classifier for inference: Paddle or ONNX. The code is in passl_densecl/cli/export."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, installed or not

from passl_densecl.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
