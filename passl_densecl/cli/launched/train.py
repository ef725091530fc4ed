"""What paddle.distributed.launch starts for `densecl train --devices …`, once per device.

Paddle takes a file, whose folder it puts on sys.path: this one is alone in its folder, so that nothing is shadowed.
"""

import os
import sys
import time

from passl_densecl.cli.launch import attach_output
from passl_densecl.cli.train import main

if __name__ == "__main__":
    attach_output()
    code = main(prog="densecl train")
    if code == 2 and os.environ.get("PADDLE_LOCAL_RANK", "0") != "0":
        time.sleep(10)  # the launcher ends all with the first that ends, and only the first trainer is heard
    sys.exit(code)
