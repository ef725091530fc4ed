"""Batches: the same whatever computes them, in the promised order, and no process left behind."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from passl_densecl import transforms as T
from passl_densecl.data import datasets
from passl_densecl.data import loader as loader_module
from passl_densecl.data.datasets import ImageSet, PairDataset, scan_images
from passl_densecl.data.labeled import EvaluationLoader, LabeledDataset, LabeledLoader
from passl_densecl.data.loader import PairLoader, choose_workers, epoch_order
from passl_densecl.errors import InputError, RunError

RECIPE = (
    T.RandomResizedCrop(size=16),
    T.ColorJitter(),
    T.RandomGrayscale(),
    T.GaussianBlur(),
    T.RandomHorizontalFlip(),
)
STEADY = (T.Resize(size=16), T.CenterCrop(size=16))
COUNT = 22
WHY = "damaged, cut short or no image (6 bytes, first b'brok')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """22 images in two class folders; two of them cannot be decoded."""
    root = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        path = root / ("cat" if number < 9 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng(number)
        cv2.imwrite(str(path), rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8))
    for number in (4, 17):
        (root / ("cat" if number < 9 else "dog") / f"{number:02d}.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def images(folder) -> ImageSet:
    return scan_images(folder, labeled=True)


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test leaves a process or a file in /dev/shm behind."""
    shared_memory = Path("/dev/shm")
    before = {entry.name for entry in shared_memory.iterdir()} if shared_memory.is_dir() else set()
    yield
    assert multiprocessing.active_children() == []
    after = {entry.name for entry in shared_memory.iterdir()} if shared_memory.is_dir() else set()
    # Other programs may use /dev/shm meanwhile; what multiprocessing and Paddle would leave has these names.
    assert not [name for name in after - before if name.startswith(("psm_", "pym-", "paddle", "sem.mp-"))]


def pairs(images, start, stop, **options) -> list[tuple[int, np.ndarray, np.ndarray, list[int], list[tuple[int, str]]]]:
    """The batches as plain values. All are kept, so a batch that a later one overwrites shows."""
    options = {"seed": 3, "batch_size": 6} | options
    kept = list(PairLoader(images, RECIPE, **options).steps(start, stop))
    return [(s, b.query.numpy(), b.key.numpy(), b.indices.tolist(), list(b.bad.items())) for s, b in kept]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and (a[1] == b[1]).all() and (a[2] == b[2]).all() and a[3:] == b[3:]
        for a, b in zip(one, other, strict=True)
    )


# --- what a batch holds --------------------------------------------------------------------------------------------


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(1000, seed=1, epoch=2)
    assert sorted(order) == list(range(1000))
    assert order.dtype == np.int64
    assert (order == epoch_order(1000, seed=1, epoch=2)).all()
    for other in (epoch_order(1000, 1, 3), epoch_order(1000, 2, 2), np.arange(1000)):
        assert (order == other).mean() < 0.02


def test_pair_batches_are_the_data_set_in_epoch_order(images):
    loader = PairLoader(images, RECIPE, seed=3, batch_size=6)
    assert loader.steps_per_epoch == 3
    data = PairDataset(images, RECIPE, seed=3)
    steps = []
    for step, batch in loader.steps(0, 7):
        steps.append(step)
        epoch, number = divmod(step, 3)
        wanted = epoch_order(COUNT, 3, epoch)[number * 6 : number * 6 + 6]
        assert batch.indices.dtype == np.int64
        assert batch.indices.tolist() == wanted.tolist()
        assert list(batch.bad) == [index for index in wanted if index in (4, 17)]
        assert set(batch.bad.values()) <= {WHY}
        for tensor, field in ((batch.query, 0), (batch.key, 1)):
            assert tensor.dtype == paddle.uint8
            assert tuple(tensor.shape) == (6, 16, 16, 3)
            assert (tensor.numpy() == np.stack([data[epoch, index][field] for index in wanted])).all()
    assert steps == list(range(7))


