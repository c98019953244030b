"""Tests for the download stage against a local server with the Hub's protocol."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hub_server import HubServer, Repository, serving
from video2world_common.exit_codes import UserError
from video2world_preprocess import download
from video2world_preprocess.download import parser, repositories

PREDICT = "nvidia/Cosmos-Predict2-2B-Video2World"
ACTIONS = "nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"
T5 = "google-t5/t5-11b"
FILES = {
    PREDICT: {
        "model-720p-16fps.pt": b"dit 720 16" * 1000,
        "model-480p-16fps.pt": b"not asked for",
        "tokenizer/tokenizer.pth": b"vae",
        "README.md": b"readme",
    },
    T5: {
        "config.json": b"{}",
        "pytorch_model.bin": b"t5",
        "spiece.model": b"sp",
        "tf_model.h5": b"never",
    },
}


REVISIONS = {r.repo_id: r.revision for r in repositories(parser().parse_args([]))}


@pytest.fixture
def hub():
    pinned = {
        repo: Repository(dict(files), kind="model", commits=(REVISIONS[repo],))
        for repo, files in FILES.items()
    }
    server = HubServer(pinned)
    server.tokens["hf_secret"] = True
    with serving(server):
        yield server


def fetch(cwd: Path, endpoint: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "V2W_"))}
    inherited = {k: v for k, v in inherited.items() if not k.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-m", "video2world_preprocess.download", "--model_sizes", "2B", *flags],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=120,
        env={
            **inherited,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cwd / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            **env,
        },
    )


def tree(folder: Path):
    """Return the files except our own (hidden ones and reports)."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {str(p) for p in files if not any(x.startswith((".", "report-")) for x in p.parts)}


