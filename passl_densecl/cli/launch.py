"""Several devices: `paddle.distributed.launch` in a process of its own, whose signals and exit code pass through."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from passl_densecl.errors import InputError, printable
from passl_densecl.text import quantity

_SCRIPT = Path(__file__).parent / "launched" / "train.py"
_OUTPUT_OF = "PASSL_DENSECL_OUTPUT_OF"  # the process whose terminal the first trainer writes to
# Paddle's launcher counts GPUs whatever the trainers use, and fails where there are fewer than processes on the CPU.
_LAUNCH_ON_CPU = """
from paddle.distributed.launch.context import device
device.Device.parse_device = classmethod(lambda cls: cls(device.DeviceType.CPU))
from paddle.distributed.launch.main import launch
launch()
"""
_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@dataclass(frozen=True)
class Devices:
    """Where a run trains: the GPUs of these numbers, or this many processes on the CPU."""

    gpus: tuple[int, ...] = ()
    processes: int = 1

    @property
    def count(self) -> int:
        return len(self.gpus) or self.processes

    @property
    def overrides(self) -> tuple[str, ...]:
        return (f"device={'gpu' if self.gpus else 'cpu'}",)


@dataclass(frozen=True)
class Hosts:
    """Several hosts, this one being number ``rank``; they connect at ``master``, HOST:PORT of the first."""

    count: int = 1
    rank: int = 0
    master: str | None = None


def parse_devices(text: str) -> Devices:
    """'cpu', 'cpu:2', '0', '0,1,2,3', or 'all' GPUs.

    Raises:
        InputError: another text, or GPUs that Paddle does not see.
    """
    found = re.fullmatch(r"cpu(?::([1-9][0-9]{0,2}))?", text)
    if found:
        return Devices(processes=int(found[1] or 1))
    numbers = re.fullmatch(r"(?:gpu:)?([0-9]{1,3}(?:,[0-9]{1,3})*)", text)
    if text != "all" and not numbers:
        raise InputError(f"--devices {printable(text)}: expected numbers of GPUs (0,1,2,3), all, cpu or cpu:N")
    import paddle

    from passl_densecl.distributed.device import gpu_problem

    problem = gpu_problem()
    if problem:
        raise InputError(f"--devices {text}: {problem}, or train on the CPU: --devices cpu:2")
    present = paddle.device.cuda.device_count()
    gpus = tuple(range(present)) if numbers is None else tuple(int(one) for one in numbers[1].split(","))
    if max(gpus) >= present or len(set(gpus)) < len(gpus):
        raise InputError(
            f"--devices {text}: this Paddle sees {quantity(present, 'GPU')}; expected "
            + (f"different numbers from 0 to {present - 1}" if present > 1 else "--devices 0, or cpu:2")
        )
    return Devices(gpus)


def launch(words: Sequence[str], devices: Devices, hosts: Hosts, logs: Path, *, verbose: bool = False) -> int:
    """Train with the options `words` in one process per device; return the exit code of the first that failed, 130
    after Ctrl-C, 143 after SIGTERM.

    The first trainer writes to this process's output; what every trainer and the launcher print is under `logs`.
    """
    direct = Path("/proc/self/fd").is_dir()
    program = [*_launcher(devices, hosts, logs, verbose=verbose), str(_SCRIPT), *words]
    environment = _environment(on_gpus=bool(devices.gpus))
    if direct:
        environment[_OUTPUT_OF] = str(os.getpid())
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: object) -> None:
        received.append(number)
        if process is not None:
            _stop(process.pid, number)

    before = {number: signal.signal(number, forward) for number in _EXIT_CODES}
    # In a session of its own: Ctrl-C on the terminal reaches the trainers once, through the handler above.
    process = subprocess.Popen(
        program, env=environment, start_new_session=True, stdout=subprocess.DEVNULL if direct and not verbose else None
    )
    if received:
        _stop(process.pid, received[0])
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for pattern in (
        "envlog.*",
        "backup_env.*",
    ):  # the launcher's copies of the environment, keys and passwords included
        for path in logs.glob(pattern):
            path.unlink(missing_ok=True)
    for stream in (sys.stdout, sys.stderr):
        if stream.seekable():
            stream.seek(0, os.SEEK_END)  # the trainers have written there
    if code == 2 and [entry.name for entry in logs.parent.iterdir()] == [logs.name]:  # refused: leave no folder
        shutil.rmtree(logs.parent)
        with contextlib.suppress(OSError):
            logs.parent.parent.rmdir()  # when nothing else is in it
    if received:
        return _EXIT_CODES[signal.Signals(received[0])]
    if code not in (0, 2):
        print(f"logs     of every process: {printable(str(logs))}", file=sys.stderr)
    return code if code >= 0 else 128 - code


def _launcher(devices: Devices, hosts: Hosts, logs: Path, *, verbose: bool) -> list[str]:
    """The command that starts Paddle's launcher, but for the script and its options."""
    where = (
        ["--devices", ",".join(map(str, devices.gpus))] if devices.gpus else ["--nproc_per_node", str(devices.count)]
    )
    if hosts.count > 1:
        where += ["--nnodes", str(hosts.count), "--rank", str(hosts.rank), "--master", str(hosts.master)]
    quiet = [] if verbose else ["--log_level", "CRITICAL"]
    launcher = ["-m", "paddle.distributed.launch"] if devices.gpus else ["-c", _LAUNCH_ON_CPU]
    return [sys.executable, *launcher, *where, *quiet, "--log_dir", str(logs)]


def _environment(*, on_gpus: bool) -> dict[str, str]:
    """The variables of the processes: they find this package, and say nothing that is of no use."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    unwanted = ("No ccache found", "You are using GPU version Paddle")  # Paddle is imported before this package
    environment = os.environ | {"PYTHONWARNINGS": ",".join(f"ignore:{start}:UserWarning" for start in unwanted)}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if not on_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # the trainers see no GPU either, and connect with gloo
    return environment


def _stop(launcher: int, number: int) -> None:
    """Send a signal to the trainers: the launcher itself would end them after 30 s, saved or not. Before there are any,
    it gets SIGTERM."""
    trainers: list[int] = []
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="ascii")
        trainers = [int(one) for one in children.split()]
    with contextlib.suppress(ProcessLookupError):
        for trainer in trainers:
            os.kill(trainer, number)
        if not trainers:
            os.kill(launcher, signal.SIGTERM)


def attach_output() -> None:
    """Make the output of this process that of the command that started the launcher, if it is the host's first."""
    parent = os.environ.get(_OUTPUT_OF)
    if parent is None or os.environ.get("PADDLE_LOCAL_RANK", "0") != "0":
        return
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            stream = os.open(f"/proc/{parent}/fd/{number}", os.O_WRONLY | os.O_APPEND)
        except OSError:
            continue  # a socket: what is printed stays in the log
        os.dup2(stream, number)
        os.close(stream)
        # A stream of its own: Python's has noted that its file, a log, has positions, which a pipe has not.
        setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False))