def test_an_epoch_repeats_no_image(images):
    for epoch in range(3):
        seen = [index for batch in pairs(images, 3 * epoch, 3 * epoch + 3) for index in batch[3]]
        assert len(set(seen)) == 18


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_any_number_of_workers_gives_the_same(images, num_workers):
    assert same(pairs(images, 0, 8), pairs(images, 0, 8, num_workers=num_workers))


def test_any_start_gives_the_same(images):
    whole = pairs(images, 0, 11)
    assert same(whole[4:], pairs(images, 4, 11))
    assert same(whole[4:], pairs(images, 4, 11, num_workers=2))
    assert pairs(images, 5, 5) == pairs(images, 5, 5, num_workers=2) == []


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (3, 2), (6, 1)])
def test_ranks_share_a_batch_in_order(images, world_size, num_workers):
    whole = pairs(images, 0, 4)
    parts = [
        pairs(images, 0, 4, rank=rank, world_size=world_size, num_workers=num_workers) for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        for field in (1, 2):
            assert (np.concatenate([part[step][field] for part in parts]) == batch[field]).all()
        for field in (3, 4):
            assert [value for part in parts for value in part[step][field]] == batch[field]


def test_seed_matters(images):
    assert not same(pairs(images, 0, 2), pairs(images, 0, 2, seed=4))


def test_global_random_state_is_left_alone(images):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = pairs(images, 0, 2, num_workers=1)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(99)
    paddle.seed(99)
    assert same(first, pairs(images, 0, 2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labeled_batches(images, num_workers):
    loader = LabeledLoader(images, RECIPE, seed=3, batch_size=6, rank=1, world_size=2, num_workers=num_workers)
    data = LabeledDataset(images, RECIPE, seed=3)
    for step, batch in loader.steps(2, 5):
        epoch, number = divmod(step, 3)
        wanted = epoch_order(COUNT, 3, epoch)[number * 6 + 3 : number * 6 + 6].tolist()
        samples = [data[epoch, index] for index in wanted]
        assert batch.indices.tolist() == wanted
        assert (batch.images.numpy() == np.stack([sample[0] for sample in samples])).all()
        assert batch.labels.dtype == paddle.int64
        assert batch.labels.tolist() == [sample[1] for sample in samples]
        assert list(batch.bad) == [index for index in wanted if index in (4, 17)]
        assert set(batch.bad.values()) <= {WHY}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 5), (1, 22), (1, 100), (3, 4), (4, 6)])
def test_evaluation_covers_every_image_once(images, world_size, batch_size, num_workers):
    seen, labels = [], []
    for rank in range(world_size):
        loader = EvaluationLoader(
            images, STEADY, batch_size=batch_size, rank=rank, world_size=world_size, num_workers=num_workers
        )
        batches = list(loader)
        assert len(loader) == len(batches)
        assert all(len(batch.indices) == batch_size for batch in batches[:-1])
        for batch in batches:
            assert batch.images.shape[0] == batch.labels.shape[0] == len(batch.indices) > 0
            seen += batch.indices.tolist()
            labels += batch.labels.tolist()
    assert seen == list(range(COUNT))
    expected = LabeledDataset(images, STEADY, seed=0)
    assert labels == [expected[0, index][1] for index in range(COUNT)]


def test_evaluation_again_gives_the_same_and_more_ranks_than_images_do_no_harm(images):
    loader = EvaluationLoader(images, STEADY, batch_size=9, num_workers=1)
    first, second = (np.concatenate([batch.images.numpy() for batch in loader]) for _ in range(2))
    assert (first == second).all()
    assert (first[3] == LabeledDataset(images, STEADY, seed=0)[0, 3][0]).all()
    lengths = [len(EvaluationLoader(images, STEADY, batch_size=4, rank=r, world_size=30)) for r in range(30)]
    assert sum(lengths) == COUNT
    idle = EvaluationLoader(images, STEADY, batch_size=4, rank=lengths.index(0), world_size=30, num_workers=1)
    assert list(idle) == []


# --- processes -----------------------------------------------------------------------------------------------------


