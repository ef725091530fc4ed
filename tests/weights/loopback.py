"""A web server on this machine that serves files well, or in one of the ways in which servers go wrong."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Behavior = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; what happens to it is the next thing in the server's script, then its habit."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
            behavior = server.script.pop(0) if server.script else server.habit
        with contextlib.suppress(ConnectionError):
            behavior(self)

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # clients that go away, or do not trust the certificate
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    # What an honest server would send

    def wanted(self) -> tuple[int, bytes]:
        """The status and body: the rest of the file when the version still is the one that was asked for."""
        body = self.server.body
        asked = self.headers.get("Range")
        if asked is None or self.headers.get("If-Range") not in (None, self.server.etag):
            return 200, body
        first = int(asked.removeprefix("bytes=").rstrip("-"))
        return (206, body[first:]) if first < len(body) else (416, b"")

    def head(self, status: int, length: int | None, *, close: bool = False, **more: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        size = len(self.server.body)
        if status == 206:
            more.setdefault("content_range", f"bytes {size - (length or 0)}-{size - 1}/{size}")
        if self.server.etag and status in (200, 206):
            more.setdefault("etag", self.server.etag)
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        if close:
            self.send_header("Connection", "close")
        self.end_headers()


class Server(ThreadingHTTPServer):
    """``script`` holds behaviors for the next requests, ``habit`` the one for all that follow; ``asked`` what came."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, body: bytes, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.body = body
        self.etag = '"' + hashlib.md5(body).hexdigest() + '"'
        self.script: list[Behavior] = []
        self.habit: Behavior = well
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.lock = threading.Lock()
        self.over = threading.Event()  # stalled requests wait for it

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def ranges(self) -> list[str | None]:
        return [asked for _, asked, _ in self.asked]


@contextlib.contextmanager
def serving(body: bytes, certificate: Path | None = None) -> Iterator[Server]:
    """A running server; over TLS with a certificate (a PEM file with its key)."""
    server = Server(body, certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


# Behaviors


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
        request.wfile.flush()
        request.close_connection = True

    return drop


def stalls(after: int) -> Behavior:
    """So many bytes of the body, then silence."""

    def stall(request: Request) -> None:
        status, body = request.wanted()
        request.head(status, len(body))
        request.wfile.write(body[:after])
        request.wfile.flush()
        request.server.over.wait(30)
        request.close_connection = True

    return stall


def silent(request: Request) -> None:
    """No answer at all."""
    request.server.over.wait(30)
    request.close_connection = True


def drips(request: Request) -> None:
    """A byte now and then: never silent, never done."""
    status, body = request.wanted()
    request.head(status, len(body))
    for at in range(len(body)):
        if request.server.over.wait(0.05):
            break
        request.wfile.write(body[at : at + 1])
        request.wfile.flush()
    request.close_connection = True


def slowly(pause: float, pieces: int = 20) -> Behavior:
    def slow(request: Request) -> None:
        status, body = request.wanted()
        request.head(status, len(body))
        step = len(body) // pieces + 1
        for at in range(0, len(body), step):
            request.wfile.write(body[at : at + step])
            time.sleep(pause)

    return slow


def announces(difference: int, *, status: int | None = None) -> Behavior:
    """A Content-Length that is wrong by so many bytes, then the whole body, then the end of the connection."""

    def lie(request: Request) -> None:
        honest, body = request.wanted() if status is None else (status, request.server.body)
        announced = len(body) + difference
        request.head(honest, announced, close=True)
        request.wfile.write(body[:announced])
        if surplus := body[announced:]:
            time.sleep(0.1)  # or it might come together with the rest
            request.wfile.write(surplus)
        request.close_connection = True

    return lie


def says(status: int, text: bytes = b"no", **headers: str) -> Behavior:
    def say(request: Request) -> None:
        request.head(status, len(text), **headers)
        request.wfile.write(text)

    return say


def redirects(to: str) -> Behavior:
    return says(302, b"", location=to)


def chunked(request: Request) -> None:
    request.head(200, None, transfer_encoding="chunked")
    body = request.server.body
    for at in range(0, len(body), 100_000):
        piece = body[at : at + 100_000]
        request.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    request.wfile.write(b"0\r\n\r\n")


def chunked_then_drops(request: Request) -> None:
    request.head(200, None, transfer_encoding="chunked")
    request.wfile.write(b"2710\r\n" + request.server.body[:10_000] + b"\r\n")
    request.wfile.flush()
    request.close_connection = True


def until_closed(request: Request) -> None:
    """No length at all: the body ends where the connection does."""
    request.head(200, None, close=True)
    request.wfile.write(request.server.body)
    request.close_connection = True