def test_downloads_the_pinned_files_once_then_resumes_and_explains(tmp_path, hub):
    done = fetch(tmp_path, hub.endpoint, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    root = tmp_path / "checkpoints"
    assert tree(root) == {
        f"{PREDICT}/model-720p-16fps.pt",
        f"{PREDICT}/tokenizer/tokenizer.pth",
        f"{T5}/config.json",
        f"{T5}/pytorch_model.bin",
        f"{T5}/spiece.model",
    }
    weights = root / PREDICT / "model-720p-16fps.pt"
    assert weights.read_bytes() == FILES[PREDICT][weights.name]
    sent = [entry for entry in hub.seen if entry[1].startswith("/cdn/")]
    assert {token for *_, token in sent} == {None}  # only the Hub receives the token
    asked = [e for e in hub.seen if e not in sent and ("/nvidia/" in e[1] or "/google-t5/" in e[1])]
    paths = [path for _, path, _ in asked]
    assert any("f50c09f5d8ab133a90cac3f4886a6471e9ba3f18" in path for path in paths)
    assert not any("main" in path or "tf_model" in path for path in paths)
    assert {token for _, _, token in asked} == {"Bearer hf_secret"}
    assert "hf_secret" not in done.stdout + done.stderr

    hub.seen.clear()  # a second run sends no request, and restores lost or damaged files
    assert fetch(tmp_path, hub.endpoint).returncode == 0
    assert hub.seen == []
    (root / T5 / "spiece.model").unlink()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert fetch(tmp_path, hub.endpoint).returncode == 0
    fetched = {path.rsplit("/", 1)[1] for _, path, _ in hub.seen if path.startswith("/cdn/")}
    assert fetched == {"spiece.model", weights.name}
    assert weights.read_bytes() == FILES[PREDICT][weights.name]
    report = json.loads((root / "report-download.json").read_text())
    assert report["counts"]["bytes_kept"] == sum(
        len(FILES[repo][name])
        for repo in FILES
        for name in FILES[repo]
        if f"{repo}/{name}" in tree(root)
    )

    # offline: complete files suffice, a missing file is named
    assert fetch(tmp_path, hub.endpoint, HF_HUB_OFFLINE="1").returncode == 0
    (root / T5 / "config.json").unlink()
    offline = fetch(tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "t5-11b is incomplete" in offline.stderr
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
    hub.faults.refusal = status
    done = fetch(tmp_path, hub.endpoint)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, done.stderr, re.S)
    assert "Traceback" not in done.stderr


def test_losing_access_during_a_download_is_reported_as_gated(tmp_path, hub):
    assert fetch(tmp_path, hub.endpoint).returncode == 0
    (tmp_path / "checkpoints" / PREDICT / "tokenizer/tokenizer.pth").unlink()
    hub.faults.refusal = (403, "GatedRepo")
    done = fetch(tmp_path, hub.endpoint)
    assert done.returncode == 2, done.stderr
    assert f"{PREDICT} is gated" in done.stderr


@pytest.mark.slow  # the Hub's client tries five times
def test_an_unreachable_hub_is_explained_and_retried(tmp_path, hub):
    hub.shutdown()
    hub.server_close()
    done = fetch(tmp_path, hub.endpoint)
    assert done.returncode == 1, done.stderr
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mirror_without_a_needed_file_is_explained(tmp_path, hub):
    del hub.repositories[PREDICT].files["tokenizer/tokenizer.pth"]
    done = fetch(tmp_path, hub.endpoint)
    assert done.returncode != 0
    assert "tokenizer/tokenizer.pth missing" in done.stderr


def test_a_file_that_is_damaged_twice_is_not_kept(tmp_path, hub):
    repository = hub.repositories[PREDICT]
    repository.files["tokenizer/tokenizer.pth"] = bytes(2 << 20)
    repository.digests["tokenizer/tokenizer.pth"] = "0" * 64
    done = fetch(tmp_path, hub.endpoint)
    assert done.returncode == 1, done.stderr
    assert "tokenizer/tokenizer.pth did not have the Hub's checksum twice" in done.stderr
    assert not (tmp_path / "checkpoints" / PREDICT / "tokenizer/tokenizer.pth").exists()


@pytest.mark.slow
def test_two_resources_fetch_the_weights_once(tmp_path, hub):
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda _: fetch(tmp_path, hub.endpoint), range(2)))
    assert [process.returncode for process in done] == [0, 0], [p.stderr for p in done]
    sizes = {name: len(body) for files in FILES.values() for name, body in files.items()}
    assert all(hub.sent[name] <= sizes[name] for name in hub.sent)


def test_the_action_conditioned_network_needs_its_weights_and_the_vae(tmp_path):
    vae = {**FILES[PREDICT], "config.json": b"{}"}
    conditioned = {"model-480p-4fps.pt": b"dit 480 4" * 1000, "README.md": b"readme"}
    pinned = Repository(vae, kind="model", commits=(REVISIONS[PREDICT],))
    server = HubServer({PREDICT: pinned, ACTIONS: Repository(conditioned, kind="model")})
    with serving(server):
        done = fetch(tmp_path, server.endpoint, "--model_types", "sample_action_conditioned")
        assert done.returncode == 0, done.stderr
        root = tmp_path / "checkpoints"
        assert tree(root) == {
            f"{PREDICT}/tokenizer/tokenizer.pth",
            f"{ACTIONS}/model-480p-4fps.pt",
        }
        weights = root / ACTIONS / "model-480p-4fps.pt"
        assert weights.read_bytes() == conditioned[weights.name]
        weights.write_bytes(b"damaged")
        again = fetch(tmp_path, server.endpoint, "--model_types", "sample_action_conditioned")
        assert again.returncode == 0, again.stderr
        assert weights.read_bytes() == conditioned[weights.name]


