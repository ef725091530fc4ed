"""A download ends with the whole right file or with none, whatever the server does; against a real server, real sockets."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import loopback
import pytest

from passl_densecl.disk import sha256_of
from passl_densecl.errors import InputError
from passl_densecl.weights import download
from passl_densecl.weights.download import DownloadError, Limits, UnfitError, fetch, only_one

BODY = b"\x80\x02" + random.Random(0).randbytes(3_000_000)
QUICK = Limits(stall=0.3, attempts=4, pause=0.01, longest_pause=0.02)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with loopback.serving(BODY) as running:
        yield running


def whole(path: Path, body: bytes = BODY) -> None:
    if path.read_bytes() != body:
        raise UnfitError("other bytes")


def get(server: loopback.Server, folder: Path, *, limits: Limits = QUICK, check=whole, path: str = "/w.pth") -> Path:
    target = folder / "w.pth"
    fetch([server.url + path], target, check=check, limits=limits, progress=False)
    assert [entry.name for entry in folder.iterdir()] == ["w.pth"]  # nothing else is left
    return target


def failure(server: loopback.Server, folder: Path, **options) -> str:
    with pytest.raises(DownloadError) as caught:
        get(server, folder, **options)
    assert not (folder / "w.pth").exists()
    return str(caught.value)


def test_a_good_server_is_asked_once(server, tmp_path):
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == [("/w.pth", None, None)]


@pytest.mark.parametrize("behavior", [loopback.chunked, loopback.until_closed])
def test_a_size_that_is_not_told(server, tmp_path, behavior):
    server.habit = behavior
    assert get(server, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 1


def test_a_dropped_connection_is_resumed(server, tmp_path):
    server.script = [loopback.drops(1_000_000), loopback.drops(500_000)]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.asked[1][2] == server.etag


def test_a_stalled_body_times_out_and_is_resumed(server, tmp_path):
    server.script = [loopback.stalls(1_000_000)]
    start = time.monotonic()
    get(server, tmp_path)
    assert 0.3 <= time.monotonic() - start < 3
    assert server.ranges() == [None, "bytes=1000000-"]


def test_no_answer_times_out(server, tmp_path):
    server.script = [loopback.silent]
    get(server, tmp_path)
    assert len(server.asked) == 2


def test_a_server_that_always_stalls_is_given_up_in_bounded_time(server, tmp_path):
    server.habit = loopback.stalls(10)
    start = time.monotonic()
    message = failure(server, tmp_path)
    assert time.monotonic() - start < 4 * 0.3 + 2
    assert len(server.asked) == 4
    assert "nothing came for" in message
    assert "given up after 4 attempts" in message
    assert server.url in message


def test_a_trickle_counts_as_stalled(server, tmp_path):
    server.script = [loopback.drips]
    get(server, tmp_path)
    assert len(server.asked) == 2
    (_, resumed) = server.ranges()
    assert 1 <= int(resumed.removeprefix("bytes=").rstrip("-")) < 100


def test_progress_starts_the_count_of_failures_again(server, tmp_path):
    """Four attempts in a row may fail, but a connection that breaks after every MiB still gets there."""
    server.habit = loopback.drops(1 << 20)
    assert get(server, tmp_path, limits=QUICK._replace(attempts=2)).read_bytes() == BODY
    assert len(server.asked) == 3


def test_without_progress_the_count_does_not_start_again(server, tmp_path):
    """A server that ignores Range and always breaks at the same place."""

    def always(request: loopback.Request) -> None:
        request.head(200, len(BODY))
        request.wfile.write(BODY[: 2 << 20])
        request.close_connection = True

    server.habit = always
    message = failure(server, tmp_path)
    # The first attempt is progress; four more are not.
    assert len(server.asked) == 4
    assert "the connection ended after 2.1 MB of 3.0 MB" in message


def test_a_server_that_ignores_range_starts_again(server, tmp_path):
    server.script = [loopback.drops(1_000_000)]
    server.habit = loopback.ignores_range
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000000-"]


def test_a_file_that_changes_between_attempts_is_not_mixed(server, tmp_path):
    new = b"\x80\x02" + random.Random(1).randbytes(2_500_000)

    def change(request: loopback.Request) -> None:
        loopback.drops(1_000_000)(request)
        server.body, server.etag = new, '"new"'

    server.script = [change]
    target = get(server, tmp_path, check=lambda path: whole(path, new))
    assert target.read_bytes() == new
    assert server.ranges() == [None, "bytes=1000000-"]


def test_a_changed_file_behind_a_server_that_ignores_if_range_is_not_mixed(server, tmp_path):
    """It sends the rest of another file; its announced size gives it away."""
    new = b"\x80\x02" + random.Random(1).randbytes(2_500_000)

    def rest_of_another(request: loopback.Request) -> None:
        server.body, server.etag = new, '"new"'
        request.head(206, len(new) - 1_000_000)
        request.wfile.write(new[1_000_000:])

    server.script = [loopback.drops(1_000_000), rest_of_another]
    assert get(server, tmp_path, check=lambda path: None).read_bytes() == new
    assert server.ranges() == [None, "bytes=1000000-", None]


def test_the_same_size_but_mixed_is_found_by_the_check_and_downloaded_again(server, tmp_path):
    new = b"\x80\x02" + random.Random(1).randbytes(3_000_000)

    def rest_of_another(request: loopback.Request) -> None:
        server.body = new  # under the old tag: nothing but the content tells
        loopback.well(request)

    server.script = [loopback.drops(1_000_000), rest_of_another]
    assert get(server, tmp_path, check=lambda path: whole(path, new)).read_bytes() == new
    assert server.ranges() == [None, "bytes=1000000-", None]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (slice(50, 150), f"bytes 50-149/{len(BODY)}"),
        (slice(50, None), f"bytes 50-{len(BODY) - 1}/{len(BODY)}"),
        (slice(1_000_000, 2_000_000), f"bytes 1000000-1999999/{len(BODY)}"),
        (slice(1_000_000, 2_000_000), f"bytes 1000000-{len(BODY) - 1}/{len(BODY)}"),
        (slice(1_000_000, None), "bytes nonsense"),
    ],
)
def test_another_range_than_asked_is_refused(server, tmp_path, sent, told):
    def other(request: loopback.Request) -> None:
        request.head(206, len(BODY[sent]), content_range=told)
        request.wfile.write(BODY[sent])

    server.script = [loopback.drops(1_000_000), other]
    assert get(server, tmp_path, check=lambda path: None).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000000-", None]


def test_without_a_version_it_starts_again(server, tmp_path):
    server.etag = ""
    server.script = [loopback.drops(1_000_000)]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.ranges() == [None, None]


def test_a_weak_etag_is_no_version_but_a_date_is(server, tmp_path):
    server.etag = 'W/"1"'
    date = "Wed, 01 Mar 2023 10:00:00 GMT"

    def dated(request: loopback.Request) -> None:
        request.head(200, len(BODY), last_modified=date)
        request.wfile.write(BODY[:1_000_000])
        request.close_connection = True

    def honest(request: loopback.Request) -> None:
        assert request.headers["If-Range"] == date
        request.head(206, len(BODY) - 1_000_000)
        request.wfile.write(BODY[1_000_000:])

    server.script = [dated, honest]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked[1] == ("/w.pth", "bytes=1000000-", date)


@pytest.mark.parametrize("status", [None, 200])
def test_less_than_announced_is_truncated(server, tmp_path, status):
    """Whether or not the server can be asked for the rest; nothing but the size tells."""
    server.habit = loopback.announces(+1000, status=status)
    message = failure(server, tmp_path, check=lambda path: None)
    if status is None:
        assert f"announced more than the {len(BODY):,} bytes that it has" in message
    else:
        assert "the connection ended after 3.0 MB of 3.0 MB" in message
    assert len(server.asked) == 4


def test_more_than_announced_is_refused(server, tmp_path):
    server.habit = loopback.announces(-1000)
    message = failure(server, tmp_path, check=lambda path: None)
    assert f"more than the {len(BODY) - 1000:,} bytes that it announced" in message
    assert len(server.asked) == 1
    assert not list(tmp_path.glob("*.part*"))


def test_a_chunked_body_that_ends_early_is_truncated(server, tmp_path):
    server.script = [loopback.chunked_then_drops]
    assert get(server, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_server_that_keeps_the_connection_open_costs_no_wait(server, tmp_path):
    def keeps(request: loopback.Request) -> None:
        loopback.well(request)
        server.over.wait(30)

    server.habit = keeps
    start = time.monotonic()
    get(server, tmp_path, limits=QUICK._replace(stall=5))
    assert time.monotonic() - start < 2


def test_a_server_that_says_close_and_does_not_costs_one_wait(server, tmp_path):
    def forgets(request: loopback.Request) -> None:
        request.head(200, len(BODY), close=True)
        request.wfile.write(BODY)
        request.wfile.flush()
        server.over.wait(30)

    server.habit = forgets
    assert get(server, tmp_path, limits=QUICK._replace(attempts=1)).read_bytes() == BODY
    assert len(server.asked) == 1


def test_wrong_content_is_not_asked_for_twice(server, tmp_path):
    server.body = BODY[:-1] + b"?"
    assert "other bytes" in failure(server, tmp_path)
    assert len(server.asked) == 1
    assert not list(tmp_path.iterdir())


def test_an_endless_body_ends(server, tmp_path):
    server.habit = loopback.chunked
    message = failure(server, tmp_path, limits=QUICK._replace(largest=2_000_000))
    assert "larger than 2.0 MB" in message
    assert not list(tmp_path.iterdir())
    server.habit = loopback.well
    assert "announces 3.0 MB" in failure(server, tmp_path, limits=QUICK._replace(largest=2_000_000))


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (410, 1), (500, 4), (503, 4), (429, 4)])
def test_errors_of_the_server(server, tmp_path, status, asked):
    server.habit = loopback.says(status)
    assert f"HTTP {status}" in failure(server, tmp_path)
    assert len(server.asked) == asked


def test_an_error_that_passes(server, tmp_path):
    server.script = [loopback.says(500), loopback.says(503, retry_after="0")]
    assert get(server, tmp_path).read_bytes() == BODY


def test_retry_after_is_respected_within_bounds(server, tmp_path):
    server.script = [loopback.says(429, retry_after="1")]
    start = time.monotonic()
    get(server, tmp_path, limits=QUICK._replace(longest_pause=0.4))
    assert 0.4 <= time.monotonic() - start < 1


def test_the_pause_doubles(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.habit = loopback.says(500)
    failure(server, tmp_path, limits=QUICK._replace(attempts=6, pause=1, longest_pause=5))
    assert pauses == [1, 2, 4, 5, 5]


def test_redirects_within_http_are_followed_with_the_range(server, tmp_path):
    server.script = [loopback.redirects("/elsewhere"), loopback.drops(1_000_000), loopback.redirects("/elsewhere")]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [(path, asked) for path, asked, _ in server.asked] == [
        ("/w.pth", None),
        ("/elsewhere", None),
        ("/w.pth", "bytes=1000000-"),
        ("/elsewhere", "bytes=1000000-"),
    ]


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_redirects_elsewhere_are_refused(server, tmp_path, scheme):
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    to = {"file": f"file://{secret}", "ftp": "ftp://127.0.0.1:1/x", "data": "data:text/plain,x"}[scheme]
    server.habit = loopback.redirects(to)
    folder = tmp_path / "cache"
    folder.mkdir()
    message = failure(server, folder)
    assert scheme + ":" in message
    assert len(server.asked) == 1
    assert not list(folder.iterdir())


def test_a_redirect_in_a_circle_ends(server, tmp_path):
    server.habit = loopback.redirects("/w.pth")
    assert "HTTP 302" in failure(server, tmp_path)
    assert len(server.asked) <= 12


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "w.pth", "http://"])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(DownloadError, match=r"w\.pth could not be downloaded"):
        fetch([url], tmp_path / "w.pth", check=whole, limits=QUICK, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_web_page_is_not_the_file(server, tmp_path):
    server.habit = loopback.says(200, b"<html>sign in</html>", content_type="text/html; charset=utf-8")
    assert "a web page" in failure(server, tmp_path)
    assert len(server.asked) == 1


def test_an_encoding_that_was_not_asked_for_is_refused(server, tmp_path):
    server.habit = loopback.says(200, b"x", content_encoding="gzip")
    assert "encoded (gzip)" in failure(server, tmp_path)


def test_a_port_where_nobody_listens(tmp_path):
    with loopback.serving(BODY) as gone:
        url = gone.url
    with pytest.raises(DownloadError, match="refused"):
        fetch([url], tmp_path / "w.pth", check=whole, limits=QUICK, progress=False)


def test_the_next_mirror_is_asked(server, tmp_path):
    server.script = [loopback.says(404)]
    with loopback.serving(BODY) as broken:
        broken.habit = loopback.drops(0)
        broken.script = [loopback.drops(1_000_000)]
        urls = [broken.url + "/a", server.url + "/missing", server.url + "/b"]
        fetch(urls, tmp_path / "w.pth", check=whole, limits=QUICK, progress=False)
        assert broken.ranges()[:2] == [None, "bytes=1000000-"]
    assert server.asked == [("/missing", None, None), ("/b", None, None)]  # no Range: those bytes were another server's
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_every_mirror_is_named_when_none_gives_it(server, tmp_path):
    server.script = [loopback.says(404), loopback.says(403)]
    with pytest.raises(DownloadError) as caught:
        fetch([server.url + "/a", server.url + "/b"], tmp_path / "w.pth", check=whole, limits=QUICK, progress=False)
    assert f"{server.url}/a: HTTP 404" in str(caught.value)
    assert f"{server.url}/b: HTTP 403" in str(caught.value)


def test_proxies_of_the_environment_are_used(server, tmp_path, monkeypatch):
    """The proxy gets the whole address in its request line."""
    monkeypatch.setenv("http_proxy", server.url)
    fetch(["http://weights.example/w.pth"], tmp_path / "w.pth", check=whole, limits=QUICK, progress=False)
    assert server.asked == [("http://weights.example/w.pth", None, None)]


# Over TLS, as all of the real addresses are


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A PEM file with a key and a certificate for 127.0.0.1 that nobody has signed but itself."""
    if not shutil.which("openssl"):
        pytest.skip("needs the command openssl")
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            file,
            "-out",
            f"{file}.crt",
        ],
        check=True,
        capture_output=True,
    )
    with open(file, "a") as joined:
        joined.write(Path(f"{file}.crt").read_text())
    return file


