"""AgiBotWorld-Beta: many archives per task, some with corrupt videos, through the same command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agibot_archives import TASK, make_archives
from hub_server import PAGE, HubServer, Repository, client_environment, folder_files, serving

REPO = "agibot-world/AgiBotWorld-Beta"
CAMERA = "hand_left_color"
OUT = Path(f"datasets/agibot_beta_{CAMERA}")


@pytest.fixture(scope="module")
def beta(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More archives than the Hub lists on a page, of one episode each, named FIRST-LAST.tar."""
    root = tmp_path_factory.mktemp("beta")
    return make_archives(
        root, PAGE + 2, archives=PAGE + 2, size=(32, 48), frames=(40,), fps=10, depth_share=0.9
    )


def corrupt(archive: Path) -> bytes:
    """The archive with the camera's video overwritten; its headers are intact."""
    content = bytearray(archive.read_bytes())
    header = content.index(f"/videos/{CAMERA}.mp4".encode())
    start = header - header % 512 + 512
    size = int(content[start - 512 + 124 : start - 512 + 135], 8)
    content[start : start + size] = bytes(size)
    return bytes(content)


def test_many_archives_with_one_corrupt_video(beta: list[Path], tmp_path: Path) -> None:
    files = folder_files(beta[0].parents[2])
    victim = sorted(beta)[7]
    episode, _, last = victim.stem.partition("-")
    assert episode == last
    files[str(victim.relative_to(beta[0].parents[2]))] = corrupt(victim)
    flags = ["--prepare", "--task_ids", str(TASK), "--repo_id", REPO, "--camera", CAMERA]
    flags += ["--data_dir", "datasets/agibot_beta", "--dataset_dir", str(OUT)]
    flags += ["--val_episode_ids", sorted(beta)[-1].stem.partition("-")[0], "--min_frames", "30"]
    with serving(HubServer({REPO: Repository(files, gated=True)})) as hub:
        process = subprocess.run(
            [sys.executable, "-m", "video2world_preprocess.agibot", *flags, "--workers", "1"],
            cwd=tmp_path,
            env=client_environment(hub, tmp_path / ".hf", HF_TOKEN="hf_good", OMP_NUM_THREADS="1"),
            text=True,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert process.returncode == 0, process.stderr
        assert set(hub.sent) >= {str(path.relative_to(beta[0].parents[2])) for path in beta}
    report = json.loads((tmp_path / OUT / "report.json").read_text())
    assert [p["item"] for p in report["dropped"]] == [f"task_{TASK}_episode_{episode}"]
    counts = report["counts"]
    assert (counts["episodes"], counts["val_windows"]) == (PAGE + 1, 1)
    assert counts["train_windows"] == PAGE
    names = {path.stem for path in (tmp_path / OUT / "train/metas").iterdir()}
    assert len(names) == PAGE
    assert not list((tmp_path / "datasets").rglob("*.tar"))
