"""A hub on this machine, and a cache as huggingface_hub lays it out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


def fill_cache(cache: Path, repo: str, folder: Path, commit: str) -> Path:
    """Puts a directory into a cache as `repo` at `commit`, its `main`; returns the snapshot."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    (home / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    return snapshot


class FakeHub:
    """Models by id and commit; `main` names a commit each, and what was asked for is kept."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.main: dict[str, str] = {}
        self.gated: set[str] = set()
        self.datasets: set[str] = set()
        self.asked: list[str] = []
        self.after: dict[str, Any] = {}
        self.url = ""

    def add(self, repo: str, commit: str, folder: Path) -> None:
        """Publishes a directory as `repo` at `commit`; the first one is its main."""
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.models.setdefault(repo, {})[commit] = files
        self.main.setdefault(repo, commit)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Returns status, headers and body of a request."""
        self.asked.append(path)
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            found = "/".join(parts[2:4]) in self.datasets
            return (200, {}, b'{"id": "x", "sha": "x"}') if found else _missing("RepoNotFound")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        repo, commit, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        content = self.models.get(repo, {}).get(commit, {}).get(name)
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if content is None:
            return _missing("EntryNotFound")
        if name in self.after:
            self.after.pop(name)()
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content

    def _api(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if repo in self.gated and rest[:1] == ["tree"]:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if repo not in self.models:
            return _missing("RepoNotFound")
        commit = rest[1] if len(rest) > 1 and rest[1] != "main" else self.main[repo]
        if commit not in self.models[repo]:
            return _missing("RevisionNotFound")
        files = self.models[repo][commit]
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        siblings = [{"rfilename": name} for name in files]
        return 200, {}, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()


def _missing(code: str) -> tuple[int, dict[str, str], bytes]:
    return 404, {"X-Error-Code": code}, b""


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serves a hub on a port of this machine; its address is `hub.url`."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self, body: bool) -> None:
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.respond(body=True)

        def do_HEAD(self) -> None:
            self.respond(body=False)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
