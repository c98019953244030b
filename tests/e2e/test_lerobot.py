"""docs/data.md's "Your own LeRobot dataset in five minutes", as a reader of the page does it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from caption_server import caption_for, caption_server
from hub_server import HubServer, Repository, client_environment, folder_files, serving
from lerobot_datasets import TOP, WRIST, Dataset
from repository import ROOT
from video2world_operator.api.validation import parse
from video2world_operator.plan.commands import commands as stage_commands
from video2world_preprocess.video.reader import probe

pytestmark = pytest.mark.slow
SECTION = "## Your own LeRobot dataset in five minutes\n"
SHORTER = {  # the page's resource, in less time
    "iterations: 200": "iterations: 4",
    "everyIterations: 50": "everyIterations: 2",
    "  inference:\n": "  inference:\n    steps: 3\n",
}
HELD_OUT = ("episode_000000_window_0_frame_0-149", "episode_000000_window_1_frame_150-239")


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
    for old, new in SHORTER.items():
        assert resource.count(old) == 1
        resource = resource.replace(old, new)
    source = Dataset(
        tmp_path / "source",
        lengths=(240, 156, 300),
        fps=30,
        cameras={TOP: "h264", WRIST: "h264"},
        group=2,
    ).write()
    here = tmp_path / "here"
    here.mkdir()
    (here / "cups.yaml").write_text(resource)
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
                timeout=800,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            said[rest[0]] = done.stdout
        sent = {path for path in hub.sent if path.endswith(".mp4")}
    assert f"my-team/cups: a LeRobotDataset, camera {TOP}, 3 episodes, 30 fps" in said["preflight"]
    assert all(f"videos/{TOP}/" in path for path in sent)  # of the other camera nothing
    volume = here / "volume"
    dataset = volume / "datasets/cups"
    held_out = {path.stem for path in (dataset / "val/videos").iterdir()}
    assert held_out == set(HELD_OUT)
    assert {path.read_text() for path in (dataset / "val/metas").iterdir()} == {"push cube"}
    trained = {path.name.split("_window")[0] for path in (dataset / "train/videos").iterdir()}
    assert trained == {"episode_000001", "episode_000002"}
    counts = json.loads((dataset / "report.json").read_text())["counts"]
    assert counts["format"] == "v3.0"
    video = probe(volume / "results/cups/held_out.mp4")
    assert (video.frames, video.width, video.height) == (17, 128, 96)
    check_results_page(volume)
    # by hand, for a model of 93 frames: the rest of 90 frames is joined to its neighbor
    by_hand = {path.name for path in (here / "datasets/cups/val/videos").iterdir()}
    assert by_hand == {"episode_000000_window_0_frame_0-239.mp4"}


def check_results_page(volume: Path) -> None:
    """Check that the page shows the sample, the validation losses and the evaluation's table."""
    results = volume / "results/cups"
    page = (results / "index.html").read_text()
    assert "push cube" in page
    assert 'src="held_out.mp4"' in page
    validations = json.loads((results / "validation.json").read_text())["results"]
    assert [one["iteration"] for one in validations] == [0, 2, 4]
    for one in validations:
        assert f"<td>{one['iteration']}</td><td>{one['loss']:.4f}</td>" in page
    assert "Validation loss by noise level" in page
    table = json.loads((results / "evaluation/evaluation.json").read_text())
    assert [clip["clip"] for clip in table["clips"]] == list(HELD_OUT)
    names = [row["name"] for row in table["rows"]]
    assert names == ["last given frame repeated", "base weights", "iteration 4", "VAE round trip"]
    for row in table["rows"]:
        assert f"<tr><th>{row['name']}</th><td>{row['metrics']['psnr']['value']:.2f} dB" in page
    for name in HELD_OUT:
        assert f'src="evaluation/strips/{name}.png"' in page
        assert (results / f"evaluation/strips/{name}.png").is_file()
    status = json.loads((volume / ".video2world/cups/state.json").read_text())["status"]
    assert status["validation"]["iteration"] == 4
    assert status["evaluation"]["text"] == table["answer"]["text"]
    assert f">{table['answer']['text']}</p>" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_captions_of_a_lerobot_dataset(tmp_path: Path) -> None:
    """The dataset and captions stages of one resource, with the commands of its plan."""
    source = Dataset(tmp_path / "source", lengths=(60, 60), tasks=("push cube", "open drawer"))
    repository = Repository(folder_files(source.write()))
    with serving(HubServer({"my-team/cups": repository})) as hub, caption_server() as captions:
        lerobot = {"repoID": "my-team/cups", "camera": "top", "validationEpisodes": [1]}
        made = parse(
            {
                "apiVersion": "video2world.dev/v1alpha1",
                "kind": "Video2WorldPostTrain",
                "metadata": {"name": "cups"},
                "spec": {
                    "model": {"size": "Tiny"},
                    "dataset": {
                        "lerobot": lerobot | {"caption": "Endpoint"},
                        "captions": {"endpoint": captions.url, "model": "a-model"},
                    },
                    "training": {"iterations": 4},
                },
            }
        )
        for stage in ("dataset", "captions"):
            done = subprocess.run(
                [sys.executable, *stage_commands(made)[stage].argv[1:]],
                cwd=tmp_path,
                env=client_environment(hub, tmp_path / ".hf", HF_TOKEN="hf_good"),
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert done.returncode == 0, (stage, done.stdout, done.stderr)
    folder = tmp_path / made.dataset_dir
    expected = {"train": ("episode_000000", "push cube"), "val": ("episode_000001", "open drawer")}
    answers = set()
    for split, (episode, task) in expected.items():
        (meta,) = (folder / split / "metas").iterdir()
        assert meta.name.startswith(episode)
        answers.add(meta.read_text())
        record = json.loads((folder / split / f"captions/{meta.stem}.json").read_text())
        assert record["own"] == task
    assert answers == {caption_for(request) for request in captions.requests}
    hints = ["\n".join(request.texts) for request in captions.requests]
    for _, task in expected.values():  # the prompt of each has its own task
        assert sum(task in hint for hint in hints) == 1
