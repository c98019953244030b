"""Tests for LeRobotDatasets on a Hub: what is downloaded, what is kept, and what interrupts it."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import (
    COMMIT,
    Faults,
    HubServer,
    Repository,
    client_environment,
    folder_files,
    serving,
)
from lerobot_datasets import TOP, WRIST, Dataset
from lerobot_runs import FLAGS, windows
from video2world_preprocess.actions.sequence import read_actions

REPO = "robots/toy"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v3.0 dataset of two cameras; three files of the first."""
    lengths, tasks = (24, 18, 30, 9, 27), ["push cube"] * 5
    root = tmp_path_factory.mktemp("toy")
    return Dataset(root, lengths=lengths, tasks=tasks, cameras={TOP: "h264", WRIST: "h264"}).write()


@pytest.fixture
def hub(toy: Path) -> Iterator[HubServer]:
    with serving(HubServer({REPO: Repository(folder_files(toy), gated=True)})) as server:
        yield server


def start(hub: HubServer, volume: Path, *flags: str, **more: str) -> subprocess.Popen[str]:
    source = () if "--repo_id" in flags else ("--repo_id", REPO)
    command = [sys.executable, "-m", "video2world_preprocess.lerobot", *source]
    return subprocess.Popen(
        [*command, "--camera", "top", "--dataset_dir", "out", *FLAGS, *flags],
        cwd=volume,
        env=client_environment(hub, volume / ".hf", **({"HF_TOKEN": "hf_good"} | more)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(hub: HubServer, volume: Path, *flags: str, **more: str) -> tuple[int, str, str]:
    process = start(hub, volume, *flags, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def counts(volume: Path) -> dict:
    return json.loads((volume / "out/report.json").read_text())["counts"]


def test_only_the_cameras_files_and_metadata_are_transferred(
    hub: HubServer, toy: Path, tmp_path: Path
) -> None:
    code, _, err = run(hub, tmp_path, "--val_episode_ids", "4")
    assert code == 0, err
    assert windows(folder=tmp_path / "out") == {0: 24, 1: 18, 2: 30, 3: 9, 4: 27}
    wanted = [toy / "meta/info.json", *toy.rglob("meta/episodes/*/*"), *toy.rglob(f"{TOP}/*/*")]
    assert set(hub.sent) == {str(path.relative_to(toy)) for path in wanted}
    size = sum(path.stat().st_size for path in wanted)
    assert sum(hub.sent.values()) == size == counts(tmp_path)["transferred_bytes"]
    assert counts(tmp_path)["commit"] == COMMIT
    assert not (tmp_path / "out/.lerobot").exists()


def test_only_the_files_of_the_wanted_episodes_are_transferred(
    hub: HubServer, tmp_path: Path
) -> None:
    code, _, err = run(hub, tmp_path, "--episode_ids", "3", "--revision", COMMIT)
    assert (code, windows(folder=tmp_path / "out")) == (0, {3: 9}), err
    assert [path for path in hub.sent if path.endswith(".mp4")] == [
        f"videos/{TOP}/chunk-000/file-001.mp4"
    ]


def test_actions_are_read_from_data_files_that_are_transferred_once(
    hub: HubServer, toy: Path, tmp_path: Path
) -> None:
    flags = ("--actions", "observation.state", "--action_names", "observation.state_1")
    code, _, err = run(hub, tmp_path, *flags)
    assert code == 0, err
    data = "data/chunk-000/file-000.parquet"
    assert hub.sent[data] == (toy / data).stat().st_size
    found = sorted((tmp_path / "out/train/actions").iterdir())
    assert [path.stem for path in found] == sorted(
        path.stem for path in (tmp_path / "out/train/videos").iterdir()
    )
    assert {float(value) for path in found for value in read_actions(path)[:, 0]} == {0.5}
    described = json.loads((tmp_path / "out/actions.json").read_text())
    assert (described["std"], described["scale"]) == ([0.0], [1.0])  # a constant is not divided
    assert not (tmp_path / "out/.lerobot").exists()
    hub.sent.clear()
    assert run(hub, tmp_path, "--actions", "observation.state", *flags[2:], "timestamp")[0] == 2
    assert not [path for path in hub.sent if path.endswith(".mp4")]


def test_an_interrupted_run_resumes(hub: HubServer, toy: Path, tmp_path: Path) -> None:
    hub.faults = Faults(bytes_per_second=4000)
    process = start(hub, tmp_path)
    deadline = time.monotonic() + 300
    first = tmp_path / "out/.sources/episode_000000.json"
    while time.monotonic() < deadline and not (
        first.exists() and json.loads(first.read_text())["told_by"]
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "out/train/videos").glob("episode_000000*")
    }
    assert kept
    hub.faults = Faults()
    hub.sent.clear()
    code, _, err = run(hub, tmp_path)
    assert (code, windows(folder=tmp_path / "out")) == (0, {0: 24, 1: 18, 2: 30, 3: 9, 4: 27}), err
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in kept} == kept
    last = f"videos/{TOP}/chunk-000/file-002.mp4"
    assert hub.sent[last] <= (toy / last).stat().st_size
    hub.sent.clear()
    assert run(hub, tmp_path)[0] == 0
    assert not [path for path in hub.sent if path.endswith(".mp4")]


def test_faults_of_the_network_are_survived(hub: HubServer, tmp_path: Path) -> None:
    hub.faults = Faults(status=503, answers=2, cut_after=1000, cuts=2)
    code, _, err = run(hub, tmp_path)
    assert (code, len(windows(folder=tmp_path / "out"))) == (0, 5), err


@pytest.mark.parametrize(
    ("token", "flags", "reason"),
    [
        ("hf_unlicensed", (), "robots/toy is gated and"),
        ("hf_good", ("--revision", "v9"), "the requested revision is not on the Hub"),
        ("hf_good", ("--repo_id", "robots/none"), "the repository or a file of it is not on"),
        ("hf_good", ("--repo_id", "none"), "--repo_id none: give OWNER/NAME"),
    ],
)
def test_access_is_explained(
    hub: HubServer, tmp_path: Path, token: str, flags: tuple[str, ...], reason: str
) -> None:
    code, _, err = run(hub, tmp_path, *flags, HF_TOKEN=token)
    assert code == 2
    assert reason in err
    assert "Traceback" not in err


def test_a_repository_with_several_datasets(toy: Path, tmp_path: Path) -> None:
    files = {
        f"{name}/{path}": file for name in ("a", "b/c") for path, file in folder_files(toy).items()
    }
    with serving(HubServer({REPO: Repository(files)})) as server:
        code, _, err = run(server, tmp_path)
        assert code == 2
        assert "give one as dataset.lerobot.subfolder (--subfolder): a, b/c" in err
        code, _, err = run(server, tmp_path, "--subfolder", "b/c")
        assert (code, len(windows(folder=tmp_path / "out"))) == (0, 5), err
        assert all(path.startswith("b/c/") for path in server.sent)


def test_a_pointer_on_the_hub_is_named(toy: Path, tmp_path: Path) -> None:
    files = folder_files(toy)
    files[f"videos/{TOP}/chunk-000/file-001.mp4"] = b"version https://git-lfs.github.com/spec/v1\n"
    with serving(HubServer({REPO: Repository(files)})) as server:
        code, _, err = run(server, tmp_path)
    assert (code, windows(folder=tmp_path / "out")) == (0, {0: 24, 1: 18, 4: 27}), err
    dropped = json.loads((tmp_path / "out/report.json").read_text())["dropped"]
    assert {problem["item"] for problem in dropped} == {"episode_000002", "episode_000003"}
    assert all("a pointer of Git LFS" in problem["reason"] for problem in dropped)
