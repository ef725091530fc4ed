"""One file over HTTP: resumed after an interruption, and given its name only when it is complete and verified.

``huggingface_hub`` does the transfer: retries, timeouts, ranges, proxies, the bar on a terminal. Added here: mirrors,
the lock, the check before the file gets its name, and resuming in a later process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import passl_densecl
from passl_densecl.disk import sha256_of
from passl_densecl.errors import InputError

_HEADERS = {"User-Agent": f"passl_densecl/{passl_densecl.__version__}", "Accept-Encoding": "identity"}


class DownloadError(InputError):
    """No address gave the file; the message names each with its reason."""


class UnfitError(Exception):
    """An address does not provide the requested file. The check that is given to :func:`fetch` raises it, too."""


def fetch(urls: Sequence[str], target: Path, *, check: Callable[[Path], object], progress: bool = True) -> None:
    """Download ``target`` from the first of ``urls`` that provides it. The caller holds :func:`only_one` for it.

    Args:
        urls: http or https addresses of the same file, best first.
        target: the file to make, in an existing folder. An older file of that name is replaced.
        check: examines the complete file under its temporary name; raises :class:`UnfitError` if it is the wrong one.
        progress: show a bar on a terminal, a line every 15 seconds elsewhere, on stderr.

    Raises:
        DownloadError: no address provided the file, or huggingface_hub is not installed.
        InputError: the disk is full or cannot be written.
    """
    reasons = []
    for url in urls:
        try:
            part = _receive(url, target, check, progress)
        except UnfitError as error:
            reasons.append(f"\n  {url}: {error}")
            continue
        with writing(target):
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, target)
            for obsolete in target.parent.glob(f"{target.name}.*.part"):
                obsolete.unlink()
        return
    raise DownloadError(f"{target.name} could not be downloaded:{''.join(reasons)}")


def _receive(url: str, target: Path, check: Callable[[Path], object], progress: bool) -> Path:
    """Complete and check ``FILE.VERSION.part``, of which a part may exist. Raises UnfitError: try the next address."""
    try:
        from huggingface_hub.file_download import get_hf_file_metadata, http_get

        if "tqdm_class" not in inspect.signature(http_get).parameters:
            raise ImportError("an old version")
    except ImportError:
        needs = "huggingface_hub: pip install 'huggingface_hub>=1.10,<3'"
        raise DownloadError(f"{target.name}: downloading needs {needs}") from None

    # The ETag tells whether the part belongs to the file as it is now. token=False: not every address is the Hub's.
    etag, size, sha256 = "", None, ""
    with contextlib.suppress(Exception):  # not every server answers HEAD; what is really wrong, GET will say
        about = get_hf_file_metadata(url, token=False, headers=_HEADERS)
        etag, size = about.etag or "", about.size
        if about.commit_hash and re.fullmatch("[0-9a-f]{64}", etag):  # the Hub's ETag of a large file
            sha256 = etag
    part = target.with_name(f"{target.name}.{hashlib.sha256(etag.encode()).hexdigest()[:12]}.part")
    with writing(part):
        resumable = etag and size and part.exists() and part.stat().st_size <= size
        with open(part, "ab" if resumable else "wb") as file:
            options = {"headers": _HEADERS, "displayed_filename": target.name, "tqdm_class": _display(progress)}
            if resumable:
                options["expected_size"] = size  # a complete part is not requested again
            try:
                http_get(url, file, resume_size=file.tell(), **options)
            except Exception as error:
                if isinstance(error, OSError) and error.errno:  # the disk; errors of the network have no number
                    raise
                answer = getattr(error, "response", None)
                reason = f"HTTP {answer.status_code} {answer.reason_phrase}" if answer is not None else str(error)
                raise UnfitError(reason.strip().partition("\n")[0] or type(error).__name__) from None
    try:
        check(part)
        if sha256 and sha256_of(part) != sha256:
            raise UnfitError(f"its SHA-256 is not {sha256}, which the server announced")
    except UnfitError:
        part.unlink()
        raise
    return part


def _display(progress: bool) -> type:
    """huggingface_hub's bar; elsewhere than on a terminal, its text as a line every 15 seconds."""
    from huggingface_hub.utils import tqdm

    class Lines(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options |= {"disable": not progress, "file": io.StringIO(), "mininterval": 15.0, "maxinterval": 15.0}
            options["bar_format"] = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
            super().__init__(*args, **options)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            print(self, file=sys.stderr, flush=True)

    return tqdm if progress and sys.stderr.isatty() else Lines


@contextlib.contextmanager
def only_one(target: Path, *, progress: bool = True) -> Iterator[None]:
    """One process (or thread) on this host at a time has ``target``; the others wait. The lock ends with its process.

    Raises:
        InputError: the folder cannot be written or its file system has no locks.
    """
    path = target.with_name(f".{target.name}.lock")  # stays: after removing it, two processes could hold it
    with contextlib.ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(open(path, "ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress:
                    print(f"{target.name}: waiting for another process that is making it", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the file system, as a message that names the file and what to do."""
    try:
        yield
    except OSError as error:
        what = "free some space, allow writing, or set PASSL_DENSECL_HOME to another folder"
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {what}") from None
