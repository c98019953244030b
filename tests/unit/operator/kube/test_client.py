"""Answers of an API server, or of a proxy before it, that are not what was asked for."""

import asyncio
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from kubernetes.aio.client import Configuration

from control_plane.api import Api
from control_plane.api import ApiError as Refused
from video2world_operator.kube import client as client_module
from video2world_operator.kube.auth import Connection
from video2world_operator.kube.client import ApiClient
from video2world_operator.preflight.crd_version import Definition

CRD_PATH = "apis/video2world.dev/v1alpha1"


@contextmanager
def answering(answers):
    """Serve ``answers``: path -> list of (code, content type, body, headers), the last for good."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            left = answers[self.path.partition("?")[0]]
            code, content_type, body, headers = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch):
    monkeypatch.setattr(client_module, "_DELAYS", (0.01, 0.01))


def with_client(url, use):
    async def connect():
        return Connection(Configuration(host=url))

    async def both():
        async with ApiClient(connect) as client:
            return await use(client)

    return asyncio.run(both())


def served(value, content_type="application/json", code=200, **headers):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return code, content_type, body, headers


@pytest.mark.parametrize("body", [b"", b"{", b"<html>sign in</html>"])
def test_an_answer_that_is_not_json_is_asked_for_again(body):
    with answering({"/api": [served(body), served({"kind": "APIVersions"})]}) as (url, requests):
        assert with_client(url, lambda client: client.get("/api")) == {"kind": "APIVersions"}
        assert len(requests) == 2


def test_a_server_that_never_answers_json_counts_as_unreachable():
    with answering({"/api": [served(b"<html>")]}) as (url, requests):
        with pytest.raises(OSError, match="the answer is not JSON"):
            with_client(url, lambda client: client.get("/api"))
        assert len(requests) == 3


def test_a_crd_that_is_removed_while_its_schema_is_fetched():
    """Its document is empty then; the same CRD may be installed again under the same hash."""
    index = {"paths": {CRD_PATH: {"serverRelativeURL": f"/openapi/v3/{CRD_PATH}?hash=1"}}}
    kind = {"group": "video2world.dev", "version": "v1alpha1", "kind": "Video2WorldPostTrain"}
    schema = {
        "x-kubernetes-group-version-kind": [kind],
        "x-kubernetes-preserve-unknown-fields": True,
    }
    document = {"components": {"schemas": {"a": schema}}}

    async def check_twice(client):
        definition = Definition(client)
        await definition.check()
        first = definition.absent
        await definition.check()
        return first, definition.absent

    answers = {
        "/openapi/v3": [served(index, "text/plain")],
        f"/openapi/v3/{CRD_PATH}": [served(b"", "text/plain"), served(document)],
    }
    with answering(answers) as (url, _):
        assert with_client(url, check_twice) == (True, False)


def test_an_index_of_schemas_that_is_not_json_counts_as_unreachable():
    with (
        answering({"/openapi/v3": [served(b"<html>", "text/plain")]}) as (url, _),
        pytest.raises(OSError, match="/openapi/v3 is not JSON"),
    ):
        with_client(url, lambda client: Definition(client).check())


def test_the_test_clients_obey_retry_after():
    """The API server asks for it while it starts to serve a changed CRD."""
    wait = served(b"apiserver is shutting down", "text/plain", 503, **{"Retry-After": "0"})
    broken = served(b"broken", "text/plain", 503)
    answers = {"/a": [wait, wait, served({"kind": "A"})], "/b": [broken], "/c": [wait]}
    with answering(answers) as (url, requests):
        api = Api(url, "")
        assert api.post("/a", {}) == {"kind": "A"}
        with pytest.raises(Refused, match="broken"):
            api.get("/b")
        with pytest.raises(Refused, match="shutting down"):
            api.get("/c")
    assert [requests.count(path) for path in ("/a", "/b", "/c")] == [3, 1, 10]
