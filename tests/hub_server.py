"""A mirror of the hub on this machine: the part of its API that downloads of models and data sets use."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

LISTING = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(?:tree|revision)/([^/]+)")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Mirror:
    """What is served, and what was asked for.

    Attributes
    ----------
    folders
        (`models` or `datasets`, id) → commit and folder.
    gated
        Ids that nobody may read.
    cut, stall
        File → bytes after which the connection breaks, or nothing more comes; once.
    sent
        File → bytes of its content that were sent, over all requests.
    asked
        Range of every GET of a file, as (file, first byte).
    """

    folders: dict[tuple[str, str], tuple[str, Path]]
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""
    closed: Event = field(default_factory=Event)


@contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    """Serve on a free port of this machine until the end of the block."""
    handler = type("Handler", (_Handler,), {"mirror": mirror})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield mirror
    finally:
        mirror.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    mirror: Mirror
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := LISTING.fullmatch(path):
            kind, name, revision = found.groups()
        elif found := FILE.fullmatch(path):
            kind, name, revision = "datasets" if found[1] else "models", found[2], found[3]
        else:
            return self._error(404, "EntryNotFound")
        if (kind, name) not in self.mirror.folders:
            return self._error(401, "RepoNotFound")
        if name in self.mirror.gated and found.re is FILE:  # lists are open to all, as on the hub
            return self._error(403, "GatedRepo")
        commit, folder = self.mirror.folders[kind, name]
        if revision != commit:
            return self._error(404, "RevisionNotFound")
        if found.re is LISTING:
            files = _tree(folder)
            siblings = [{"rfilename": file["path"]} for file in files]
            return self._json(files if "/tree/" in path else {"id": name, "sha": commit, "siblings": siblings})
        file = folder / found[4]
        return self._file(file, found[4], commit, with_body) if file.is_file() else self._error(404, "EntryNotFound")

    def _file(self, file: Path, name: str, commit: str, with_body: bool) -> None:
        content = file.read_bytes()
        first = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        self.mirror.asked.append((name, first))
        stalls = name in self.mirror.stall
        end = self.mirror.stall.pop(name, None) or self.mirror.cut.pop(name, len(content))
        self.wfile.write(content[first:end])
        self.wfile.flush()
        self.mirror.sent[name] = self.mirror.sent.get(name, 0) + end - first
        self.close_connection = end < len(content)
        if stalls:
            self.mirror.closed.wait()

    def _json(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _tree(folder: Path) -> list[dict[str, object]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "path": file.relative_to(folder).as_posix(),
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }
        for file in files
    ]
