"""A web server on this machine that serves one file well, or in one of the ways in which servers fail."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behavior = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request. GET is answered by the next behavior in the server's script, then by its habit; HEAD always well."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        more = {"x_repo_commit": self.server.commit} if self.server.commit else {}
        self.head(200, len(self.server.body), **more)

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked.append((self.path, self.headers.get("Range")))
            server.headers.append(dict(self.headers))
            behavior = server.script.pop(0) if server.script else server.habit
        with contextlib.suppress(ConnectionError):
            behavior(self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def wanted(self) -> tuple[int, bytes]:
        """The status and body that an honest server sends."""
        asked = self.headers.get("Range")
        if asked is None:
            return 200, self.server.body
        first = int(asked.removeprefix("bytes=").rstrip("-"))
        return (206, self.server.body[first:]) if first < len(self.server.body) else (416, b"")

    def head(self, status: int, length: int, **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        size = len(self.server.body)
        if status == 206:
            more.setdefault("content_range", f"bytes {size - length}-{size - 1}/{size}")
        if self.server.etag and status in (200, 206):
            more.setdefault("etag", f'"{self.server.etag}"')
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


class Server(ThreadingHTTPServer):
    """``script``: behaviors for the next requests; ``habit``: for all later ones; ``asked``: path and Range of GETs."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.body = body
        self.etag = hashlib.md5(body).hexdigest()
        self.commit = ""  # the Hub names one
        self.script: list[Behavior] = []
        self.habit: Behavior = well
        self.asked: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.over = threading.Event()  # stalled requests wait for it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.asked]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests go away in the middle: no traceback."""


@contextlib.contextmanager
def serving(body: bytes) -> Iterator[Server]:
    """A running server."""
    server = Server(body)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def well(request: Request) -> None:
    status, body = request.wanted()
    request.head(status, len(body))
    request.wfile.write(body)


def ignores_range(request: Request) -> None:
    request.head(200, len(request.server.body))
    request.wfile.write(request.server.body)


def drops(after: int) -> Behavior:
    """The connection ends after so many bytes of the body."""

    def drop(request: Request) -> None:
        status, body = request.wanted()
        request.head(status, len(body))
        request.wfile.write(body[:after])
        request.close_connection = True

    return drop


def stalls(after: int) -> Behavior:
    """So many bytes of the body, then silence."""

    def stall(request: Request) -> None:
        drops(after)(request)
        request.server.over.wait(30)

    return stall


def slowly(pause: float, pieces: int = 20) -> Behavior:
    def slow(request: Request) -> None:
        status, body = request.wanted()
        request.head(status, len(body))
        step = len(body) // pieces + 1
        for at in range(0, len(body), step):
            request.wfile.write(body[at : at + step])
            time.sleep(pause)

    return slow


def says(status: int, text: bytes = b"no", **headers: str) -> Behavior:
    def say(request: Request) -> None:
        request.head(status, len(text), **headers)
        request.wfile.write(text)

    return say
