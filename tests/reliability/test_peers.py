"""Heartbeats: a dead, silent, slow or finished process is distinguished, and all processes are informed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from passl_densecl.distributed import join, peers
from passl_densecl.distributed.peers import Peers
from passl_densecl.errors import RunError

LIMIT = 0.6


class Group:
    """The first process and `others`, as Peers in this process; `exits` collects forced exit codes."""

    def __init__(self, others: int) -> None:
        self.exits: list[tuple[int, int]] = []
        pairs: dict[int, tuple[socket.socket, socket.socket]] = {}
        for rank in range(1, others + 1):
            with socket.create_server(("127.0.0.1", 0)) as server:
                theirs = socket.create_connection(server.getsockname())
                pairs[rank] = (server.accept()[0], theirs)
        self.sockets = pairs
        self.main = self._peers(0, [(ours, f"process {rank}") for rank, (ours, _) in pairs.items()])
        self.others = {rank: self._peers(rank, [(theirs, "process 0")]) for rank, (_, theirs) in pairs.items()}

    def _peers(self, rank: int, lines: list[tuple[socket.socket, str]]) -> Peers:
        watch: Any = SimpleNamespace(sign=lambda: None, close=lambda: None)
        options = {"limit": LIMIT, "hang_watch": watch, "exit_with": lambda code: self.exits.append((rank, code))}
        return Peers(lines, main=rank == 0, **options)

    def all(self) -> list[Peers]:
        return [self.main, *self.others.values()]

    def die(self, rank: int) -> None:
        """Close the connection without a message, as the system does for a killed process."""
        self.others[rank]._closed = True
        self.others[rank]._wake.close()
        self.others[rank]._thread.join()
        self.sockets[rank][1].close()


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr(peers, "LEAVE_WITHIN", 1.0)
    made: list[Group] = []

    def make(others: int) -> Group:
        made.append(Group(others))
        return made[-1]

    yield make
    for one in made:
        for member in one.all():
            member._closed = True


def test_a_dead_process_is_detected_at_once_and_by_all(group):
    three = group(2)
    three.die(2)
    assert "process 2 is gone" in (three.main.lost_within(5) or "")
    assert "process 2 is gone" in (three.others[1].lost_within(5) or "")
    with pytest.raises(RunError, match=r"process 2 is gone: .* continue with --resume auto"):
        three.others[1].wait_for_all()


def test_a_silent_process_is_detected_after_the_limit(group, monkeypatch):
    two = group(1)
    began = time.monotonic()
    monkeypatch.setattr(two.others[1], "_send", lambda message: None)  # as if it were stopped
    assert "process 1 has sent no heartbeat" in (two.main.lost_within(5) or "")
    assert time.monotonic() - began > LIMIT * 0.5


def test_a_slow_process_is_waited_for(group):
    three = group(2)
    passed = []

    def take_part(member: Peers, delay: float) -> None:
        for _ in range(3):
            time.sleep(delay)
            member.wait_for_all()
            passed.append(member)

    delays = zip(three.all(), (0, 1.5, 0), strict=True)
    threads = [threading.Thread(target=take_part, args=pair) for pair in delays]
    for thread in threads:
        thread.start()
    time.sleep(1.2)  # twice the limit
    assert passed == []
    for thread in threads:
        thread.join(10)
    assert len(passed) == 9
    assert all(set(passed[at : at + 3]) == set(three.all()) for at in (0, 3, 6))  # nobody is a barrier ahead
    assert [member.lost for member in three.all()] == [None] * 3


def test_a_process_that_leaves_is_not_missed(group):
    two = group(1)
    two.others[1].leave()
    time.sleep(LIMIT * 2)
    assert two.main.lost is None
    two.main.leave()
    assert two.exits == []


def test_an_error_is_announced_to_all(group):
    three = group(2)
    three.others[1].leave(ValueError("data.root: no images\nunder it"))
    for member in (three.main, three.others[2]):
        assert "process 1 has ended with an error: data.root: no images. " in (member.lost_within(5) or "")


def test_a_hanging_main_thread_is_ended(group):
    two = group(1)
    two.die(1)
    time.sleep(0.5)
    assert two.exits == []  # it has some time to end by itself
    with two.main.uninterrupted:  # and longer while it writes a checkpoint
        time.sleep(1.5)
        assert two.exits == []
    time.sleep(0.5)
    assert two.exits == [(0, 3)]


HANGS = """
import ctypes, socket, sys, threading, time
from passl_densecl.distributed.hang import HangWatch
from passl_densecl.distributed.peers import Peers

server = socket.create_server(("127.0.0.1", 0))
theirs = socket.create_connection(server.getsockname())
lines = [(server.accept()[0], "process 1 of 2 (host a, pid 7)")]
watch = HangWatch(lines, limit=3, advice="Continue with --resume auto")
peers = Peers(lines, main=True, limit=3, hang_watch=watch)

def beat():
    while True:
        theirs.sendall(b".\\n")
        time.sleep(0.2)

threading.Thread(target=beat, daemon=True).start()
print("begun", flush=True)
library = ctypes.PyDLL(None)  # whose functions are called with Python's lock held
sys.stdin.readline()
if sys.argv[1] == "dead":
    library.shutdown(theirs.fileno(), 2)
library.sleep(60)
"""


def test_a_native_call_that_holds_pythons_lock_is_ended_and_ctrl_z_is_not():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    trainers = {peer: subprocess.Popen([sys.executable, "-c", HANGS, peer], **pipes) for peer in ("dead", "alive")}
    for trainer in trainers.values():
        assert trainer.stdout.readline() == "begun\n", trainer.communicate()
        trainer.send_signal(signal.SIGSTOP)
    time.sleep(4)  # longer than the limit
    for trainer in trainers.values():
        trainer.send_signal(signal.SIGCONT)
        assert trainer.poll() is None
    errors = {peer: trainer.communicate("go\n", timeout=30)[1] for peer, trainer in trainers.items()}
    assert [trainer.returncode for trainer in trainers.values()] == [-signal.SIGKILL] * 2
    waits = "This process waits in a native call that holds Python's lock; killed after"
    assert errors["dead"].startswith("process 1 of 2 (host a, pid 7) is gone: killed, or crashed")
    assert waits in errors["dead"]
    assert errors["alive"].startswith(f"no answer. {waits} 3 s. Continue with --resume auto")


def test_strangers_are_rejected():
    server, secret = socket.create_server(("", 0)), bytes(range(16))
    port = server.getsockname()[1]
    strangers = [join.connect("127.0.0.1", port, bytes(16), 1, 5), join.connect("127.0.0.1", port, secret, 7, 5)]
    friend = join.connect("127.0.0.1", port, secret, 1, 5)
    ((line, name),) = join.accept_all(server, secret, 2, 5)
    assert name.startswith("process 1 of 2 (host ")
    assert friend is not None
    line.sendall(b".\n")
    assert friend.recv(10) == b".\n"
    for stranger in strangers:
        assert stranger is not None
        assert stranger.recv(10) == b""
    assert join.connect("127.0.0.1", port, secret, 1, 1) is None
