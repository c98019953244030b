"""Serve the Hugging Face Hub's protocol on this machine, with faults on request.

Implements what the Hub's client and a reader of byte ranges use: repositories with commits, paged
tree listings, LFS metadata and git object names as checksums, gated access, and files that redirect
to signed URLs on another host, which expire. Files come from memory or from a folder, so that
archives of any size can be served:

    python tools/hub_server.py --root FOLDER --repo agibot-world/AgiBotWorld-Alpha
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40
LFS_BYTES = 1 << 20  # larger files are stored in LFS on the Hub
PAGE = 50  # entries of a listing
CHUNK = 1 << 18


@dataclass
class Repository:
    """Files by path, in memory or on disk; ``gated``: only ``Hub.licensed`` tokens may read."""

    files: dict[str, bytes | Path]
    kind: str = "dataset"
    commits: tuple[str, ...] = (COMMIT,)
    gated: bool = False
    digests: dict[str, str] = field(default_factory=dict)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        file = self.files[path]
        return len(file) if isinstance(file, bytes) else file.stat().st_size

    def sha256(self, path: str) -> str:
        """Return the digest of a file's content, computed once."""
        if path not in self.digests:
            file = self.files[path]
            if isinstance(file, bytes):
                self.digests[path] = hashlib.sha256(file).hexdigest()
            else:
                with file.open("rb") as stream:
                    self.digests[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self.digests[path]

    def entry(self, path: str) -> dict[str, Any]:
        """Return a file's entry in the tree listing."""
        size, file = self.size(path), self.files[path]
        if size > LFS_BYTES or isinstance(file, Path):
            sha = self.sha256(path)
            lfs = {"oid": sha, "size": size, "pointerSize": 135}
            return {"type": "file", "path": path, "size": size, "oid": sha[:40], "lfs": lfs}
        oid = hashlib.sha1(b"blob %d\0" % size + file, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": path, "size": size, "oid": oid}

    def etag(self, path: str) -> str:
        """Return the file's ETag on the Hub: the LFS digest, else the git object name."""
        entry = self.entry(path)
        return str(entry.get("lfs", entry)["oid"])


@dataclass
class Faults:
    """Faults of file downloads; counters count down."""

    status: int = 0  # answer this ...
    answers: int = 0  # ... to this many download requests
    refusal: tuple[int, str] | None = None  # status and X-Error-Code of every response
    cut_after: int = 0  # bytes after which a connection is cut ...
    cuts: int = 0  # ... this many times
    stalls: int = 0  # responses that stop half way and stay open
    longer: int = 0  # bytes by which the size is overstated
    etag: str = ""  # a different ETag from now on
    ignore_ranges: bool = False
    expire: int = 0  # signed URLs that have expired when they are used
    bytes_per_second: float = 0  # per connection; 0: no limit


class HubServer(ThreadingHTTPServer):
    """The Hub and its CDN in one.

    ``seen``: the requests; ``sent``: bytes sent by path; ``connections``: their number.
    """

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Repository], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repositories = dict(repositories)
        self.faults = Faults()
        self.tokens = {
            "hf_good": True,
            "hf_unlicensed": False,
        }  # valid tokens: with licence or without
        self.seen: list[tuple[str, str, str | None]] = []
        self.sent: Counter[str] = Counter()
        self.connections = 0
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        """The URL of the host that sends files: another name of this machine."""
        return f"http://localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, which is common here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, b"{}", X_Error_Code=code, X_Error_Message=message)

    def _fault(self, name: str) -> bool:
        """Return whether a counted fault happens now, and count it."""
        with self.server.lock:
            left = getattr(self.server.faults, name)
            setattr(self.server.faults, name, max(left - 1, 0))
        return bool(left)

    def do_HEAD(self) -> None:
        """Answer as GET does, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer an API, redirect or download request."""
        url = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
        with self.server.lock:
            self.server.seen.append((self.command, path, self.headers.get("Authorization")))
        if self.server.faults.refusal:
            return self._refuse(*self.server.faults.refusal, "refused by the test")
        if path.startswith("/cdn/"):
            return self._send(path.removeprefix("/cdn/"))
        api = re.fullmatch(
            r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(tree|revision)/(.+)|/(auth-check))?", path
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            kind, repo_id = api[1], api[2]
            revision, _, folder = (api[4] or "main").partition("/")
        elif file:
            kind, repo_id, revision = "dataset" if file[1] else "model", file[2], file[3]
        else:
            return self._refuse(404, "RepoNotFound", "no such path")
        repository = self.server.repositories.get(repo_id)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if repository is None or repository.kind != kind:
            return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if revision not in ("main", *repository.commits):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit = repository.commits[-1] if revision == "main" else revision
        if api and api[3] == "tree":
            return self._tree(repository, folder, query)
        may_read = not repository.gated or self.server.tokens.get(token, False)
        if api and api[5] and may_read:
            return self._json({})
        if api and not api[5]:
            siblings = [{"rfilename": name} for name in repository.files]
            info = {
                "id": repo_id,
                "sha": commit,
                "siblings": siblings,
                "private": False,
                "gated": repository.gated,
                "downloads": 0,
                "likes": 0,
                "tags": [],
            }
            return self._json(info)
        if not may_read:
            status = 403 if token else 401
            return self._refuse(status, "GatedRepo", f"Access to {repo_id} is restricted")
        assert file is not None
        if file[4] not in repository.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._resolve(repo_id, repository, file[4], commit)

    def _json(self, value: Any, **headers: str) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _tree(self, repository: Repository, folder: str, query: dict[str, list[str]]) -> None:
        inside = f"{folder}/" if folder else ""
        found = [p for p in sorted(repository.files) if p.startswith(inside)]
        if folder and not found:
            return self._refuse(404, "EntryNotFound", f"{folder} does not exist")
        if query.get("recursive") == ["True"] or query.get("recursive") == ["true"]:
            names = found
        else:
            names = list(dict.fromkeys(inside + p[len(inside) :].split("/")[0] for p in found))
        start = int(query.get("cursor", ["0"])[0])
        page = [
            repository.entry(name)
            if name in repository.files
            else {"type": "directory", "path": name, "oid": "d" * 40, "size": 0}
            for name in names[start : start + PAGE]
        ]
        headers = {}
        if start + PAGE < len(names):
            rest = {**{k: v[0] for k, v in query.items()}, "cursor": str(start + PAGE)}
            address = f"{self.server.endpoint}{self.path.split('?')[0]}"
            headers["Link"] = f'<{address}?{urllib.parse.urlencode(rest)}>; rel="next"'
        return self._json(page, **headers)

    def _resolve(self, repo_id: str, repository: Repository, path: str, commit: str) -> None:
        address = f"{self.server.cdn}/cdn/{repo_id}/{urllib.parse.quote(path)}?signature=valid"
        size = repository.size(path) + self.server.faults.longer
        self._answer(
            302,
            Location=address,
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{repository.etag(path)}"',
            X_Linked_Size=str(size),
            ETag=f'"{repository.etag(path)}"',
        )

    def _send(self, name: str) -> None:
        """Send a file, or a range of it."""
        owner, repo, path = name.split("/", 2)
        repository, faults = self.server.repositories[f"{owner}/{repo}"], self.server.faults
        if self.headers.get("Authorization"):
            return self._answer(400, b"a token was sent to the wrong host")
        if self._fault("expire"):
            return self._answer(403, b"Request has expired")
        if self._fault("answers"):
            return self._answer(faults.status, Retry_After="0")
        size = repository.size(path) + faults.longer
        start, stop = 0, size
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        partial = requested is not None and not faults.ignore_ranges
        if requested is not None and partial:
            start = int(requested[1])
            stop = min(int(requested[2]) + 1 if requested[2] else size, size)
            if start >= size:
                return self._answer(416, Content_Range=f"bytes */{size}")
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(stop - start))
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("ETag", faults.etag or f'"cdn-{repository.etag(path)[:16]}"')
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = faults.cut_after if faults.cut_after and self._fault("cuts") else 0
        stall = self._fault("stalls")
        began, sent = time.monotonic(), 0
        for chunk in self._chunks(repository.files[path], start, stop):
            if cut and sent + len(chunk) > cut:
                self.wfile.write(chunk[: cut - sent])
                self.close_connection = True
                return None
            if stall and sent + len(chunk) >= (stop - start) / 2:
                time.sleep(20)
                self.close_connection = True
                return None
            self.wfile.write(chunk)
            sent += len(chunk)
            with self.server.lock:
                self.server.sent[path] += len(chunk)
            if faults.bytes_per_second:
                time.sleep(max(0.0, began + sent / faults.bytes_per_second - time.monotonic()))
        if sent < stop - start:  # the size was overstated
            self.close_connection = True
        return None

    def _chunks(self, file: bytes | Path, start: int, stop: int) -> Iterator[bytes]:
        if isinstance(file, bytes):
            for at in range(start, min(stop, len(file)), CHUNK):
                yield file[at : min(at + CHUNK, stop)]
            return
        with file.open("rb") as stream:
            stream.seek(start)
            while start < stop and (chunk := stream.read(min(CHUNK, stop - start))):
                start += len(chunk)
                yield chunk


def folder_files(root: Path) -> dict[str, bytes | Path]:
    """Return the files below ``root``: JSON as bytes, others as paths."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.suffix == ".json" else path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }


@contextmanager
def serving(server: HubServer) -> Iterator[HubServer]:
    """Run the server in the background until the block ends."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def client_environment(server: HubServer, home: Path, **more: str) -> dict[str, str]:
    """Return this process's environment, but with a Hub client's settings for ``server``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "V2W_", "JOB_"))}
    return {
        **kept,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        **more,
    }


def main() -> None:
    """Serve a folder until interrupted."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--root", type=Path, required=True)
    flags.add_argument("--repo", default="agibot-world/AgiBotWorld-Alpha")
    flags.add_argument("--port", type=int, default=0)
    args = flags.parse_args()
    server = HubServer({args.repo: Repository(folder_files(args.root))}, args.port)
    print(f"HF_ENDPOINT={server.endpoint}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
