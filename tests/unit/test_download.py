"""The download stage against a server that speaks the Hub's protocol, on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from video2world_preprocess import download
from video2world_preprocess.download import parser, repositories
from video2world_preprocess.stage import UserError

PREDICT = "nvidia/Cosmos-Predict2-2B-Video2World"
T5 = "google-t5/t5-11b"
FILES = {
    PREDICT: {
        "model-720p-16fps.pt": b"dit 720 16" * 1000, "model-480p-16fps.pt": b"not asked for",
        "tokenizer/tokenizer.pth": b"vae", "README.md": b"readme",
    },
    T5: {
        "config.json": b"{}", "pytorch_model.bin": b"t5", "spiece.model": b"sp",
        "tf_model.h5": b"never",
    },
}  # fmt: skip


def _oid(body):
    """git's name of a file's content, which the Hub gives as ETag."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    """The part of the Hub that snapshot_download talks to. ``server.status`` forces an answer."""

    def log_message(self, *args):
        pass

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        if self.server.status:
            code, error = self.server.status
            return self._answer(code, b"{}", X_Error_Code=error, X_Error_Message="no")
        if match := re.fullmatch(r"/api/models/(.+?)/(tree|revision)/(\w+)(\?.*)?", self.path):
            files = self.server.files[match[1]]
            tree = [{"type": "file", "path": name, "size": len(body), "oid": _oid(body)}
                    for name, body in files.items()]  # fmt: skip
            info = {"id": match[1], "sha": match[3], "siblings": [{"rfilename": n} for n in files]}
            body = json.dumps(tree if match[2] == "tree" else info).encode()
            return self._answer(200, body, Content_Type="application/json")
        if match := re.fullmatch(r"/(.+?/.+?)/resolve/(\w+)/(.+)", self.path):
            body = self.server.files[match[1]].get(match[3])
            if body is None:
                return self._answer(404, X_Error_Code="EntryNotFound")
            return self._answer(200, body, ETag=f'"{_oid(body)}"', X_Repo_Commit=match[2])
        return self._answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.seen, server.status = [], None
    server.files = {repo: dict(files) for repo, files in FILES.items()}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(cwd: Path, endpoint: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "V2W_"))}
    inherited = {k: v for k, v in inherited.items() if not k.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-m", "video2world_preprocess.download", "--model_sizes", "2B", *flags],
        cwd=cwd, text=True, capture_output=True, timeout=120,
        env={**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(cwd / "hf"),
             "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2", **env},
    )  # fmt: skip


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def tree(folder: Path):
    files = (p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts)
    return {str(p.relative_to(folder)) for p in files}


def test_downloads_the_pinned_files_once_then_resumes_and_explains(tmp_path, hub):
    done = fetch(tmp_path, address(hub), HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    root = tmp_path / "checkpoints"
    assert tree(root) == {
        f"{PREDICT}/model-720p-16fps.pt", f"{PREDICT}/tokenizer/tokenizer.pth",
        f"{T5}/config.json", f"{T5}/pytorch_model.bin", f"{T5}/spiece.model",
    }  # fmt: skip
    weights = root / PREDICT / "model-720p-16fps.pt"
    assert weights.read_bytes() == FILES[PREDICT][weights.name]
    asked = [entry for entry in hub.seen if "/nvidia/" in entry[1] or "/google-t5/" in entry[1]]
    paths = [path for _, path, _ in asked]
    assert any("f50c09f5d8ab133a90cac3f4886a6471e9ba3f18" in path for path in paths)
    assert not any("main" in path or "tf_model" in path for path in paths)
    assert {token for _, _, token in asked} == {"Bearer hf_secret"}
    assert "hf_secret" not in done.stdout + done.stderr

    hub.seen.clear()  # a second run asks for nothing it has
    (root / T5 / "spiece.model").unlink()
    assert fetch(tmp_path, address(hub)).returncode == 0
    fetched = [path for command, path, _ in hub.seen if command == "GET" and "/resolve/" in path]
    assert [path.rsplit("/", 1)[1] for path in fetched] == ["spiece.model"]

    # everything there: no network needed; something missing: said by name
    assert fetch(tmp_path, address(hub), HF_HUB_OFFLINE="1").returncode == 0
    (root / T5 / "config.json").unlink()
    offline = fetch(tmp_path, address(hub), HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "t5-11b is not complete" in offline.stderr
    assert "Traceback" not in offline.stderr


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ((401, "GatedRepo"), 2, "is gated and no token is set.*accept the licence"),
        ((403, "GatedRepo"), 2, "is gated"),
        ((401, ""), 2, "401.*read token"),
        ((404, "RepoNotFound"), 2, "not on the Hub"),
        ((404, "RevisionNotFound"), 2, "not on the Hub"),
        ((418, ""), 1, "418"),
    ],
)
def test_refusals_are_explained(tmp_path, hub, status, code, message):
    hub.status = status
    done = fetch(tmp_path, address(hub))
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, done.stderr, re.S)
    assert "Traceback" not in done.stderr


def test_a_gate_found_half_way_is_still_called_a_gate(tmp_path, hub):
    assert fetch(tmp_path, address(hub)).returncode == 0
    (tmp_path / "checkpoints" / PREDICT / "tokenizer/tokenizer.pth").unlink()
    hub.status = (403, "GatedRepo")
    done = fetch(tmp_path, address(hub))
    assert done.returncode == 2, done.stderr
    assert f"{PREDICT} is gated" in done.stderr


@pytest.mark.slow  # the Hub's client tries five times
def test_an_unreachable_hub_is_explained_and_worth_a_retry(tmp_path, hub):
    hub.shutdown()
    hub.server_close()
    done = fetch(tmp_path, address(hub))
    assert done.returncode == 1, done.stderr
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mirror_without_a_needed_file_is_explained(tmp_path, hub):
    del hub.files[PREDICT]["tokenizer/tokenizer.pth"]
    done = fetch(tmp_path, address(hub))
    assert done.returncode != 0
    assert "tokenizer/tokenizer.pth missing" in done.stderr


def test_flags_choose_the_files():
    def chosen(*flags):
        return {r.repo_id: r.files for r in repositories(parser().parse_args(flags))}

    both = chosen()
    assert list(both) == [PREDICT, PREDICT.replace("2B", "14B"), T5]
    assert both[PREDICT] == ("model-720p-16fps.pt", "tokenizer/tokenizer.pth")
    one = chosen("--model_sizes", "14B", "--fps", "10", "16", "--resolution", "480", "720",
                 "--natten", "--guardrail")  # fmt: skip
    assert list(one)[2:] == ["nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"]
    assert set(one["nvidia/Cosmos-Predict2-14B-Video2World"]) == {
        "model-480p-10fps.pt", "model-480p-16fps.pt", "model-720p-10fps.pt",
        "model-720p-16fps.pt", "model-720p-10fps-natten.pt", "model-720p-16fps-natten.pt",
        "tokenizer/tokenizer.pth",
    }  # fmt: skip
    assert chosen("--model_sizes", "Tiny") == {}
    with pytest.raises(UserError, match="--natten"):
        chosen("--natten", "--resolution", "480")
    revisions = [r.revision for r in repositories(parser().parse_args(["--guardrail"]))]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)


def test_tiny_and_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V2W_INPUTS_HASH", "abc")
    assert download.main(["--model_sizes", "Tiny", "2B", "--dry-run"]) == 0
    assert f"{PREDICT}@f50c09f5d8ab" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("V2W_INPUTS_HASH", "abc")
    assert download.main(["--model_sizes", "Tiny"]) == 0
    assert tree(tmp_path / "checkpoints/video2world") == {
        "Cosmos-Predict2-Tiny-Video2World/tokenizer/config.json",
        *(f"t5-tiny/{name}" for name in (
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")),
    }  # fmt: skip
    assert download.main(["--model_sizes", "Tiny"]) == 0
    assert "nothing to do" in capsys.readouterr().out
