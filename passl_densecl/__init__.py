"""Dense contrastive pre-training (DenseCL, CVPR 2021) for PaddlePaddle.

The names of `__all__` are the public API. Each is imported on first access, so that importing the package is fast and
needs no Paddle.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passl_densecl.api.inference import FeatureExtractor, ImageClassificationInferencer, inference_model
    from passl_densecl.api.info import ModelInfo
    from passl_densecl.api.models import get_model, list_models
    from passl_densecl.cli.python import pretrain
    from passl_densecl.config import load_config
    from passl_densecl.engine.linear import linear_eval
    from passl_densecl.errors import InputError
    from passl_densecl.weights.convert import convert

__version__ = "0.2.0"
__all__ = [
    "FeatureExtractor",
    "ImageClassificationInferencer",
    "InputError",
    "ModelInfo",
    "convert",
    "get_model",
    "inference_model",
    "linear_eval",
    "list_models",
    "load_config",
    "pretrain",
]

_HOME = {  # public name → the module that defines it
    "FeatureExtractor": "passl_densecl.api.inference",
    "ImageClassificationInferencer": "passl_densecl.api.inference",
    "InputError": "passl_densecl.errors",
    "ModelInfo": "passl_densecl.api.info",
    "convert": "passl_densecl.weights.convert",
    "get_model": "passl_densecl.api.models",
    "inference_model": "passl_densecl.api.inference",
    "linear_eval": "passl_densecl.engine.linear",
    "list_models": "passl_densecl.api.models",
    "load_config": "passl_densecl.config.files",
    "pretrain": "passl_densecl.cli.python",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'passl_densecl' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise ModuleNotFoundError(
            f"passl_densecl.{name} needs PaddlePaddle, which is not installed: pip install 'passl_densecl[cpu]', or "
            "'passl_densecl[gpu]' (the package 'paddle' is another project)",
            name="paddle",
        ) from None
    globals()[name] = value  # later accesses bypass this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _use_fast_matrix_kernels() -> None:
    """Paddle's CPU builds use an Intel MKL whose default on AMD processors is its slowest path.

    Must run before Paddle is imported. A value set by the user stays.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            head = file.read(8192)
    except OSError:
        return
    if "AuthenticAMD" in head and " avx2" in head:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


_use_fast_matrix_kernels()
# Paddle warns of this at import; it concerns building C++ extensions only.
warnings.filterwarnings("ignore", message="No ccache found")
