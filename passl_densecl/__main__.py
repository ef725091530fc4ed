"""`python -m passl_densecl`: the same as the command `densecl`."""

import sys

from passl_densecl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