def test_flags_choose_the_files():
    def chosen(*flags):
        return {r.repo_id: r.files for r in repositories(parser().parse_args(flags))}

    both = chosen()
    assert list(both) == [PREDICT, PREDICT.replace("2B", "14B"), T5]
    assert both[PREDICT] == ("model-720p-16fps.pt", "tokenizer/tokenizer.pth")
    one = chosen(
        "--model_sizes",
        "14B",
        "--fps",
        "10",
        "16",
        "--resolution",
        "480",
        "720",
        "--natten",
        "--guardrail",
    )
    assert list(one)[2:] == ["nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"]
    assert set(one["nvidia/Cosmos-Predict2-14B-Video2World"]) == {
        "model-480p-10fps.pt",
        "model-480p-16fps.pt",
        "model-720p-10fps.pt",
        "model-720p-16fps.pt",
        "model-720p-10fps-natten.pt",
        "model-720p-16fps-natten.pt",
        "tokenizer/tokenizer.pth",
    }
    sparse = chosen("--model_sizes", "2B", "--natten_only")
    assert sparse[PREDICT] == ("model-720p-16fps-natten.pt", "tokenizer/tokenizer.pth")
    assert chosen("--model_sizes", "Tiny") == {}
    kinds = ("--model_types", "video2world", "sample_action_conditioned")
    assert chosen(*kinds) == both | {ACTIONS: ("model-480p-4fps.pt",)}
    assert chosen("--model_sizes", "14B", *kinds[:1], *kinds[2:]) == {}
    for flag in ("--natten", "--natten_only"):
        with pytest.raises(UserError, match=f"{flag}: "):
            chosen(flag, "--resolution", "480")
    revisions = [r.revision for r in repositories(parser().parse_args(["--guardrail"]))]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)


@pytest.mark.parametrize(
    ("name", "record", "wanted", "expected"),
    [
        ("w.pt", {"run": {}, "attention_pattern": "dense"}, "sparse", "with dense attention; use"),
        ("w.pt", {"run": {}, "attention_pattern": "sparse"}, "dense", "use Sparse, or other"),
        ("w.pt", {"run": {}}, "sparse", "with dense attention"),  # from before sparse training
        ("model-720p-16fps.pt", None, "sparse", "with dense attention"),
        ("model-720p-16fps-natten.pt", None, "sparse", ""),
        ("w.pt", {"run": {}, "attention_pattern": "sparse"}, "sparse", ""),
        ("w.pt", None, "sparse", ""),  # nothing is known of it
    ],
)
def test_weights_of_another_pattern_are_refused_before_a_gpu_is_held(
    tmp_path, monkeypatch, capsys, name, record, wanted, expected
):
    monkeypatch.chdir(tmp_path)
    if record is not None:
        Path("config.json").write_text(json.dumps(record))
    flags = ["--weights", name, "--attention_pattern", wanted, "--dry-run"]
    assert download.main(["--model_sizes", "Tiny", *flags]) == (2 if expected else 0)
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "run", "wanted", "expected"),
    [
        ("w.pt", {"action_conditioning": "per_frame"}, "none", "use actions: {variant: PerFrame}"),
        ("w.pt", {"action_conditioning": "per_frame"}, "per_clip", "{variant: PerFrame}"),
        ("w.pt", {"action_conditioning": "per_clip"}, "per_frame", "{variant: PerClip}"),
        ("model-480p-4fps.pt", None, "per_frame", "{variant: PerClip}, or other weights"),
        ("w.pt", {"action_conditioning": "per_clip"}, "per_clip", ""),
        ("w.pt", {}, "per_frame", ""),  # embedders are added to a network without actions
        ("model-480p-16fps.pt", None, "per_clip", ""),
    ],
)
def test_weights_with_other_actions_are_refused_before_a_gpu_is_held(
    tmp_path, monkeypatch, capsys, name, run, wanted, expected
):
    monkeypatch.chdir(tmp_path)
    if run is not None:
        Path("config.json").write_text(json.dumps({"run": run}))
    flags = ["--weights", name, "--action_conditioning", wanted, "--dry-run"]
    assert download.main(["--model_sizes", "Tiny", *flags]) == (2 if expected else 0)
    assert expected in capsys.readouterr().err


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
        *(
            f"t5-tiny/{name}"
            for name in (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            )
        ),
    }
    assert download.main(["--model_sizes", "Tiny"]) == 0
    assert "nothing to do" in capsys.readouterr().out
