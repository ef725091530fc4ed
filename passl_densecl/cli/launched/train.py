"""What paddle.distributed.launch starts for `densecl train --devices …`, once per device.

Paddle takes a file, whose folder it puts on sys.path: this one is alone in its folder, so that nothing is shadowed.
"""

import sys

from passl_densecl.cli.launch import attach_output
from passl_densecl.cli.train import main

if __name__ == "__main__":
    attach_output()
    sys.exit(main(prog="densecl train"))
