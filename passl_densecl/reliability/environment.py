"""What a run's environment.json says."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle

import passl_densecl
from passl_densecl.distributed import collectives as dist


def environment() -> dict[str, Any]:
    """Versions, device, machine and commit, to understand a run later."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "passl_densecl": passl_densecl.__version__,
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": paddle.get_device(),
        "devices": [paddle.device.cuda.get_device_name()] if paddle.get_device().startswith("gpu") else [],
        "processes": dist.world_size(),
        "cpu_count": os.cpu_count(),
        "commit": commit.stdout.strip() or None,
        "command": sys.argv,
        "working_directory": os.getcwd(),  # which relative paths of config.yaml start from
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
