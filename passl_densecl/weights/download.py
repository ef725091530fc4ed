"""One file over HTTP, whole or not at all: resumed after an interruption, bounded in time, checked before it has its name.

Beside ``FILE`` stand, until it is complete, ``FILE.part`` (what has come) and ``FILE.part.json`` (from where, and which
version of it). A part is continued only with a server that confirms the version (RFC 9110: ``Range`` with ``If-Range``);
otherwise it starts again. Standard library only: proxies come from the environment, as urllib finds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import passl_densecl
from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError
from passl_densecl.weights.progress import Display, display, megabytes

__all__ = ["DownloadError", "Limits", "UnfitError", "fetch", "only_one", "writing"]

_CHUNK = 1 << 18
_PROGRESS = 1 << 20  # so many new bytes, and the count of failures starts again
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class DownloadError(InputError):
    """No address gave the file; the message names each with its reason."""


class UnfitError(Exception):
    """What came is not the file that was asked for. Raised by the check that is given to :func:`fetch`."""


class _PassingError(Exception):
    """May be better next time; ``wait`` is how many seconds the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _FinalError(Exception):
    """This address will not do, now or in a minute."""


class Limits(NamedTuple):
    """How patient a download is. Seconds and bytes."""

    stall: float = 30.0  # this long without an answer, or with less than `trickle` of it, is a stalled connection
    trickle: int = 4096
    attempts: int = 5  # in a row, without 1 MiB of progress, at one address
    pause: float = 1.0  # after the first failure; doubled after every further one
    longest_pause: float = 30.0
    largest: int = 8 << 30  # no file is; a body without an end must not fill the disk


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    check: Callable[[Path], object],
    limits: Limits | None = None,
    progress: bool = True,
) -> None:
    """Download ``target`` from the first of ``urls`` that gives it.

    Nobody else may be writing the same ``target``: see :func:`only_one`.

    Args:
        urls: http or https addresses of the same file, best first.
        target: the file to make; its folder exists. An older file of that name is replaced.
        check: looks at the complete file under its temporary name and raises :class:`UnfitError` when it is not the one.
        limits: times and sizes; the defaults suit the internet.
        progress: show a bar on a terminal, lines elsewhere, on stderr.

    Raises:
        DownloadError: no address gave it; names each with its reason.
        InputError: the disk is full or cannot be written.
    """
    limits = limits or Limits()
    part = _Part(target)
    reasons = []
    with display(target.name, progress) as shown:
        for url in urls:
            try:
                _fetch_from(url, part, check, limits, shown)
            except _FinalError as error:
                shown.note(f"{url}: {error}")
                reasons.append(f"\n  {url}: {error}")
            else:
                part.publish(target)
                return
    raise DownloadError(f"{target.name} could not be downloaded:{''.join(reasons)}")


@contextlib.contextmanager
def only_one(target: Path, *, progress: bool = True) -> Iterator[None]:
    """One process (or thread) on this host at a time has ``target``; the others wait. Ends with its process, however.

    Raises:
        InputError: the folder cannot be written or its file system has no locks.
    """
    path = target.with_name(f".{target.name}.lock")  # stays: removing it would let two in
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with writing(path):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress:
                    print(f"{target.name}: waiting for another process that is making it", file=sys.stderr, flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the file system, as a message that names the file and the way out."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make room or permit it, or let PASSL_DENSECL_HOME "
            "name another folder"
        ) from None


# One address