@pytest.fixture
def secure(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with loopback.serving(BODY, certificate) as running:
        yield running


def test_an_untrusted_certificate_is_refused_at_once(certificate, tmp_path):
    with loopback.serving(BODY, certificate) as unknown:
        assert "certificate verify failed" in failure(unknown, tmp_path)
        assert unknown.asked == []


def test_drops_and_stalls_over_tls(secure, tmp_path):
    secure.script = [loopback.drops(1_000_000), loopback.stalls(500_000)]
    assert get(secure, tmp_path).read_bytes() == BODY
    assert secure.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]


def test_lies_over_tls(secure, tmp_path):
    secure.habit = loopback.announces(-1000)
    assert "more than the" in failure(secure, tmp_path, check=lambda path: None)
    secure.habit = loopback.announces(+1000, status=200)
    assert "the connection ended after" in failure(secure, tmp_path, check=lambda path: None)


def test_redirects_from_https_to_http_are_refused(secure, server, tmp_path):
    secure.habit = loopback.redirects(server.url + "/w.pth")
    assert f"redirected to {server.url}/w.pth, which is refused" in failure(secure, tmp_path)
    assert server.asked == []
    server.habit = loopback.redirects(secure.url + "/w.pth")
    secure.habit = loopback.well
    assert get(server, tmp_path).read_bytes() == BODY


