"""`make lint` reports vulnerable packages and secrets, checked with the real tools."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import audit

HOLE = {
    "id": "PYSEC-2026-1",
    "summary": "A hole.",
    "modified": "2026-01-01T00:00:00Z",
    "aliases": ["CVE-2026-1"],
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "holey"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2"}]}],
        }
    ],
}


@pytest.fixture
def service() -> Iterator[list[str]]:
    """Flags for a service like osv.dev that knows one vulnerability."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = {"vulns": [HOLE]} if asked["package"]["name"] == "holey" else {}
            body = json.dumps(known).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ["--vulnerability-service=osv", f"--osv-url=http://127.0.0.1:{server.server_port}/q"]
    server.shutdown()


def pinned(folder: Path, *lines: str) -> Path:
    made = folder / "constraints.txt"
    made.write_text("".join(f"{line}\n" for line in lines))
    return made


def test_only_known_vulnerabilities_are_found(tmp_path: Path, service: list[str]) -> None:
    both = pinned(tmp_path, "sound==1.0", "holey==1.1")
    found, remarks = audit.vulnerabilities(both, *service)
    assert remarks == []
    (hole,) = found
    assert "holey 1.1" in hole
    assert "CVE-2026-1" in hole
    assert "fixed in 1.2" in hole
    assert audit.vulnerabilities(pinned(tmp_path, "sound==1.0"), *service) == ([], [])


def test_an_unreachable_service_is_reported_and_does_not_fail(tmp_path: Path) -> None:
    nobody = ["--vulnerability-service=osv", "--osv-url=http://127.0.0.1:9/q"]
    found, remarks = audit.vulnerabilities(pinned(tmp_path, "holey==1.1"), *nobody)
    assert found == []
    assert "was not audited" in remarks[0]


def test_an_invalid_list_is_not_called_clean(tmp_path: Path) -> None:
    found, remarks = audit.vulnerabilities(tmp_path / "missing.txt")
    assert found or "was not audited" in remarks[0]


def test_a_secret_is_found_and_a_revision_is_not(tmp_path: Path) -> None:
    token = "hf_" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3x"  # pragma: allowlist secret
    (tmp_path / "a.py").write_text(f'token = "{token}"\nREVISION = "{"0a" * 20}"\n')
    (tmp_path / "b.pem").write_text("-----BEGIN RSA PRIVATE KEY-----\n")  # pragma: allowlist secret
    found = audit.secrets(tmp_path, ["a.py", "b.pem"])
    assert {one.rpartition(": ")[0].partition(": ")[0] for one in found} == {"a.py:1", "b.pem:1"}
