"""docs/data.md's "Your own LeRobot dataset in five minutes", as a reader of the page does it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import HubServer, Repository, client_environment, folder_files, serving
from lerobot_datasets import TOP, WRIST, Dataset
from repository import ROOT
from video2world_preprocess.video.reader import probe

pytestmark = pytest.mark.slow
SECTION = "## Your own LeRobot dataset in five minutes\n"


def blocks() -> tuple[str, list[str]]:
    """Return the section's resource, and its commands."""
    page = (ROOT / "docs/data.md").read_text()
    section = page[page.index(SECTION) + len(SECTION) :].split("\n## ")[0]
    section = re.sub(r"(?m)^   ", "", section)
    resources = re.findall(r"```yaml\n(apiVersion.*?)```", section, re.DOTALL)
    shown = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    lines = "".join(shown).replace("\\\n", "").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    (resource,) = resources
    return resource, commands


def test_the_page_is_followed(tmp_path: Path) -> None:
    resource, commands = blocks()
    source = Dataset(
        tmp_path / "source",
        lengths=(240, 156, 300),
        fps=30,
        cameras={TOP: "h264", WRIST: "h264"},
        group=2,
    ).write()
    here = tmp_path / "here"
    here.mkdir()
    (here / "cups.yaml").write_text(resource.replace("iterations: 200", "iterations: 4"))
    run = [command for command in commands if not command.startswith("kubectl")]
    assert [command.split()[:2] for command in run] == [
        ["v2w", "preflight"],
        ["v2w", "run"],
        ["python", "-m"],
    ]
    with serving(HubServer({"my-team/cups": Repository(folder_files(source))})) as hub:
        environment = client_environment(hub, tmp_path / ".hf", HF_TOKEN="hf_good")
        said = {}
        for command in run:
            first, *rest = shlex.split(command)
            program = {
                "v2w": [sys.executable, "-m", "video2world_operator.cli"],
                "python": [sys.executable],
            }[first]
            done = subprocess.run(
                [*program, *rest],
                cwd=here,
                env=environment,
                capture_output=True,
                text=True,
                timeout=400,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            said[rest[0]] = done.stdout
        sent = {path for path in hub.sent if path.endswith(".mp4")}
    assert f"my-team/cups: a LeRobotDataset, camera {TOP}, 3 episodes, 30 fps" in said["preflight"]
    assert all(f"videos/{TOP}/" in path for path in sent)  # of the other camera nothing
    volume = here / "volume"
    dataset = volume / "datasets/cups"
    held_out = {path.name for path in (dataset / "val/videos").iterdir()}
    assert held_out == {
        "episode_000000_window_0_frame_0-149.mp4",
        "episode_000000_window_1_frame_150-239.mp4",
    }
    assert {path.read_text() for path in (dataset / "val/metas").iterdir()} == {"push cube"}
    trained = {path.name.split("_window")[0] for path in (dataset / "train/videos").iterdir()}
    assert trained == {"episode_000001", "episode_000002"}
    counts = json.loads((dataset / "report.json").read_text())["counts"]
    assert counts["format"] == "v3.0"
    video = probe(volume / "results/cups/held_out.mp4")
    assert (video.frames, video.width, video.height) == (17, 128, 96)
    page = (volume / "results/cups/index.html").read_text()
    assert "push cube" in page
    # by hand, for a model of 93 frames: the rest of 90 frames is joined to its neighbor
    by_hand = {path.name for path in (here / "datasets/cups/val/videos").iterdir()}
    assert by_hand == {"episode_000000_window_0_frame_0-239.mp4"}
