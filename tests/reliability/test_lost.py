"""When a process is killed or stops answering, the others end in time with a message; the run can be resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from passl_densecl.reliability.checkpoint import Checkpoints
from passl_densecl.reliability.restore import read
from tests.engine.runs import ROOT, environment, metrics, write_config
from tests.reliability.trainers import free_ports, output_of, start_trainers, steps_of, wait_for_step

SHAPE = {
    "epochs": 3,
    "batch_size": 8,
    "checkpoint": {"every_epochs": 1, "every_steps": 2, "keep": 2},
    "dist_timeout": 5.0,
}


@pytest.fixture
def ended():
    started = []
    yield started
    for trainer in started:
        trainer.kill()
        trainer.wait()


def test_the_second_is_stopped_and_after_a_resume_the_first_is_killed(tmp_path, photos, ended):
    config = write_config(tmp_path, photos, **SHAPE)
    trainers = start_trainers(config)
    ended += trainers
    wait_for_step(tmp_path / "run", 4, trainers)
    trainers[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert trainers[0].wait(60) == 3
    assert time.monotonic() - began > 3  # the limit is 5 s
    assert "process 1 of 2 (host " in output_of(config, 0)
    assert "has sent no heartbeat for " in output_of(config, 0)
    assert "continue with --resume auto" in output_of(config, 0)
    assert "Traceback" not in output_of(config, 0)
    trainers[1].send_signal(signal.SIGCONT)
    assert trainers[1].wait(60) == 3  # once continued, it learns that the others have ended
    assert "has sent no heartbeat for " in output_of(config, 1)

    trainers = start_trainers(config, "--resume", "auto")
    ended += trainers
    wait_for_step(tmp_path / "run", 7, trainers)
    trainers[0].kill()
    assert trainers[1].wait(20) == 3
    assert "process 0 of 2 (host 127.0.0.1) is gone: killed, or crashed" in output_of(config, 1)
    assert "Traceback" not in output_of(config, 1)

    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, steps_of(tmp_path / "run") + 1))
    newest = Checkpoints(tmp_path / "run", keep=2).newest()
    assert newest is not None
    assert read(newest).step >= 6  # whole


ALONE = """
import paddle
from passl_densecl.distributed import join, process_group
from passl_densecl.reliability.signals import StopRequest
paddle.set_device("cpu")
join.START_WITHIN = 2.0
with StopRequest():
    print("here", flush=True)
    process_group.start()
"""


def alone(rank: int) -> subprocess.Popen:
    """One of two processes; the other one never starts."""
    first, second = free_ports(2)
    own = {
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": "2",
        "PADDLE_MASTER": f"127.0.0.1:{first}",
        "PADDLE_TRAINER_ENDPOINTS": f"127.0.0.1:{first},127.0.0.1:{second}",
        "PADDLE_DISTRI_BACKEND": "gloo",
        "PADDLE_CURRENT_ENDPOINT": f"127.0.0.1:{(first, second)[rank]}",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE],
        cwd=ROOT,
        env=environment() | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def test_a_process_without_the_first_one_gives_up():
    _, errors = alone(1).communicate(timeout=60)
    assert "RunError: process 0 of 2 cannot be reached at 127.0.0.1:" in errors


def test_the_first_process_can_be_stopped_while_it_waits():
    process = alone(0)
    time.sleep(3)  # it is in Paddle's native code by now
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) in (-signal.SIGTERM, 128 + signal.SIGTERM)
