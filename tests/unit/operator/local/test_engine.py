"""The local engine with real processes: a rendered plan whose stages run a scripted worker."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from video2world_operator.api.validation import load_resource
from video2world_operator.local.engine import LocalEngine
from video2world_operator.local.gpu_shares import gpu_shares, visible_gpus
from video2world_operator.local.pod_environment import PodEnvironment, UnsupportedManifest
from video2world_operator.local.pod_process import process_spec
from video2world_operator.local.pods import PodGroup
from video2world_operator.local.state import StateFolder
from video2world_operator.plan.plan import make_plan
from video2world_operator.terminal import Display

V2W = (sys.executable, "-m", "video2world_operator.cli")
STAGES = ("download", "dataset", "embeddings", "latents", "train", "inference")

# Replaces every worker: does what behave.json on the volume says about its stage.
WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
stage, index = os.environ["V2W_STAGE"], os.environ["JOB_COMPLETION_INDEX"]
attempt = os.environ.get("V2W_ATTEMPT", "1")
with open("order.txt", "a") as order:
    order.write(f"{stage} {index} {attempt}\\n")
Path(f"env-{stage}-{index}.json").write_text(json.dumps(dict(os.environ)))
Path(f"argv-{stage}-{index}.json").write_text(json.dumps(sys.argv))
what = json.loads(Path("behave.json").read_text()).get(f"{stage}-{index}-{attempt}", "finish")
print("plain words of", stage, flush=True)
if what == "wait":  # until SIGTERM, then save
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                             start_new_session=True)
    Path(f"pids-{stage}-{index}").write_text(f"{os.getpid()} {child.pid}")
    def stop(*_):
        Path(f"saved-{stage}-{index}").write_text("x")
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    print(json.dumps({"event": "progress", "stage": stage, "iteration": 3, "iterations": 9,
                      "loss": 0.5}), flush=True)
    time.sleep(600)
if what == "ignores actions":
    actions = {"followed": False, "lift": 0.01, "low": -0.02, "high": 0.04, "clips": 8,
               "text": "The model ignores its actions."}
    print(json.dumps({"event": "evaluation", "stage": stage, "verdict": "Better", "text": "Better",
                      "metric": "psnr", "checkpoint": "c", "clips": 8, "base": 1, "value": 2,
                      "difference": 1, "actions": actions}))
    what = "exit 2"
if what.startswith("exit"):
    code = int(what.split()[1])
    for number in range(30):
        print(f"line {number}")
    print(json.dumps({"event": "failed", "stage": stage, "reason": "x", "message": "no luck"}))
    sys.exit(code)
from video2world_common.markers import Marker, Provenance
made = Provenance.of(f"in-{stage}")
Path(f"out-{stage}").write_text("x")
Marker(stage, os.environ["V2W_INPUTS_HASH"]).write(made.left([f"out-{stage}"]), {})
"""


@pytest.fixture
def setup(tmp_path):
    """Return a function that writes resource and behaviour, and the volume."""
    volume = tmp_path / "volume"
    volume.mkdir()

    def write(behaviour=None, name="run", evaluation=None, **training):
        def patch(stage):
            argv = ["python", "-c", WORKER, "$(V2W_CONFIG_DIR)/samples.json", "$$HOME", "/data/x"]
            container = {"name": stage, "command": argv}
            return {"podTemplate": {"spec": {"containers": [container]}}}

        document = {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": name},
            "spec": {
                "model": {"size": "Tiny"},
                "dataset": {"prepared": {"path": "datasets/d"}},
                "training": {"iterations": 9, "nodes": 2} | training,
                "inference": {"samples": [{"input": "a.mp4", "prompt": "x"}]},
                "stages": {stage: patch(stage) for stage in (*STAGES, "evaluation")},
            },
        }
        if evaluation is not None:
            document["spec"]["evaluation"] = evaluation
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document))
        (volume / "behave.json").write_text(json.dumps(behaviour or {}))
        return file

    return write, volume


