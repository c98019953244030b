"""v2w preflight checks the data set: against the protocol of the Hub, and on the volume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer, Repository, serving
from video2world_operator.api.validation import parse
from video2world_operator.cli.main import main
from video2world_operator.plan.plan import make_plan
from video2world_operator.preflight.action_checks import check_proprioception, check_sequences
from video2world_operator.preflight.check import Check
from video2world_operator.preflight.dataset_checks import BETA_DEFECTS, check_dataset, dataset_disk
from video2world_operator.preflight.dataset_facts import dataset_facts
from video2world_operator.preflight.facts import AgiBotFacts, LeRobotFacts
from video2world_operator.preflight.machine import hub
from video2world_operator.preflight.requirements import estimate

BETA = "agibot-world/AgiBotWorld-Beta"
TOP, WRIST, DEPTH = (f"observation.images.{name}" for name in ("top", "wrist", "depth"))
KEY = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
BY_EPISODE = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


LISTED = f"the dataset's cameras are {TOP}, {WRIST} (and depth, which cannot be used: {DEPTH})"


def info(**fields: Any) -> dict[str, Any]:
    video = {"dtype": "video", "shape": [480, 640, 3]}
    features = {TOP: video, WRIST: video, DEPTH: video, "action": {"dtype": "float32"}}
    base = {"codebase_version": "v3.0", "total_episodes": 10, "fps": 30}
    return base | {"video_path": KEY, "features": features} | fields


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


V3 = {
    "meta/info.json": as_bytes(info()),
    "meta/tasks.parquet": b"x",
    **{f"videos/{TOP}/chunk-{n // 60:03d}/file-{n:03d}.mp4": b"t" * 1000 for n in range(120)},
    f"videos/{WRIST}/chunk-000/file-000.mp4": b"w" * 77,
}
V2 = {
    "inner/meta/info.json": as_bytes(info(video_path=BY_EPISODE, fps=10)),
    **{f"inner/videos/chunk-000/{TOP}/episode_{n:06d}.mp4": b"t" * 300 for n in range(9)},
}
TARS = {f"observations/363/{n}-{n + 99}.tar": b"x" * 5000 for n in range(900_000, 903_000, 100)}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    repositories = {
        BETA: Repository({**TARS, "observations/400/readme.md": b"x"}, gated=True),
        "team/v3": Repository(dict(V3)),
        "team/v2": Repository(dict(V2)),
        "team/odd": Repository({"meta/info.json": b"[]"}),
        "team/broken": Repository({"meta/info.json": b"{"}),
    }
    with serving(HubServer(repositories)) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setenv("NO_PROXY", "*")


def resource(
    dataset: dict[str, Any],
    size: str = "2B",
    inference: dict[str, Any] | None = None,
    **training: Any,
) -> Any:
    return parse(
        {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": "run"},
            "spec": {
                "model": {"size": size},
                "dataset": dataset,
                "training": {"iterations": 5, **training},
                "inference": inference or {},
            },
        }
    )


def facts_of(dataset: dict[str, Any], volume: Path | None = None) -> Any:
    made = resource(dataset)
    return dataset_facts(made, hub([f"datasets/{made.spec.dataset.repository}"]), volume)


def checked(dataset: dict[str, Any], volume: Path | None = None) -> list[Check]:
    facts = facts_of(dataset, volume)
    return list(check_dataset(make_plan(resource(dataset)), facts))


def texts(dataset: dict[str, Any], volume: Path | None = None) -> list[str]:
    return [f"{c.verdict} {c.text}; {c.remedy}" for c in checked(dataset, volume)]


def test_size_and_camera_of_a_dataset_on_the_hub() -> None:
    dataset = {"lerobot": {"repoID": "team/v3", "camera": "top"}}
    facts = facts_of(dataset)
    assert facts.bytes == 120_000  # on three pages, without the other camera
    (check,) = checked(dataset)
    assert (check.verdict, check.remedy) == ("ok", "")
    assert check.text == (
        f"team/v3: a LeRobotDataset, camera {TOP}, 10 episodes, 30 fps, about 0.0 GB are downloaded"
    )
    half = {"repoID": "team/v3", "camera": TOP, "episodes": ["0-3"], "validationEpisodes": [7]}
    assert dataset_disk(resource(dataset), facts) == 2 * dataset_disk(
        resource({"lerobot": half}), facts
    )


def test_size_of_a_dataset_with_a_file_for_each_episode() -> None:
    dataset = {"lerobot": {"repoID": "team/v2", "subfolder": "inner/", "camera": "top"}}
    assert facts_of(dataset).bytes == 3000  # of ten episodes, by the mean of nine
    (ok, short) = checked(dataset)
    assert str(ok.verdict) == "ok"
    assert str(short.verdict) == "warn"
    assert short.text.startswith("5 s at 10 fps are 50 frames, and a clip of the model needs 94")
    assert short.remedy == "set spec.dataset.lerobot.windowSeconds to 9.4 or more"
    longer = {"lerobot": dataset["lerobot"] | {"windowSeconds": 9.4}}
    assert [str(c.verdict) for c in checked(longer)] == ["ok"]


@pytest.mark.parametrize(
    ("lerobot", "expected"),
    [
        (
            {"repoID": "team/v3"},
            f"fail team/v3: camera is missing: {LISTED}; set spec.dataset.lerobot.camera to one of "
            "them",
        ),
        (
            {"repoID": "team/v3", "camera": "wirst"},
            f"fail team/v3: camera wirst: {LISTED}; did you mean wrist?",
        ),
        ({"repoID": "team/v3", "camera": DEPTH}, f"fail team/v3: camera {DEPTH} is depth (its"),
        (
            {"repoID": "team/v3", "camera": "top", "revision": "v9"},
            "fail team/v3 has no revision v9; correct spec.dataset.lerobot.revision, or remove it",
        ),
        (
            {"repoID": "team/v2", "camera": "top"},
            "fail team/v2 has no meta/info.json, so it is no LeRobotDataset; set "
            "spec.dataset.lerobot.subfolder to the folder that holds meta/",
        ),
        ({"repoID": "team/odd"}, "? team/odd: meta/info.json lists no features"),
    ],
)
def test_a_dataset_that_cannot_be_used(lerobot: dict[str, Any], expected: str) -> None:
    (text,) = texts({"lerobot": lerobot})
    assert text.startswith(expected)


def test_episodes_that_the_dataset_does_not_have() -> None:
    lerobot = {"repoID": "team/v3", "camera": "top", "episodes": ["0-3", "8-12"]}
    _, beyond = texts({"lerobot": lerobot | {"validationEpisodes": [9]}})
    assert beyond == (
        "warn meta/info.json counts 10 episodes, from 0, and episodes has 8-12; correct "
        "spec.dataset.lerobot.episodes, unless the dataset has gaps"
    )


def test_nothing_is_guessed_without_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = {"lerobot": {"repoID": "team/broken"}}
    assert facts_of(dataset) is None
    assert checked(dataset) == []
    assert facts_of({"lerobot": {"repoID": "team/unknown"}}) is None
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert facts_of({"lerobot": {"repoID": "team/v3"}}) is None
    assert dataset_disk(resource(dataset), None) == 0


@pytest.mark.parametrize(
    "features",
    [
        None,
        [],
        {TOP: None},
        {TOP: {"dtype": ["video"]}},
        {"a\x1b[31m": {"dtype": "video"}},
        {"action": {"shape": [float("nan")], "dtype": []}, TOP: {"dtype": "video"}},
        {"action": {"shape": [3], "names": {"a": [{}]}}, TOP: {"dtype": "video"}},
    ],
)
@pytest.mark.parametrize("fps", [None, True, "30", -1, float("inf"), {}])
def test_a_hostile_info_is_no_crash(features: Any, fps: Any) -> None:
    facts = LeRobotFacts(info=info(features=features, fps=fps, total_episodes=fps), bytes=5.0)
    lerobot = {"repoID": "a/b", "episodes": [3]}
    made = resource({"lerobot": lerobot, "actions": {"columns": ["action"]}})
    assert all(c.text for c in check_dataset(make_plan(made), facts))
    assert dataset_disk(made, facts) == 15.0


POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
ARM: dict[str, Any] = {
    TOP: {"dtype": "video", "shape": [480, 640, 3]},
    "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["pan.pos", "lift.pos"]}},
    "observation.state": {"dtype": "float32", "shape": [7], "names": POSE},
    "timestamp": {"dtype": "float32", "shape": [1]},
    "task": {"dtype": "string", "shape": [1]},
}
PER_CLIP = {"conditioning": {"actions": {"variant": "PerClip"}}}


@pytest.mark.parametrize(
    ("actions", "training", "expected"),
    [
        ({"columns": ["action"]}, {}, "ok 2 numbers of action; "),
        (
            {"columns": ["action", "observation.state"], "names": ["gripper", "action.pan.pos"]},
            {},
            "ok 2 numbers of action and observation.state; ",
        ),
        (
            {"columns": ["observation.state"], "representation": "RelativePose"},
            PER_CLIP,
            "ok 7 numbers of observation.state, as relative poses; ",
        ),
        (
            {"columns": ["actions"]},
            {},
            "fail meta/info.json has no column of numbers actions; it has action (2), "
            "observation.state (7); did you mean action?",
        ),
        (
            {"columns": ["timestamp"]},
            {},
            "fail meta/info.json has no column of numbers timestamp; it has action (2), "
            "observation.state (7); set spec.dataset.actions.columns to some of them",
        ),
        (
            {"columns": ["action"], "names": ["pan"]},
            {},
            "fail action has no value pan; it has pan.pos, lift.pos; did you mean pan.pos?",
        ),
        (
            {"columns": ["action"], "representation": "RelativePose"},
            {},
            "fail RelativePose takes 7 or 8 numbers (x, y, z, roll, pitch, yaw or qx, qy, qz, qw, "
            "and gripper), and 2 are selected; choose them with spec.dataset.actions.names, or use "
            "representation: Absolute",
        ),
        (
            {"columns": ["action"]},
            PER_CLIP,
            "fail PerClip takes 7 numbers per action, and 2 are selected; choose them with "
            "spec.dataset.actions.names, use RelativePose, or variant: PerFrame",
        ),
    ],
)
def test_actions_that_the_dataset_has_or_lacks(
    actions: dict[str, Any], training: dict[str, Any], expected: str
) -> None:
    dataset = {"lerobot": {"repoID": "a/b", "camera": "top"}, "actions": actions}
    plan = make_plan(resource(dataset, **training))
    *_, check = check_dataset(plan, LeRobotFacts(info=info(features=ARM)))
    assert (check.name, f"{check.verdict} {check.text}; {check.remedy}") == ("actions", expected)


def test_proprioception_of_agibot_is_put_there_by_hand(tmp_path: Path) -> None:
    agibot = {"agibot": {"taskIDs": [327, 363]}, "actions": {"columns": ["state/joint/position"]}}
    spec = resource(agibot).spec
    (tmp_path / "datasets/agibot/proprio_stats/327").mkdir(parents=True)
    (check,) = check_proprioception(spec, tmp_path)
    assert str(check.verdict) == "warn"
    assert "datasets/agibot/proprio_stats of task 363 is not there" in check.text
    assert "datasets/agibot/proprio_stats/TASK/EPISODE/proprio_stats.h5" in check.remedy
    (tmp_path / "datasets/agibot/proprio_stats/363").mkdir()
    assert list(check_proprioception(spec, tmp_path)) == []
    (unknown,) = check_proprioception(spec, None)
    assert str(unknown.verdict) == "?"
    assert list(check_proprioception(resource({"agibot": {}}).spec, tmp_path)) == []


def test_sequences_of_samples_are_looked_for_on_the_volume(tmp_path: Path) -> None:
    samples = [
        {"input": "a.png", "actions": "moves/left.csv"},
        {"input": "a.png", "actions": "moves/right.json"},
        {"input": "val/videos/a.mp4", "actions": "val/actions/b.safetensors"},
    ]
    dataset = {"lerobot": {"path": "mine"}, "actions": {"columns": ["action"]}}
    made = resource(dataset, conditioning={"actions": {}}, inference={"samples": samples})
    (tmp_path / "moves").mkdir()
    (tmp_path / "moves/left.csv").write_text("a\n1\n")
    (check,) = check_sequences(make_plan(made), tmp_path)
    assert check.text == "moves/right.json is not on the volume"
    assert check.remedy == "put it there, or fix spec.inference.samples[1].actions"
    assert list(check_sequences(make_plan(made), None)) == []


def test_a_dataset_on_the_volume(tmp_path: Path) -> None:
    dataset = {"lerobot": {"path": "mine", "camera": "top"}}
    (missing,) = texts(dataset, tmp_path)
    assert missing.startswith("fail mine has no meta/info.json")
    path = tmp_path / "mine/meta/info.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(as_bytes(info()))
    assert texts(dataset, tmp_path) == [
        f"ok mine: a LeRobotDataset, camera {TOP}, 10 episodes, 30 fps; "
    ]
    assert texts(dataset) == []  # a cluster's volume cannot be read from here


def test_archives_of_beta() -> None:
    agibot = {"release": "Beta", "taskIDs": [363, 400], "keepArchives": True}
    made = resource({"agibot": agibot})
    assert [r for r in estimate(made).repositories if r.startswith("datasets/")] == [
        f"datasets/{BETA}"
    ]
    assert texts({"agibot": agibot}) == [
        "ok task 363: 30 archives, 0.0 GB, all of them are kept; ",
        f"fail {BETA} has no archives of task 400; correct spec.dataset.agibot.taskIDs",
    ]
    assert dataset_disk(made, facts_of({"agibot": agibot})) == 150_000 - 100e9  # instead of 100 GB
    (text,) = texts({"agibot": agibot | {"revision": "old"}})
    assert text.startswith(f"fail {BETA} has no revision old; correct spec.dataset.agibot.revision")


def test_defects_of_beta_are_known() -> None:
    agibot = {"path": "datasets/beta", "taskIDs": [327, 380, 352, 711]}
    assert checked({"agibot": agibot}) == []
    beta = {"agibot": agibot | {"release": "Beta"}}
    assert [text.partition(";")[0] for text in texts(beta)] == [
        "warn task 380, 711 of AgiBotWorld-Beta: some of its videos are corrupt",
        "warn task 352 of AgiBotWorld-Beta: in some episodes, actions are longer than the "
        "recording",
    ]
    assert sum(map(len, BETA_DEFECTS.values())) == 17
    plan = make_plan(resource(beta))
    assert len(list(check_dataset(plan, AgiBotFacts()))) == 2


def test_the_command_reports_the_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.yaml"
    made = resource({"lerobot": {"repoID": "team/v3", "camera": "wirst"}}, "Tiny")
    file.write_text(json.dumps(made.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    flags = ("preflight", "-f", str(file), "--volume", str(tmp_path))
    assert main(flags) == 2
    out = capsys.readouterr().out
    assert "fail  dataset            team/v3: camera wirst: the dataset's cameras are" in out
    assert "fix: did you mean wrist?" in out
    file.write_text(file.read_text().replace("wirst", "top"))
    assert main(flags) == 0
    monkeypatch.setenv("HF_TOKEN", "hf_unlicensed")
    beta = resource({"agibot": {"release": "Beta", "taskIDs": [363]}}, "Tiny")
    file.write_text(json.dumps(beta.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    assert main(flags) == 2
    out = capsys.readouterr().out
    assert f"{BETA}: its licence is not accepted" in out