class Slowly:
    """A transform that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, image, rng):
        time.sleep(self.seconds)
        return T.center_crop(image, 16)


@pytest.mark.parametrize("how", ["break", "close", "error"])
def test_leaving_early_ends_the_workers_at_once(images, how):
    loader = PairLoader(images, (Slowly(0.1),), seed=0, batch_size=6, num_workers=2)
    steps = loader.steps(0, 10**6)
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    began = time.perf_counter()
    if how == "break":
        for _ in steps:
            break
        began = time.perf_counter()
        del steps
    elif how == "close":
        steps.close()
    else:
        with contextlib.suppress(KeyError):
            for _ in steps:
                raise KeyError
        began = time.perf_counter()
        del steps
    assert multiprocessing.active_children() == []
    assert time.perf_counter() - began < 0.5


def test_wait_seconds_is_the_wait_for_data(images):
    slow = PairLoader(images, (Slowly(0.02),), seed=0, batch_size=6)
    for _ in slow.steps(0, 2):
        assert slow.wait_seconds > 0.2  # 6 images × 2 views × 0.02 s
    ahead = PairLoader(images, (Slowly(0.002),), seed=0, batch_size=6, num_workers=2)
    waits = []
    for _ in ahead.steps(0, 5):
        waits.append(ahead.wait_seconds)
        time.sleep(0.25)
    assert np.median(waits[1:]) < 0.05  # computed while the consumer was busy


def test_errors_of_workers_arrive_as_they_are(tmp_path, images):
    for number in range(30):
        cv2.imwrite(str(tmp_path / f"{number:02d}.png"), np.zeros((20, 20, 3), np.uint8))
    found = scan_images(tmp_path)
    bad = int(epoch_order(30, 0, 0)[20])
    for number in datasets._stand_ins(bad, 30):
        (tmp_path / f"{number:02d}.png").write_bytes(b"broken")
    for num_workers in (0, 2):
        with pytest.raises(RunError, match=f"{bad:02d}.png.*19 others in its place"):
            list(PairLoader(found, STEADY, seed=0, batch_size=10, num_workers=num_workers).steps(0, 3))

    def broken(image, rng):
        raise ZeroDivisionError("by nothing") if rng.random() > 0.01 else KeyError

    with pytest.raises((RuntimeError, ZeroDivisionError), match="by nothing"):
        list(PairLoader(images, (broken,), seed=0, batch_size=10, num_workers=1).steps(0, 3))


def test_images_of_different_sizes_are_refused(images):
    for num_workers in (0, 1):
        with pytest.raises(InputError, match=r"different sizes, \d+×\d+ and \d+×\d+ pixels.*CenterCrop"):
            list(PairLoader(images, (), seed=0, batch_size=10, num_workers=num_workers).steps(0, 1))


def test_a_killed_worker_is_reported(images):
    loader = PairLoader(images, (Slowly(0.05),), seed=0, batch_size=6, num_workers=2)
    steps = loader.steps(0, 100)
    next(steps)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"a data worker was killed \(signal 9\).*memory.*fewer data.num_workers than 2"):
        for _ in steps:
            pass


def test_workers_leave_signals_to_the_main_process(images):
    before = pairs(images, 0, 6)
    steps = PairLoader(images, RECIPE, seed=3, batch_size=6, num_workers=2).steps(0, 6)
    got = [next(steps)]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    got += list(steps)
    assert [batch.indices.tolist() for _, batch in got] == [batch[3] for batch in before]


SCRIPT = """
    import multiprocessing, os, signal, sys, time
    from passl_densecl import transforms as T
    from passl_densecl.data.datasets import scan_images
    from passl_densecl.data.loader import PairLoader
    recipe = (T.RandomResizedCrop(size=16),)
    steps = PairLoader(scan_images(sys.argv[1]), recipe, seed=0, batch_size=4, num_workers=2).steps(0, 10**6)
    next(steps)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
