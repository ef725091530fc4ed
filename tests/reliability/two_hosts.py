"""Two hosts on one machine: two network namespaces and a link between them, which is cut during a training.

`python -m tests.reliability.two_hosts` (make test-two-hosts; needs root and `ip`). Both sides must end with exit code 3
and a message, in bounded time; the run is resumed over the restored link and must equal an undisturbed one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.engine.runs import ROOT, environment, write_config
from tests.reliability.kill import differences
from tests.reliability.pictures import write_pictures
from tests.reliability.trainers import steps_of

HOSTS = [f"densecl{os.getpid()}a", f"densecl{os.getpid()}b"]
ADDRESSES = ["10.213.7.1", "10.213.7.2"]
LINKS = [f"dc{os.getpid() % 100000}a", f"dc{os.getpid() % 100000}b"]
LIMIT = 10.0
SETTINGS = {
    "epochs": 4,
    "batch_size": 8,
    "checkpoint": {"every_epochs": 1, "every_steps": 1, "keep": 2},
    "dist_timeout": LIMIT,
}


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


def connect() -> None:
    ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1])
    for host, link, address in zip(HOSTS, LINKS, ADDRESSES, strict=True):
        ip("netns", "add", host)
        ip("link", "set", link, "netns", host)
        ip("-n", host, "addr", "add", f"{address}/24", "dev", link)
        ip("-n", host, "link", "set", "lo", "up")
        ip("-n", host, "link", "set", link, "up")


def launch(config: Path, port: int) -> list[subprocess.Popen]:
    """`paddle.distributed.launch --nnodes 2` on both hosts, one trainer each."""
    launchers = []
    for number, host in enumerate(HOSTS):
        launcher = f"-m paddle.distributed.launch --nnodes 2 --nproc_per_node 1 --master {ADDRESSES[0]}:{port}"
        launcher += f" --rank {number} --host {ADDRESSES[number]} --log_dir"
        words = ["ip", "netns", "exec", host, sys.executable, *launcher.split()]
        words += [str(config.with_name(f"launch_{number}"))]
        words += ["tools/train.py", "-c", str(config), "--resume", "auto"]
        with open(config.with_name(f"host_{number}"), "a") as out:
            own = environment() | {"GLOO_SOCKET_IFNAME": LINKS[number]}
            launchers.append(
                subprocess.Popen(words, cwd=ROOT, env=own, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            )
    return launchers


def wait_all(launchers: list[subprocess.Popen], since: float, seconds: float) -> list[tuple[int | None, float]]:
    """(exit code, seconds since `since`) of each; None where it did not end in time."""
    ended: dict[int, tuple[int | None, float]] = {}
    while len(ended) < len(launchers) and time.monotonic() - since < seconds:
        for number, launcher in enumerate(launchers):
            if number not in ended and launcher.poll() is not None:
                ended[number] = (launcher.returncode, time.monotonic() - since)
        time.sleep(0.1)
    return [ended.get(number, (None, seconds)) for number in range(len(launchers))]


def messages(config: Path, number: int) -> list[str]:
    log = config.with_name(f"launch_{number}") / "workerlog.0"
    return [line for line in log.read_text(errors="replace").splitlines() if "continue with --resume auto" in line]


def run(scratch: Path) -> list[str]:
    """Returns what went wrong."""
    pictures, configs = write_pictures(scratch / "pictures", 40), {}
    for name in ("whole", "cut"):
        (scratch / name).mkdir()
        configs[name] = write_config(scratch / name, pictures, **SETTINGS)
    whole = wait_all(launch(configs["whole"], 8711), time.monotonic(), 600)
    print(f"undisturbed: exit codes and seconds {whole}", flush=True)

    launchers = launch(configs["cut"], 8712)
    deadline = time.monotonic() + 300
    while steps_of(scratch / "cut" / "run") < 7:
        if time.monotonic() > deadline or any(launcher.poll() is not None for launcher in launchers):
            return ["the run to be cut did not reach step 7", (scratch / "cut" / "host_0").read_text()[-3000:]]
        time.sleep(0.05)
    ip("-n", HOSTS[0], "link", "set", LINKS[0], "down")
    cut = wait_all(launchers, time.monotonic(), 120)
    print(f"link cut after step {steps_of(scratch / 'cut' / 'run')}: exit codes and seconds {cut}", flush=True)
    for number in (0, 1):
        print(f"  host {number}: {messages(configs['cut'], number)}", flush=True)
    found = [f"host {n}: exit code {code}" for n, (code, _) in enumerate(cut) if code != 3]
    found += [f"host {n}: no message" for n in (0, 1) if not messages(configs["cut"], n)]

    ip("-n", HOSTS[0], "link", "set", LINKS[0], "up")
    again = wait_all(launch(configs["cut"], 8713), time.monotonic(), 600)
    print(f"link restored, resumed: exit codes and seconds {again}", flush=True)
    for name, codes in (("undisturbed", whole), ("resumed", again)):
        if [code for code, _ in codes] != [0, 0]:
            found.append(f"{name}: exit codes {codes}")
    return found or differences(scratch / "cut" / "run", scratch / "whole" / "run")


def main() -> int:
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 2
    try:
        connect()
        with tempfile.TemporaryDirectory() as scratch:
            found = run(Path(scratch))
    finally:
        for host in HOSTS:
            listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False)
            for pid in listed.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", host, check=False)
        ip("link", "del", LINKS[0], check=False)
    print("\n".join(found) or "resumed over the restored link: identical", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
