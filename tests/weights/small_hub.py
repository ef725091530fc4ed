"""A Hugging Face Hub on this machine, as far as huggingface_hub asks it: repositories, revisions, files and commits."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class Hub(ThreadingHTTPServer):
    """`repositories`: name → revision (branch or commit) → file → bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files to a branch; returns the commit."""
        revisions = self.repositories.setdefault(repository, {})
        content = {**revisions.get(branch, {}), **files}
        commit = hashlib.sha1(f"{repository} {len(revisions)}".encode()).hexdigest()
        revisions[branch] = revisions[commit] = content
        return commit


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self.path.partition("?")[0].strip("/").split("/")[1:]
        if parts[0] == "validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "RepoNotFound")
        if parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                return self.send({"error": "it exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.put(name, {})
            return self.send({"url": f"{self.server.url}/{name}"})
        if parts[3] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.send({"files": modes})
        repository, lines = "/".join(parts[1:3]), [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        commit = self.server.put(
            repository, {file["path"]: base64.b64decode(file["content"]) for file in files}, unquote(parts[4])
        )
        return self.send({"commitUrl": f"{self.server.url}/{repository}/commit/{commit}", "commitOid": commit})

    def answer(self) -> None:
        """A file, the list of files, or why there is none."""
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            repository, revision, file = "/".join(parts[2:4]), unquote(parts[5]) if len(parts) > 5 else "main", None
        else:
            repository, revision, file = "/".join(parts[:2]), unquote(parts[3]), "/".join(parts[4:])
        hidden = repository in self.server.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repository not in self.server.repositories or hidden:
            return self.refuse(401, "RepoNotFound")
        files = self.server.repositories[repository].get(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if file is None:
            listed = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files]
            if parts[4:5] == ["tree"]:
                return self.send(listed)
            return self.send({"id": repository, "sha": "0" * 40, "siblings": [{"rfilename": name} for name in files]})
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        commit = next(
            name
            for name, content in self.server.repositories[repository].items()
            if len(name) == 40 and content is files
        )
        etag = hashlib.sha256(files[file]).hexdigest()
        return self.send(files[file], headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def refuse(self, status: int, code: str) -> None:
        self.send({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
