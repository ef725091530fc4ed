"""Tensors made of arrays."""

from __future__ import annotations

import numpy as np
import paddle


def to_tensor(array: np.ndarray) -> paddle.Tensor:
    """A copy of an array on the current device, of the same shape and dtype.

    In Paddle 3.3 `paddle.to_tensor` leaks two small Python objects, some 100 bytes, at every call: a gigabyte in a
    million steps that make ten tensors each. This does not.
    """
    tensor = paddle.empty(array.shape, array.dtype)
    tensor.set_value(array)
    return tensor
