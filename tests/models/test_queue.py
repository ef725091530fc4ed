"""The queue: newest K keys, oldest overwritten first."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from passl_densecl.models import Queue


def keys_of(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype("float32")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_starts_with_random_unit_vectors():
    queue = Queue(64, 8, "global_queue")
    assert queue.keys.shape == [64, 8]
    assert queue.keys.dtype == paddle.float32
    np.testing.assert_allclose(np.linalg.norm(queue.keys.numpy(), axis=1), 1, atol=1e-6)
    similarity = queue.keys.numpy() @ queue.keys.numpy().T - np.eye(64)
    assert abs(similarity.mean()) < 0.05  # the directions are spread out
    assert queue.pointer.numpy().tolist() == [0]


def test_start_depends_on_seed_and_name_only():
    paddle.seed(123)
    first = Queue(16, 4, "global_queue", seed=3).keys.numpy()
    paddle.seed(9)
    np.testing.assert_array_equal(Queue(16, 4, "global_queue", seed=3).keys.numpy(), first)
    assert not np.array_equal(Queue(16, 4, "dense_queue", seed=3).keys.numpy(), first)
    assert not np.array_equal(Queue(16, 4, "global_queue", seed=4).keys.numpy(), first)


def test_wraps_around_when_the_batch_does_not_divide_its_length():
    queue = Queue(7, 3, "global_queue")
    expected, pointer = queue.keys.numpy().copy(), 0
    for step in range(6):
        keys = keys_of(5, 3, seed=step)
        queue.enqueue(paddle.to_tensor(keys))
        for key in keys:  # the definition, one at a time
            expected[pointer % 7] = key
            pointer += 1
        np.testing.assert_array_equal(queue.keys.numpy(), expected)
        assert queue.pointer.numpy().tolist() == [pointer % 7]


def test_only_the_oldest_are_overwritten():
    queue = Queue(8, 3, "global_queue")
    before = queue.keys.numpy().copy()
    keys = keys_of(3, 3, seed=1)
    queue.enqueue(paddle.to_tensor(keys))
    np.testing.assert_array_equal(queue.keys.numpy()[:3], keys)
    np.testing.assert_array_equal(queue.keys.numpy()[3:], before[3:])


def test_takes_at_most_as_many_keys_as_it_holds():
    queue = Queue(6, 3, "global_queue")
    queue.enqueue(paddle.to_tensor(keys_of(2, 3, seed=0)))
    full = keys_of(6, 3, seed=1)
    queue.enqueue(paddle.to_tensor(full))
    np.testing.assert_array_equal(queue.keys.numpy(), np.roll(full, 2, axis=0))
    assert queue.pointer.numpy().tolist() == [2]
    with pytest.raises(ValueError, match=r"a queue of 6 cannot take 7 keys at once"):
        queue.enqueue(paddle.to_tensor(keys_of(7, 3, seed=2)))
    np.testing.assert_array_equal(queue.keys.numpy(), np.roll(full, 2, axis=0))


def test_keys_are_stored_in_float32_without_gradient():
    queue = Queue(4, 3, "global_queue")
    keys = paddle.to_tensor(keys_of(2, 3, seed=5), stop_gradient=False)
    queue.enqueue((keys * 1.0).astype("float16"))
    assert queue.keys.dtype == paddle.float32
    assert queue.keys.stop_gradient
    np.testing.assert_allclose(queue.keys.numpy()[:2], keys.numpy(), atol=1e-3)


def test_is_saved_in_the_state_of_the_model():
    queue = Queue(5, 3, "global_queue")
    queue.enqueue(paddle.to_tensor(keys_of(3, 3, seed=7)))
    state = {name: value.numpy() for name, value in queue.state_dict().items()}
    assert set(state) == {"keys", "pointer"}
    assert not list(queue.parameters())
    np.testing.assert_array_equal(state["keys"], queue.keys.numpy())
    assert state["pointer"].tolist() == [3]
