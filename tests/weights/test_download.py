"""A download ends with the whole, verified file or with none; against a real server on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import random
import resource
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import loopback
import pytest
from huggingface_hub import constants, file_download

from passl_densecl.disk import sha256_of
from passl_densecl.errors import InputError
from passl_densecl.weights.download import DownloadError, UnfitError, fetch, only_one

BODY = b"\x80\x02" + random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # of 10 MiB, tests would take longer
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    with loopback.serving(BODY) as running:
        yield running


def whole(path: Path) -> None:
    if sha256_of(path) != SHA256:
        raise UnfitError("other bytes")


def get(server: loopback.Server, folder: Path, check=whole) -> bytes:
    fetch([server.url + "/w.pth"], folder / "w.pth", check=check, progress=False)
    assert visible(folder) == ["w.pth"]
    return (folder / "w.pth").read_bytes()


def visible(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def interrupted(server: loopback.Server, folder: Path, after: int = 1_000_000) -> Path:
    """The part that remains of a download whose connection broke, and broke again at every attempt to resume."""
    server.script, server.habit = [loopback.drops(after)], loopback.drops(0)
    with pytest.raises(DownloadError, match="peer closed connection"):
        get(server, folder)
    server.asked.clear()
    server.habit = loopback.well
    (part,) = folder.iterdir()
    assert part.name.endswith(".part")
    assert BODY.startswith(part.read_bytes())
    return part


def test_a_good_server_is_asked_once(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "secret")  # for the Hub; these addresses may be of other hosts
    assert get(server, tmp_path) == BODY
    assert server.asked == [("/w.pth", None)]
    assert "secret" not in str(server.headers)
    assert capfd.readouterr() == ("", "")  # no progress was wanted


def test_a_later_call_requests_only_the_rest(server, tmp_path):
    part = interrupted(server, tmp_path)
    assert part.stat().st_size == 1_000_000
    assert get(server, tmp_path) == BODY
    assert server.ranges() == ["bytes=1000000-"]


def test_a_complete_part_is_checked_and_not_requested_again(server, tmp_path):
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, check=interrupt)
    assert not (tmp_path / "w.pth").exists()
    assert get(server, tmp_path) == BODY
    assert len(server.asked) == 1


def test_a_server_that_ignores_range_starts_again(server, tmp_path):
    interrupted(server, tmp_path)
    server.habit = loopback.ignores_range
    assert get(server, tmp_path) == BODY
    assert server.ranges() == ["bytes=1000000-"]


@pytest.mark.parametrize("change", ["other file", "no version", "part too long"])
def test_a_part_that_may_be_of_another_file_starts_again(server, tmp_path, change):
    part = interrupted(server, tmp_path)
    if change == "part too long":
        part.write_bytes(bytes(len(BODY) + 1))
    else:
        server.etag = "" if change == "no version" else "new"
    assert get(server, tmp_path) == BODY
    assert server.ranges() == [None]


def test_a_damaged_part_is_removed_and_the_next_call_starts_again(server, tmp_path):
    interrupted(server, tmp_path).write_bytes(bytes(1_000_000))
    with pytest.raises(DownloadError, match="other bytes"):
        get(server, tmp_path)
    assert visible(tmp_path) == []
    assert get(server, tmp_path) == BODY


def test_wrong_content_leaves_nothing(server, tmp_path):
    server.body = BODY[:-1] + b"?"
    with pytest.raises(DownloadError, match=rf"w\.pth could not be downloaded:\n  {server.url}/w\.pth: other bytes"):
        get(server, tmp_path)
    assert visible(tmp_path) == []
    assert len(server.asked) == 1


def test_the_sha256_that_the_hub_announces_is_checked(server, tmp_path):
    """Its ETag of a large file; other servers' ETags are no hashes of the content."""
    server.etag = "0" * 64
    assert get(server, tmp_path, check=lambda path: None) == BODY
    server.commit = "0" * 40
    server.etag = SHA256
    assert get(server, tmp_path, check=lambda path: None) == BODY
    (tmp_path / "w.pth").unlink()
    server.etag = "0" * 64
    with pytest.raises(DownloadError, match=r"its SHA-256 is not 0{64}, which the server announced"):
        get(server, tmp_path, check=lambda path: None)
    assert visible(tmp_path) == []


