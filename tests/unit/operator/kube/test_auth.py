"""How a cluster's address and credentials are found, and that the operator's client uses them."""

import asyncio
import base64
import json
import os
import stat
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest
import yaml

from video2world_operator.controller.watches import _credentials
from video2world_operator.kube import auth
from video2world_operator.kube.auth import login
from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError, LoginFailed


def kubeconfig(user, server="http://127.0.0.1:1", context=None, **cluster):
    return {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"} | (context or {})}],
        "clusters": [{"name": "c", "cluster": {"server": server} | cluster}],
        "users": [{"name": "u", "user": user}],
    }


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a kubeconfig and point KUBECONFIG at it."""

    def write(config, name="config"):
        path = tmp_path / name
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(path))
        return path

    return write


def header():
    connection = asyncio.run(login())
    return asyncio.run(connection.configuration.get_api_key_with_prefix("BearerToken"))


def test_every_kind_of_user_in_a_kubeconfig_is_understood(written, tmp_path):
    written(kubeconfig({"token": "t1"}, context={"namespace": "team-a"}))
    assert header() == "Bearer t1"
    assert asyncio.run(login()).namespace == "team-a"
    (tmp_path / "token").write_text("t2")
    written(kubeconfig({"tokenFile": "token"}))  # relative to the kubeconfig
    assert header() == "Bearer t2"
    written(kubeconfig({"username": "jane", "password": "p"}))
    assert header() == "Basic " + base64.b64encode(b"jane:p").decode()
    assert asyncio.run(login()).namespace == "default"


def plugin(tmp_path, answer, code=0):
    path = tmp_path / "plugin"
    path.write_text(
        f"#!{sys.executable}\nprint({json.dumps(answer)!r})\nraise SystemExit({code})\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}


def credential(**status):
    return {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": status,
    }


def test_a_credential_plugin_is_run(written, tmp_path):
    written(kubeconfig(plugin(tmp_path, credential(token="of the plugin"))))
    assert header() == "Bearer of the plugin"


@pytest.mark.parametrize(
    ("answer", "code"), [(credential(token="t"), 1), ("nonsense", 0), (credential(), 0)]
)
def test_a_credential_plugin_that_fails_is_named(written, tmp_path, answer, code):
    written(kubeconfig(plugin(tmp_path, answer, code)))
    with pytest.raises(LoginFailed, match=f"returned no credentials: {tmp_path}/plugin"):
        asyncio.run(login())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "it is not a kubeconfig"),
        ("{", "expected"),
        (kubeconfig({}) | {"current-context": "there"}, "name there in .*contexts"),
        (kubeconfig({}) | {"clusters": []}, "name c in .*clusters"),
        (kubeconfig({}, server="https://a", **{"certificate-authority": "no"}), "File does not"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_explained(written, config, reason):
    written(config)
    with pytest.raises(LoginFailed, match=rf"the kubeconfig cannot be used \(.*{reason}"):
        asyncio.run(login())


def test_a_kubeconfig_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(LoginFailed, match=rf"no such file: {tmp_path}/none"):
        asyncio.run(login())
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LoginFailed, match="no cluster is configured: set KUBECONFIG"):
        asyncio.run(login())


def test_several_kubeconfigs_are_merged_and_missing_ones_skipped(written, tmp_path, monkeypatch):
    first = written(
        {"current-context": "here"} | {k: [] for k in ("contexts", "clusters", "users")}
    )
    second = written(kubeconfig({"token": "t"}), "second")
    paths = os.pathsep.join([str(first), str(tmp_path / "none"), str(second)])
    monkeypatch.setenv("KUBECONFIG", paths)
    assert header() == "Bearer t"


def test_kopf_gets_the_same_credentials(written):
    settings = {"insecure-skip-tls-verify": True, "proxy-url": "http://proxy:3128"}
    written(kubeconfig({"token": "t"}, server="https://api:6443", **settings))
    info = asyncio.run(_credentials(asyncio.run(login())))
    assert (info.server, info.proxy_url) == ("https://api:6443", "http://proxy:3128")
    assert (info.scheme, info.token, info.insecure) == ("Bearer", "t", True)


def test_a_proxy_of_the_environment_is_used_unless_the_server_is_excluded(written, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.1,.local")

    def proxy(server, **cluster):
        written(kubeconfig({}, server=server, **cluster))
        return asyncio.run(login()).configuration.proxy

    assert proxy("https://api.example:6443") == "http://proxy:3128"
    assert proxy("https://10.0.0.1:6443") is None
    assert proxy("https://api.local") is None
    assert proxy("http://api.example") is None
    other = {"proxy-url": "http://other:1"}
    assert proxy("https://api.example", **other) == "http://other:1"


def test_a_tls_server_name_is_taken_over(written):
    written(kubeconfig({}, server="https://1.2.3.4", **{"tls-server-name": "api.example"}))
    assert asyncio.run(login()).configuration.tls_server_name == "api.example"


@pytest.fixture
def service_account(tmp_path, monkeypatch):
    """Run as if in a pod: the folder of its service account."""
    for name, text in (("token", "first"), ("ca.crt", "CA"), ("namespace", "system\n")):
        (tmp_path / name).write_text(text)
    library = sys.modules["kubernetes.aio.config.incluster_config"]
    for module in (auth, library):
        monkeypatch.setattr(module, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(library, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return tmp_path


def test_a_pods_service_account_comes_before_a_kubeconfig(service_account, written):
    written(kubeconfig({"token": "t"}))
    connection = asyncio.run(login())
    assert connection.configuration.host == "https://[fd00::1]:443"
    assert connection.namespace == "system"
    assert header() == "bearer first"
    (service_account / "token").write_text("")
    with pytest.raises(LoginFailed, match=r"service account cannot be used .*empty"):
        asyncio.run(login())


class Server(BaseHTTPRequestHandler):
    """Accepts one token; every other is answered with 401."""

    accepted = ""
    seen: ClassVar[list[str]] = []

    def do_GET(self):
        self.seen.append(self.headers.get("Authorization"))
        code = 200 if self.seen[-1] == self.accepted else 401
        body = json.dumps({"path": self.path, "message": "expired"}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_an_expired_token_is_renewed_while_requests_are_sent(written):
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        path = written(kubeconfig({"token": "old"}, server=address))
        Server.accepted, Server.seen[:] = "Bearer old", []

        async def story():
            async with ApiClient() as client:
                await client.get("/a", labelSelector="x=1,y in (a b)")
                Server.accepted = "Bearer new"
                path.write_text(yaml.safe_dump(kubeconfig({"token": "new"}, server=address)))
                answers = await asyncio.gather(*(client.get(f"/{n}") for n in range(20)))
                Server.accepted = "Bearer other"
                with pytest.raises(ApiError, match="expired"):
                    await client.get("/b")
                path.unlink()
                with pytest.raises(OSError, match=r"the credentials have expired: .*no such file"):
                    await client.get("/c")
                return [answer["path"] for answer in answers]

        assert asyncio.run(story()) == [f"/{n}" for n in range(20)]
        assert Server.seen.count("Bearer new") >= 20
        server.shutdown()