"""


def test_a_signal_right_after_the_fork_does_not_end_a_worker(folder):
    """Between the fork and the first line of a worker there is a moment, long on a busy machine."""
    first = "import os, signal; os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
    code = first + textwrap.dedent(SCRIPT).replace("10**6", "4") + "print(len(list(steps)))"
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "3"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ["sys.exit(3)", "raise KeyError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_workers_end_with_the_program(folder, end):
    """At the end of the program, after an error, and when it is killed: within a moment, without a hang."""
    code = textwrap.dedent(SCRIPT) + end
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    began = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    workers = [int(word) for word in began.stdout.split()]
    assert len(workers) == 2, began.stderr
    assert began.returncode == {"s": 3, "r": 1, "o": -9}[end[0]]
    patience = time.monotonic() + 5
    while any(alive(pid) for pid in workers) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_work(images):
    with pytest.raises(InputError, match=r"batch_size 32 is more than the 22 images.*try batch_size 16"):
        PairLoader(images, RECIPE, seed=0, batch_size=32)
    with pytest.raises(InputError, match=r"batch_size 10: 4 processes.*multiple of 4, try 8"):
        LabeledLoader(images, RECIPE, seed=0, batch_size=10, world_size=4)


def test_choose_workers(monkeypatch):
    def machine(cores, memory):
        monkeypatch.setattr(loader_module, "available_cores", lambda: cores)
        monkeypatch.setattr(loader_module, "_available_memory", lambda: memory)

    machine(cores=6, memory=64 * 2**30)
    assert choose_workers("auto", batch_bytes=2**20) == (6, "6 workers (6 cores)")
    assert choose_workers("auto", batch_bytes=2**20, world_size_local=4) == (1, "1 worker (6 cores for 4 processes)")
    assert choose_workers("auto", batch_bytes=2**20, world_size_local=12)[0] == 1
    assert choose_workers(12, batch_bytes=2**20) == (12, "12 workers (as configured, on 6 cores)")
    assert choose_workers(0, batch_bytes=2**40) == (0, "0 workers (as configured)")
    machine(cores=64, memory=64 * 2**30)
    assert choose_workers("auto", batch_bytes=2**20)[0] == 8
    machine(cores=8, memory=2**30)
    count, sentence = choose_workers(8, batch_bytes=64 * 2**20)  # 512 MiB may be used, one worker needs 128
    assert count == 4
    assert "8 would hold 16 batches of 67.1 MB" in sentence
    assert "1,073.7 MB" in sentence
    assert choose_workers(8, batch_bytes=64 * 2**20, world_size_local=2)[0] == 2
    machine(cores=8, memory=None)
    assert choose_workers(8, batch_bytes=2**40)[0] == 8


def test_this_machine_is_understood():
    count, sentence = choose_workers("auto", batch_bytes=1)
    assert 1 <= count <= 8
    assert sentence.startswith(str(count))
    memory = loader_module._available_memory()
    assert memory is None or 2**20 < memory < 2**50


def test_workers_start_once_for_many_epochs(images):
    steps = PairLoader(images, STEADY, seed=0, batch_size=20, num_workers=2).steps(0, 40)
    next(steps)
    first = sorted(child.pid for child in multiprocessing.active_children())
    for _ in islice(steps, 30):
        pass
    assert sorted(child.pid for child in multiprocessing.active_children()) == first
    steps.close()


def test_a_batch_stays_whole_while_it_is_used(images):
    """Workers run ahead, but not into the memory that the consumer still reads."""
    requests = [(0, np.arange(first, first + 3)) for first in range(0, 18, 3)]
    for query, *_ in loader_module.compute(PairDataset(images, RECIPE, seed=0), requests, rows=3, num_workers=1):
        before = query.copy()
        time.sleep(0.1)
        assert (query == before).all()


FAULTS = """
    import resource
    import numpy as np
    from passl_densecl.data.workers import keep_freed_memory

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            images = [np.ones(2_000_000, np.uint8) for _ in range(3)]
            del images
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    before = faults()
    keep_freed_memory()
    faults()
    print(before, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another malloc")
def test_freed_memory_stays():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(FAULTS)], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 5000  # 3 × 488 pages of 4 KiB, twenty times, is 29,000
    assert after < before / 20