def start(file, volume, *flags):
    return subprocess.Popen(
        [*V2W, "run", "-f", str(file), "--volume", str(volume), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )


def said(engine):
    """Return the engine's output once it has ended; if it does not end, fail with its stack."""
    try:
        return engine.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        engine.send_signal(signal.SIGABRT)
        pytest.fail(f"not within a minute: {engine.communicate()[0]}")


def run(file, volume, *flags):
    engine = start(file, volume, *flags)
    out = said(engine)
    return engine.returncode, out


def v2w(*arguments):
    return subprocess.run(
        [*V2W, *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout


def follow(volume):
    arguments = ("logs", "run", "--volume", str(volume), "--stage", "train", "--follow")
    return subprocess.Popen([*V2W, *arguments], stdout=subprocess.PIPE, text=True)


def order(volume):
    path = volume / "order.txt"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stages_run_in_order_and_once(setup):
    write, volume = setup
    file = write()
    code, out = run(file, volume)
    assert code == 0, out
    lines = order(volume)
    assert lines[:4] == ["download 0 1", "dataset 0 1", "embeddings 0 1", "latents 0 1"]
    assert sorted(lines[4:6]) == ["train 0 1", "train 1 1"]
    assert lines[6:] == ["inference 0 1"]
    assert "plain words" not in out
    code, out = run(file, volume)
    assert code == 0
    assert out.count("skipped") == 6
    assert order(volume) == []
    (volume / "out-latents").unlink()  # an output is gone: that stage runs again
    assert run(file, volume)[0] == 0
    assert order(volume) == ["latents 0 1"]
    state = StateFolder(volume, "run").read()["status"]
    assert state["phase"] == "Succeeded"
    logs = volume / ".video2world/run/logs"
    assert (logs / "dataset-1-0.log").read_text() == "plain words of dataset\n"


@pytest.mark.parametrize(("asked", "reason"), [(True, "ActionsIgnored"), (False, "UserError")])
def test_a_model_that_ignores_its_actions_fails_the_run_if_that_is_asked(setup, asked, reason):
    write, volume = setup
    file = write(
        {"evaluation-0-1": "ignores actions"},
        evaluation={"failWhenActionsIgnored": asked},
        conditioning={"actions": {}},
        nodes=1,
    )
    file.write_text(file.read_text().replace("input: a.mp4", "input: val/videos/a.mp4"))
    code, out = run(file, volume)
    assert code == 2, out
    status = StateFolder(volume, "run").read()["status"]
    conditions = {one["type"]: one for one in status["conditions"]}
    assert conditions["Failed"]["reason"] == reason
    assert conditions["ActionsFollowed"]["status"] == "False"
    assert conditions["ActionsFollowed"]["message"] == "The model ignores its actions."
    assert status["evaluation"]["actions"]["lift"] == 0.01
    shown = v2w("status", "run", "--volume", str(volume))
    assert "The model ignores its actions." in shown


def test_environment_and_paths_are_mapped_to_this_machine(setup):
    write, volume = setup
    assert run(write(), volume)[0] == 0
    argv = json.loads((volume / "argv-inference-0.json").read_text())
    samples, dollar, inside = argv[1:]
    assert json.loads(Path(samples).read_text())[0]["input_video"] == "a.mp4"
    assert dollar == "$HOME"
    assert inside == str(volume / "x")
    envs = [json.loads((volume / f"env-train-{i}.json").read_text()) for i in (0, 1)]
    ends = {env["PET_RDZV_ENDPOINT"] for env in envs}
    assert len(ends) == 1
    host, port = ends.pop().split(":")
    assert host == envs[0]["MASTER_ADDR"] == "127.0.0.1"
    assert int(port) > 1024
    assert port != "29500" or envs[0]["MASTER_PORT"] != "29501"
    assert [env["JOB_COMPLETION_INDEX"] for env in envs] == ["0", "1"]
    assert envs[0]["PET_NNODES"] == "2"
    assert envs[0]["HOME"].startswith(str(volume))


@pytest.mark.parametrize("claims", [[], [{"name": "gpus", "resourceClaimTemplateName": "one"}]])
def test_pods_of_a_job_have_gpus_of_their_own(setup, tmp_path, monkeypatch, claims):
    write, volume = setup
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code, out = run(write(device="GPU", resourceClaims=claims), volume)
    assert code == 0, out
    said_so = "resourceClaims are for a cluster: this run uses the GPUs of this machine" in out
    assert said_so == bool(claims)
    names = ("train-0", "train-1", "latents-0")
    envs = [json.loads((volume / f"env-{name}.json").read_text()) for name in names]
    # the latents stage starts a process for every GPU that it finds
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in envs] == ["0", "1", None]


@pytest.mark.parametrize(
    ("each", "count", "gpus", "expected"),
    [
        (2, 2, "4567", ["4,5", "6,7"]),
        (1, 1, "01", ["0"]),
        (2, 2, "012", []),  # too few: they share
        (0, 2, "01", []),
        (1, 2, "", []),
    ],
)
def test_gpus_are_divided_between_pods(each, count, gpus, expected):
    limits = {"nvidia.com/gpu": str(each)} if each else {}
    pod = {"containers": [{"resources": {"limits": limits}}]}
    assert gpu_shares(pod, count, list(gpus)) == expected


def test_visible_gpus_are_the_users_choice(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8a")
    assert visible_gpus() == ["3", "GPU-8a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_a_failed_pod_restarts_the_whole_group_under_a_new_attempt(setup):
    write, volume = setup
    file = write({"train-1-1": "exit 1", "train-0-1": "wait"})
    code, out = run(file, volume)
    assert code == 0, out
    trained = [line for line in order(volume) if line.startswith("train")]
    assert sorted(trained) == ["train 0 1", "train 0 2", "train 1 1", "train 1 2"]
    assert not any(alive(int(pid)) for pid in (volume / "pids-train-0").read_text().split())
    state = StateFolder(volume, "run").read()
    assert state["attempts"]["train"] == 2
    assert state["status"]["restarts"] == 1
    first, second = state["status"]["attempts"]
    assert (first["reason"], first["message"], first["charged"]) == (
        "Crashed",
        "exit code 1: no luck",
        True,
    )
    assert (second["number"], second["reason"]) == (2, "Succeeded")
    shown = v2w("status", "run", "--volume", str(volume))
    assert "attempt 1: Crashed: exit code 1: no luck (iterations 0 to" in shown
    assert "attempt 2" not in shown


def test_restarts_end_at_their_limit(setup):
    write, volume = setup
    file = write({f"train-0-{n}": "exit 1" for n in (1, 2, 3, 4)}, maxRestarts=2, nodes=1)
    code, out = run(file, volume)
    assert code == 1
    assert [line for line in order(volume) if line.startswith("train")] == [
        "train 0 1",
        "train 0 2",
        "train 0 3",
    ]
    assert "line 29" in out
    assert "line 10" not in out  # only the last lines
    assert str(volume / ".video2world/run/logs/train-3-0.log") in out
    assert StateFolder(volume, "run").read()["status"]["phase"] == "Failed"


def test_a_users_error_is_final_and_explained(setup):
    write, volume = setup
    code, out = run(write({"dataset-0-1": "exit 2"}), volume)
    assert code == 2
    assert order(volume) == ["download 0 1", "dataset 0 1"]
    assert "error: no luck" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_workers_save_and_leaves_nothing_running(setup, number):
    write, volume = setup
    file = write({"train-0-1": "wait", "train-1-1": "wait"})
    engine = start(file, volume)
    pids = [volume / f"pids-train-{i}" for i in (0, 1)]
    state = StateFolder(volume, "run")
    wait_for(lambda: all(path.exists() and path.read_text() for path in pids))
    wait_for(lambda: "progress" in state.read().get("status", {}))
    assert state.read()["status"]["phase"] == "Running"
    assert state.running
    shown = v2w("status", "run", "--volume", str(volume))
    assert "3/9  loss 0.5000" in shown
    assert "train-1-1  Running" in shown
    follower = follow(volume)
    engine.send_signal(number)
    out = said(engine)
    assert engine.returncode == 128 + number
    assert "plain words of train" in follower.communicate(timeout=30)[0]  # and it has ended
    assert "run the same command to resume" in out
    assert all((volume / f"saved-train-{i}").exists() for i in (0, 1))
    family = [int(pid) for path in pids for pid in path.read_text().split()]
    assert not any(map(alive, family))
    assert state.read()["status"]["phase"] == "Suspended"
    code, out = run(file, volume)  # attempt 2: finishes
    assert code == 0, out
    assert state.read()["attempts"]["train"] == 2
    assert state.read()["status"]["restarts"] == 0
    assert [a["reason"] for a in state.read()["status"]["attempts"]] == ["Interrupted", "Succeeded"]
    assert not state.running


def test_workers_end_when_the_engine_is_killed(setup):
    write, volume = setup
    file = write({"train-0-1": "wait"}, nodes=1)
    engine = start(file, volume)
    path = volume / "pids-train-0"
    wait_for(lambda: path.exists() and path.read_text())
    engine.kill()
    engine.wait()
    family = [int(pid) for pid in path.read_text().split()]
    wait_for(lambda: not any(map(alive, family)))
    assert (volume / "saved-train-0").exists()
    assert "its process is gone" in v2w("status", "run", "--volume", str(volume), "--watch")
    code, out = run(file, volume)
    assert code == 0, out
    attempts = StateFolder(volume, "run").read()["status"]["attempts"]
    assert [a["reason"] for a in attempts] == ["Killed", "Succeeded"]


def test_one_resource_runs_once_at_a_time(setup):
    write, volume = setup
    file = write({"train-0-1": "wait"}, nodes=1)
    engine = start(file, volume)
    try:
        wait_for(lambda: (volume / "pids-train-0").exists())
        code, out = run(file, volume)
        assert code == 2
        assert "running" in out
    finally:
        engine.terminate()
        engine.communicate(timeout=60)


def test_a_name_on_a_volume_belongs_to_one_file(setup, tmp_path):
    write, volume = setup
    file = write()
    assert run(file, volume)[0] == 0
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text())
    code, out = run(other, volume)
    assert code == 2
    assert "metadata.name: run" in out
    assert str(file) in out
    file.unlink()  # a file that moved takes its run along
    assert run(other, volume)[0] == 0


def test_dry_run_starts_nothing(setup):
    write, volume = setup
    code, out = run(write(), volume, "--dry-run")
    assert code == 0
    assert verdicts(out) == [["run", stage, "not done yet with these settings"] for stage in STAGES]
    commands, estimate = out.split("time  iteration", 1)
    assert len(commands.splitlines()) == 2 * len(STAGES)  # and each one's command
    assert "time  training" in estimate
    assert order(volume) == []


def verdicts(out):
    """Return verdict, stage and reason of each stage of a dry run."""
    lines = (line for line in out.splitlines() if line.startswith(("run", "skip")))
    return [line.split(None, 2) for line in lines]


def test_dry_run_says_why_each_stage_would_run_or_not(setup):
    write, volume = setup
    file = write()
    assert run(file, volume)[0] == 0
    (volume / "in-dataset").mkdir()
    (volume / "in-dataset/place.mp4").write_bytes(b"x")
    (volume / "out-embeddings").write_text("longer")
    order(volume)
    lines = verdicts(run(file, volume, "--dry-run")[1])
    assert [line[:2] for line in lines] == [
        ["skip", "download"],
        ["run", "dataset"],
        ["run", "embeddings"],
        *(["skip?", stage] for stage in STAGES[3:]),
    ]
    assert re.fullmatch(r"finished \S+ by run", lines[0][2])
    assert [line[2] for line in lines[1:4]] == [
        "1 new video: place.mp4",
        "1 changed file: out-embeddings",
        "done; checked again once dataset has run",
    ]
    assert order(volume) == []
    code, out = run(file, volume)
    assert code == 0
    assert "dataset     run again: 1 new video: place.mp4" in out
    assert "embeddings  run again: 1 changed file: out-embeddings" in out
    assert [line.split()[0] for line in order(volume)] == ["dataset", "embeddings"]


def test_stages_on_a_sub_path_are_found_done(setup):
    write, volume = setup
    file = write()
    document = yaml.safe_load(file.read_text())
    document["spec"]["storage"] = {"subPath": "part"}
    file.write_text(yaml.safe_dump(document))
    (volume / "part").mkdir()
    (volume / "behave.json").rename(volume / "part/behave.json")
    assert run(file, volume)[0] == 0
    assert run(file, volume)[1].count("skipped") == 6
    assert "skip" in verdicts(run(file, volume, "--dry-run")[1])[5][0]


def test_secrets_come_from_the_users_environment(tmp_path):
    token = {"name": "hf", "key": "token"}
    pod = {
        "containers": [
            {
                "name": "a",
                "command": ["python", "-V"],
                "env": [
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}},
                    {"name": "BOTH", "value": "$(HF_TOKEN)-$(UNKNOWN)"},
                ],
            }
        ]
    }
    environment = PodEnvironment({}, {"HF_TOKEN": "hf_x"})
    inherited = {"PET_NNODES": "7", "PATH": os.environ["PATH"]}
    what = process_spec(pod, environment, inherited=inherited)
    assert what.env["HF_TOKEN"] == "hf_x"
    assert what.env["BOTH"] == "hf_x-$(UNKNOWN)"
    assert "PET_NNODES" not in what.env
    assert what.argv == (sys.executable, "-V")
    without = PodEnvironment({}, {})
    assert "HF_TOKEN" not in process_spec(pod, without, inherited={}).env
    with pytest.raises(UnsupportedManifest, match="several containers"):
        process_spec({"containers": pod["containers"] * 2}, environment)


def test_what_runs_is_what_is_rendered(setup):
    write, volume = setup
    file = write()
    assert run(file, volume)[0] == 0
    rendered = make_plan(load_resource(file)).stage("train").job
    names = {e["name"] for e in rendered["spec"]["template"]["spec"]["containers"][0]["env"]}
    env = json.loads((volume / "env-train-0.json").read_text())
    assert names <= set(env)


def nodes_of(volume, name="run"):
    """Return the state's groupSize, and number, nodes and reason of the attempts."""
    status = json.loads((volume / ".video2world" / name / "state.json").read_text())["status"]
    records = [(r["number"], r["nodes"], r["reason"]) for r in status["attempts"]]
    return status["groupSize"], records


def test_fewer_gpus_than_asked_run_fewer_nodes(setup, monkeypatch):
    write, volume = setup
    file = write(nodes=4, minNodes=1, device="GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    code, out = run(file, volume)
    assert code == 0, out
    assert "The train group has 2 of 4 nodes: this machine has 3 GPUs, and a node 1." in out
    env = json.loads((volume / "env-train-1.json").read_text())
    assert (env["PET_NNODES"], env["CUDA_VISIBLE_DEVICES"]) == ("2", "1")
    size, records = nodes_of(volume)
    assert (size["text"], records) == ("2/4", [(1, 2, "Succeeded")])
    assert "nodes       2 of 4" in v2w("status", "run", "--volume", str(volume))


def test_a_node_that_cannot_be_started_leaves_the_others(setup, monkeypatch, capsys):
    """Here it is the second process, as if the machine had no room for it."""
    write, volume = setup
    plan = make_plan(load_resource(write(minNodes=1)))
    start_pod = PodGroup._start_pod

    def refuse(self, index, *more):
        if index and self.stage == "train":
            raise OSError(11, "Resource temporarily unavailable")
        start_pod(self, index, *more)

    monkeypatch.setattr(PodGroup, "_start_pod", refuse)
    assert LocalEngine(plan, volume, Display(sys.stdout), Path("run.yaml")).run() == 0
    assert "1 of 2 nodes could be started" in capsys.readouterr().out
    size, records = nodes_of(volume)
    assert records == [(1, 2, "GroupShrunk"), (2, 1, "Succeeded")]
    assert (size["text"], size["message"]) == ("1/2", "1 could be started")
