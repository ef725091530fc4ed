"""Dense contrastive pre-training (DenseCL, CVPR 2021) for PaddlePaddle."""

from __future__ import annotations

import os
import warnings

__version__ = "0.1.0"


def _use_fast_matrix_kernels() -> None:
    """Paddle's CPU builds carry an Intel MKL that takes its slowest path on AMD processors unless it is told otherwise.

    Must happen before Paddle is imported. A value that the user has set stays.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            head = file.read(8192)
    except OSError:
        return
    if "AuthenticAMD" in head and " avx2" in head:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


_use_fast_matrix_kernels()
# Paddle says this at import; it concerns building C++ extensions only.
warnings.filterwarnings("ignore", message="No ccache found")
