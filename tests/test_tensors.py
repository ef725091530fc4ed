"""Tensors from arrays."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from passl_densecl.tensors import to_tensor


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 4)])
def test_a_tensor_is_a_copy_of_its_array(dtype, shape):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    tensor = to_tensor(array)
    before = array.copy()
    array[...] = 1
    assert tensor.numpy().dtype == array.dtype
    assert tuple(tensor.shape) == shape
    assert np.array_equal(tensor.numpy(), before)
    assert tensor.stop_gradient


def test_arrays_need_not_be_contiguous():
    array = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert np.array_equal(to_tensor(array).numpy(), array)


def test_no_memory_is_leaked():
    array = np.zeros(3, np.float32)

    def blocks_after(calls: int) -> int:
        for _ in range(calls):
            to_tensor(array)
        gc.collect()
        return sys.getallocatedblocks()

    blocks_after(100)
    before = blocks_after(1)
    assert blocks_after(2_000) - before < 500  # Paddle 3.3.1's own to_tensor leaks 4,000
