"""The identity of a volume, as real worker processes write and check it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

WORK = """
import sys
from pathlib import Path
from video2world_common.markers import Provenance
from video2world_common.stage_runner import run_stage
def work():
    Path("made").touch()
    return Provenance().left(["made"]), {}
sys.exit(run_stage(work, stage="dataset"))
"""
LAUNCH = """
import sys
from video2world_trainer.launch import main
sys.exit(main(["--standalone", "--nproc_per_node=1", "--no-python", "true"]))
"""
ELSEWHERE = "0123456789abcdef" * 2


def work(folder, expected="", code=WORK, stage="dataset"):
    """Exit code and events of a worker on the volume ``folder``."""
    env = os.environ | {"V2W_STAGE": stage, "V2W_RESOURCE": "run", "V2W_INPUTS_HASH": "h"}
    if expected:
        env["V2W_VOLUME_ID"] = expected
    if stage is None:
        env = {name: value for name, value in env.items() if not name.startswith("V2W_")}
    argv = [sys.executable, "-c", code]
    ended = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ended.stderr
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return ended.returncode, {event["event"]: event for event in events}


def test_the_first_worker_names_the_volume_and_the_others_find_it(tmp_path):
    code, first = work(tmp_path)
    assert code == 0
    identity = first["volume"]["id"]
    assert re.fullmatch("[0-9a-f]{32}", identity)
    assert first["volume"]["expected"] == ""
    code, second = work(tmp_path, identity)
    assert code == 0
    assert "skipped" in second
    assert second["volume"] == {
        "event": "volume",
        "stage": "dataset",
        "id": identity,
        "expected": identity,
    }


def test_workers_that_begin_together_agree(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: work(tmp_path)[1]["volume"]["id"], range(4)))
    assert len(set(found)) == 1


@pytest.mark.parametrize("left", ["nothing", "another", "garbage"])
@pytest.mark.parametrize("code", [WORK, LAUNCH], ids=["stage", "launch"])
def test_a_worker_stops_on_another_volume(tmp_path, left, code):
    state = tmp_path / ".video2world"
    state.mkdir()
    if left != "nothing":
        text = ELSEWHERE[::-1] if left == "another" else "\x00"
        (state / "volume-id").write_text(text)
    ended, events = work(tmp_path, ELSEWHERE, code)
    assert ended == 1  # worth another attempt
    assert events["failed"]["reason"] == "VolumeLost"
    assert "have to run again" in events["failed"]["message"]
    now = events["volume"]["id"]
    assert now != ELSEWHERE
    assert (now == ELSEWHERE[::-1]) == (left == "another")
    assert not (tmp_path / "made").exists()
    assert work(tmp_path, now)[0] == 0


def test_a_group_starts_on_the_expected_volume_only(tmp_path):
    _, first = work(tmp_path)
    assert work(tmp_path, first["volume"]["id"], LAUNCH)[0] == 0


def test_a_command_run_by_hand_just_does_its_work(tmp_path):
    code, events = work(tmp_path, stage=None)
    assert (code, "volume" in events) == (0, False)
    assert not (tmp_path / ".video2world" / "volume-id").exists()


# Stands in for every worker of a local run: checks the volume and leaves its mark.
LOCAL = """
import json, os, sys
from pathlib import Path
from video2world_common.volume_id import VolumeLost, check
stage = os.environ["V2W_STAGE"]
try:
    check(stage)
except VolumeLost:
    sys.exit(2)
Path(f"expected-{stage}").write_text(os.environ.get("V2W_VOLUME_ID", ""))
marker = Path(".video2world/stages") / f"{stage}-{os.environ['V2W_INPUTS_HASH']}.json"
marker.parent.mkdir(parents=True, exist_ok=True)
marker.write_text(json.dumps({"outputs": []}))
"""


def test_a_local_run_keeps_to_its_volume(tmp_path):
    stages = ("download", "dataset", "embeddings", "latents", "train")
    argv = [sys.executable, "-c", LOCAL]
    document = {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "run"},
        "spec": {
            "model": {"size": "Tiny"},
            "dataset": {"prepared": {"path": "datasets/d"}},
            "training": {"iterations": 9},
            "stages": {
                stage: {"podTemplate": {"spec": {"containers": [{"name": stage, "command": argv}]}}}
                for stage in stages
            },
        },
    }
    file, volume = tmp_path / "run.yaml", tmp_path / "volume"
    file.write_text(json.dumps(document))
    argv = [sys.executable, "-m", "video2world_operator.cli", "run", "-f", str(file)]
    argv += ["--volume", str(volume)]

    def run():
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    assert "starting over" not in run()
    identity = (volume / ".video2world/volume-id").read_text().strip()
    state = volume / ".video2world/run/state.json"
    assert json.loads(state.read_text())["status"]["volumeID"] == identity
    found = [(volume / f"expected-{stage}").read_text() for stage in stages]
    assert found == ["", *[identity] * 4]
    # all but the state is lost: a new disk, onto which only it was copied
    (volume / ".video2world/volume-id").unlink()
    for marker in (volume / ".video2world/stages").iterdir():
        marker.unlink()
    assert "starting over" in run()
    assert json.loads(state.read_text())["status"]["volumeID"] != identity