def _fetch_from(url: str, part: _Part, check: Callable[[Path], object], limits: Limits, shown: Display) -> None:
    """Try until the part is complete and passes ``check``; what may pass is tried again after a pause."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _FinalError("the address is neither http nor https")
    failures, furthest = 0, part.size if part.version(url) else 0
    while True:
        resumed = part.size > 0
        try:
            if not part.complete(url):
                _attempt(url, part, limits, shown)
            check(part.path)
            return
        except UnfitError as error:
            part.discard()
            if not resumed:  # these bytes came in one piece: the same address would send them again
                raise _FinalError(str(error)) from None
            reason, wait = f"{error}; from the start", 0.0
        except _PassingError as error:
            reason, wait = str(error), error.wait
        if part.size >= furthest + _PROGRESS:
            failures, furthest = 0, part.size
        failures += 1
        if failures >= limits.attempts:
            raise _FinalError(f"{reason} (given up after {failures} attempts)")
        wait = min(max(wait, limits.pause * 2 ** (failures - 1)), limits.longest_pause)
        shown.note(f"{reason}; again in {wait:.0f} s")
        time.sleep(wait)


def _attempt(url: str, part: _Part, limits: Limits, shown: Display) -> None:
    """One request; returns when the part is complete."""
    request = urllib.request.Request(
        url, headers={"User-Agent": f"passl_densecl/{passl_densecl.__version__}", "Accept-Encoding": "identity"}
    )
    version = part.version(url)
    if version:
        request.add_header("Range", f"bytes={part.size}-")
        request.add_header("If-Range", version)
    with _network_errors():
        try:
            response: http.client.HTTPResponse = _opener().open(request, timeout=limits.stall)  # type: ignore[assignment]
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not version:
                raise
            error.close()
            reason = f"the server announced more than the {part.size:,} bytes that it has; from the start"
            part.discard()
            raise _PassingError(reason) from None
        with response:
            total = _begin(url, response, part)
            shown.begin(part.size, total)
            _check_room(part, total, limits)
            _receive(response, part, total, limits, shown)


def _begin(url: str, response: http.client.HTTPResponse, part: _Part) -> int | None:
    """Understand the answer and bring the part to where its body continues. Returns the size of the file, if told."""
    kind = response.headers.get_content_type() if "Content-Type" in response.headers else ""
    if kind in ("text/html", "application/xhtml+xml"):
        raise _FinalError("the answer is a web page, not the file")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise _FinalError(f"the answer is encoded ({encoding}) although that was not asked for")
    if response.status == http.client.OK:
        part.begin(url, _version(response.headers), response.length)
        return response.length
    if response.status != http.client.PARTIAL_CONTENT:
        raise _FinalError(f"unexpected answer: HTTP {response.status} {response.reason}")
    parts = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if parts:
        first, last = int(parts[1]), int(parts[2])
        total = part.total if parts[3] == "*" else int(parts[3])
        fits = first == part.size and total is not None and last + 1 == total and part.total in (None, total)
        if fits and response.length in (None, last + 1 - first):
            return total
    part.discard()
    raise _PassingError(f"not the part that was asked for ({response.headers.get('Content-Range')}); from the start")


def _receive(
    response: http.client.HTTPResponse, part: _Part, total: int | None, limits: Limits, shown: Display
) -> None:
    """Append the body to the part, and see to it that there is neither less nor more of it than was announced."""
    response.length = None  # http.client would stop at the announced end, and hide that more follows
    count = part.size
    marked, since = count, time.monotonic()
    with part.append() as file:
        # Where the server keeps the connection, waiting for more than was announced would only wait.
        while count != total or response.will_close:
            try:
                block = response.read1(_CHUNK)
            except TimeoutError:
                if count == total:
                    break
                raise _PassingError(f"nothing came for {limits.stall:.0f} s") from None
            if not block:
                break
            with writing(part.path):
                rest = memoryview(block)
                while rest:  # an unbuffered write may take a part only, as on a disk that is filling up
                    rest = rest[file.write(rest) :]
            count += len(block)
            shown.update(count)
            if total is not None and count > total:
                raise UnfitError(f"the server sent more than the {total:,} bytes that it announced")
            if count > limits.largest:
                part.discard()
                raise _FinalError(f"the file is larger than {megabytes(limits.largest)}; none should be")
            now = time.monotonic()
            if count >= marked + limits.trickle:
                marked, since = count, now
            elif now - since > limits.stall and count != total:
                raise _PassingError(f"only {count - marked:,} bytes came in {now - since:.0f} s")
    if total is not None and count < total:
        raise _PassingError(f"the connection ended after {megabytes(count)} of {megabytes(total)}")
    part.finish(count)


def _check_room(part: _Part, total: int | None, limits: Limits) -> None:
    if total is None:
        return
    if total > limits.largest:
        part.discard()
        raise _FinalError(
            f"the server announces {megabytes(total)}; no file is larger than {megabytes(limits.largest)}"
        )
    free = shutil.disk_usage(part.path.parent).free
    if total - part.size > free:
        raise InputError(
            f"{part.path.parent}: {megabytes(total - part.size)} are needed and {megabytes(free)} free; make room, or let "
            "PASSL_DENSECL_HOME name another folder"
        )


def _version(headers: http.client.HTTPMessage) -> str | None:
    """What identifies this version of the file in an ``If-Range``; a weak ETag may not be used there."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """What urllib, http.client and sockets raise, sorted into what may pass and what will not."""
    try:
        yield
    except InputError:  # the disk's, not the network's
        raise
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code} {error.reason}"
        error.close()
        if error.code >= 500 or error.code in (408, 425, 429):
            raise _PassingError(reason, _seconds(error.headers.get("Retry-After"))) from None
        raise _FinalError(reason) from None
    except (ValueError, http.client.InvalidURL, ssl.SSLCertVerificationError) as error:
        raise _FinalError(str(error)) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _FinalError(str(error.reason)) from None
        raise _PassingError(str(error.reason)) from None
    except (http.client.HTTPException, OSError) as error:
        raise _PassingError(str(error) or type(error).__name__) from None


def _seconds(retry_after: str | None) -> float:
    """A ``Retry-After`` in seconds; its other form, a date, is not worth a parser here."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Only to http and https, and never from https back to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001 (as in urllib)
        old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise _FinalError(f"redirected to {newurl}, which is refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """urllib's machine without what is not needed here: no file:, no ftp:, no data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


# What has come so far


class _Part:
    """``FILE.part``, and ``FILE.part.json``: its address, version and announced size."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._note_path = target.with_name(f"{target.name}.part.json")
        self._note = self._read_note()

    @property
    def size(self) -> int:
        """Bytes that have come; 0 when it is not known what they belong to."""
        return self.path.stat().st_size if self._note and self.path.is_file() else 0

    @property
    def total(self) -> int | None:
        """Size of the whole file, where it was told."""
        total = self._note.get("total")
        return total if isinstance(total, int) else None

    def version(self, url: str) -> str | None:
        """The version to ask ``url`` for the rest of; None when it must start from the beginning."""
        version = self._note.get("version")
        return version if self.size and self._note.get("url") == url and isinstance(version, str) else None

    def complete(self, url: str) -> bool:
        """All of it has come, and only the check was missing."""
        return self.size > 0 and self._note.get("url") == url and self.size == self.total

    def begin(self, url: str, version: str | None, total: int | None) -> None:
        """Start from nothing. The file is emptied first, so that the note never describes other bytes."""
        with writing(self.path):
            self.path.unlink(missing_ok=True)  # it might be a link
            self.path.touch()
            self._write_note({"url": url, "version": version, "total": total})

    def finish(self, total: int) -> None:
        """The size is known at the end at the latest."""
        with writing(self._note_path):
            self._write_note({**self._note, "total": total})

    def append(self) -> IO[bytes]:
        with writing(self.path):
            return open(self.path, "ab", buffering=0)  # unbuffered: what has come survives a kill

    def discard(self) -> None:
        with writing(self.path):
            self.path.unlink(missing_ok=True)
            self._note_path.unlink(missing_ok=True)
        self._note = {}

    def publish(self, target: Path) -> None:
        """Give it its name, when it is safely on the disk."""
        with writing(target):
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self.path, target)
            self._note_path.unlink(missing_ok=True)

    def _read_note(self) -> dict[str, object]:
        try:
            note = parse_json(self._note_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _write_note(self, note: dict[str, object]) -> None:
        temporary = self._note_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(note), encoding="utf-8")
        os.replace(temporary, self._note_path)
        self._note = note