# Interruptions

CHILD = """
import sys
from pathlib import Path
from passl_densecl.disk import sha256_of
from passl_densecl.weights.download import Limits, UnfitError, fetch, only_one

url, target, digest, progress = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:] == ["show"]

def check(path):
    if sha256_of(path) != digest:
        raise UnfitError("wrong hash")

with only_one(target, progress=progress):
    if not target.exists():
        fetch([url], target, check=check, limits=Limits(stall=5), progress=progress)
"""


def child(server: loopback.Server, target: Path, *options: str, **streams) -> subprocess.Popen:
    from hashlib import sha256

    return subprocess.Popen(
        [sys.executable, "-c", CHILD, server.url + "/w.pth", str(target), sha256(BODY).hexdigest(), *options],
        cwd=ROOT,
        **streams,
    )


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def visible(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def test_killed_and_resumed(server, tmp_path):
    target, part = tmp_path / "w.pth", tmp_path / "w.pth.part"
    server.habit = loopback.slowly(0.05, pieces=40)
    process = child(server, target)
    wait_until(lambda: part.exists() and part.stat().st_size > 500_000)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    come = part.stat().st_size
    assert 500_000 < come < len(BODY)
    assert not target.exists()
    assert BODY.startswith(part.read_bytes())

    server.habit = loopback.well
    assert child(server, target).wait(20) == 0
    assert target.read_bytes() == BODY
    assert server.ranges() == [None, f"bytes={come}-"]
    assert visible(tmp_path) == ["w.pth"]


def test_killed_before_the_check_needs_no_network(server, tmp_path):
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, check=interrupted)
    assert visible(tmp_path) == ["w.pth.part", "w.pth.part.json"]
    get(server, tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("damage", ["note gone", "note nonsense", "note a list", "part longer", "part changed"])
def test_a_damaged_part_starts_again(server, tmp_path, damage):
    server.habit = loopback.drops(1_000_000)
    with contextlib.suppress(DownloadError):
        get(server, tmp_path, limits=QUICK._replace(attempts=1))
    part, note = tmp_path / "w.pth.part", tmp_path / "w.pth.part.json"
    assert part.stat().st_size == 1_000_000
    if damage == "note gone":
        note.unlink()
    elif damage.startswith("note"):
        note.write_text("{" if damage == "note nonsense" else "[1]")
    else:
        part.write_bytes(b"x" * (len(BODY) + 10 if damage == "part longer" else 1_000_000))
    server.habit = loopback.well
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.ranges()[-1] is None


def test_processes_at_once_download_once(server, tmp_path):
    server.habit = loopback.slowly(0.02)
    processes = [child(server, tmp_path / "w.pth") for _ in range(4)]
    assert [process.wait(30) for process in processes] == [0] * 4
    assert len(server.asked) == 1
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert visible(tmp_path) == ["w.pth"]


def test_the_lock_ends_with_its_process(server, tmp_path):
    """The one that waits takes over where the killed one stopped."""
    target, part = tmp_path / "w.pth", tmp_path / "w.pth.part"
    server.habit = loopback.stalls(1_000_000)
    first = child(server, target)
    wait_until(lambda: part.exists() and part.stat().st_size == 1_000_000)
    second = child(server, target, "show", stderr=subprocess.PIPE, text=True)
    assert "waiting for another process" in second.stderr.readline()
    server.habit = loopback.well
    first.kill()
    first.wait()
    assert second.wait(20) == 0
    second.stderr.close()
    assert target.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000000-"]


def test_threads_exclude_each_other_too(tmp_path):
    inside, most = [], []

    def work() -> None:
        with only_one(tmp_path / "x", progress=False):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


# The disk


def test_a_disk_without_room_is_named_before_the_body(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(InputError, match=r"3\.0 MB are needed and 1\.0 MB free.*PASSL_DENSECL_HOME"):
        get(server, tmp_path)
    assert len(server.asked) == 1


def test_a_disk_that_fills_up_is_not_retried(server, tmp_path):
    """Files of this process may not grow beyond a size that falls inside a block: a short write, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_234_567, hard))
    try:
        with pytest.raises(InputError, match=r"w\.pth\.part: cannot be written \(File too large\)") as caught:
            get(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(caught.value, DownloadError)  # another address would not help
    assert len(server.asked) == 1
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1234567-"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(server, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="PASSL_DENSECL_HOME"), only_one(tmp_path / "w.pth"):
            raise AssertionError
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="PASSL_DENSECL_HOME"), only_one(tmp_path / "file" / "w.pth"):
        raise AssertionError


# What the user sees


def test_lines_where_there_is_no_terminal(server, tmp_path):
    server.script = [loopback.drops(1_000_000)]
    process = child(server, tmp_path / "w.pth", "show", stderr=subprocess.PIPE, text=True)
    _, shown = process.communicate(timeout=20)
    lines = shown.splitlines()
    assert lines[0] == "w.pth: downloading, 3.0 MB"
    assert lines[1] == "w.pth: the connection ended after 1.0 MB of 3.0 MB; again in 1 s"
    assert lines[2] == "w.pth: downloading, 3.0 MB, 1.0 MB are here already"
    assert lines[3].startswith("w.pth: 3.0 MB of 3.0 MB, ")
    assert lines[3].endswith("MB/s")
    assert len(lines) == 4
    assert "\x1b" not in shown


def test_a_bar_on_a_terminal(server, tmp_path):
    server.habit = loopback.slowly(0.05)
    ours, theirs = pty.openpty()
    process = child(server, tmp_path / "w.pth", "show", stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal whose other side is closed says that it is over
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert process.wait(20) == 0
    text = shown.decode()
    assert "w.pth" in text
    assert "━" in text
    assert "3.0/3.0 MB" in text
    assert "MB/s" in text


def test_silence_when_no_progress_is_wanted(server, tmp_path, capfd):
    server.script = [loopback.says(500)]
    get(server, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_sha256_of_a_file(tmp_path):
    import hashlib

    (tmp_path / "x").write_bytes(BODY)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(BODY).hexdigest()