def test_the_next_mirror_is_asked_and_every_failure_is_named(server, tmp_path):
    with loopback.serving(BODY) as gone:
        closed = gone.url + "/a"
    urls = [closed, server.url + "/b", server.url + "/c"]
    server.script = [loopback.says(404)]
    fetch(urls, tmp_path / "w.pth", check=whole, progress=False)
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert server.asked == [("/b", None), ("/c", None)]
    server.script = [loopback.says(404), loopback.says(500)]
    with pytest.raises(DownloadError) as caught:
        fetch(urls, tmp_path / "x.pth", check=whole, progress=False)
    for reason in (f"{closed}: [Errno 111] Connection refused", "/b: HTTP 404 Not Found", "/c: HTTP 500 Internal"):
        assert reason in str(caught.value)


@pytest.mark.parametrize("found", [None, SimpleNamespace(get_hf_file_metadata=None, http_get=lambda url: None)])
def test_without_the_library_the_message_has_the_install_line(server, tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "huggingface_hub.file_download", found)
    with pytest.raises(DownloadError, match=r"w\.pth: .* pip install 'huggingface_hub>=1.10,<3'"):
        get(server, tmp_path)


# Several processes

CHILD = """
import sys
from pathlib import Path
from huggingface_hub import constants
from passl_densecl.disk import sha256_of
from passl_densecl.weights.download import UnfitError, fetch, only_one

constants.DOWNLOAD_CHUNK_SIZE = 50_000
url, target, digest, progress = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:] == ["show"]

def check(path):
    if sha256_of(path) != digest:
        raise UnfitError("wrong hash")

with only_one(target, progress=progress):
    if not target.exists():
        fetch([url], target, check=check, progress=progress)
"""


def child(server: loopback.Server, target: Path, *options: str, **streams) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, server.url + "/w.pth", str(target), SHA256, *options]
    return subprocess.Popen(command, cwd=ROOT, **streams)


def test_killed_while_another_waits_and_resumes(server, tmp_path):
    server.habit = loopback.stalls(1_000_000)
    first = child(server, tmp_path / "w.pth")
    end = time.monotonic() + 30
    while sum(part.stat().st_size for part in tmp_path.glob("*.part")) < 1_000_000:
        assert time.monotonic() < end
        time.sleep(0.005)
    second = child(server, tmp_path / "w.pth", "show", stderr=subprocess.PIPE, text=True)
    assert "waiting for another process" in second.stderr.readline()
    server.habit = loopback.well
    first.kill()
    assert first.wait() == -signal.SIGKILL
    second.communicate(timeout=30)
    assert second.returncode == 0
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000000-"]
    assert visible(tmp_path) == ["w.pth"]


def test_threads_exclude_each_other_too(tmp_path):
    entered = []

    def enter() -> None:
        with only_one(tmp_path / "x", progress=False):
            entered.append(True)

    other = threading.Thread(target=enter)
    with only_one(tmp_path / "x"):
        other.start()
        time.sleep(0.1)
        assert not entered
    other.join()
    assert entered


# The disk


def test_a_full_disk_is_named_and_no_other_address_is_asked(server, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_234_567, hard))  # for this process, writing more is an error
    try:
        with pytest.raises(InputError, match=r"w\.pth\.\w+\.part: cannot be written \(File too large\)") as caught:
            fetch([server.url + "/w.pth"] * 2, tmp_path / "w.pth", check=whole, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(caught.value, DownloadError)
    assert len(server.asked) == 1
    assert get(server, tmp_path) == BODY


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()  # in place of the folder: permissions do not stop root
    with pytest.raises(InputError, match="PASSL_DENSECL_HOME"), only_one(tmp_path / "file" / "w.pth"):
        raise AssertionError
    with pytest.raises(InputError, match="PASSL_DENSECL_HOME"):
        fetch([server.url], tmp_path / "file" / "w.pth", check=whole, progress=False)


# What the user sees


def test_lines_where_there_is_no_terminal(server, tmp_path, capfd):
    fetch([server.url + "/w.pth"], tmp_path / "w.pth", check=whole)
    first, last = capfd.readouterr().err.splitlines()
    assert first.startswith("w.pth: 0.00 of 3.00M, ")
    assert last.startswith("w.pth: 3.00M of 3.00M, ")
    assert last.endswith("B/s, 00:00 left")


def test_a_bar_on_a_terminal(server, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a bar needs a width
    process = child(server, tmp_path / "w.pth", "show", stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end, on a terminal whose other side is closed
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert process.wait(20) == 0
    assert "w.pth: 100%|█" in shown.decode()
