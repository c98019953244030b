"""Validation at the door: each rule of the API accepted and refused by the real API server."""

from __future__ import annotations

import pytest

from control_plane import ApiError
from operators import Resource
from video2world_operator.api import InvalidResource, parse

AGIBOT = {"agibot": {"path": "datasets/agibot"}}


def spec(**changes):
    return Resource.body(**changes)["spec"]


def refused(cluster, namespace, body):
    """What the API server says against ``body``; None if it takes it."""
    path = Resource(cluster, namespace).path
    try:
        cluster.admin.post(f"{path}?dryRun=All&fieldValidation=Strict", body)
    except ApiError as error:
        return str(error)
    return None


GPU = {"model": {"size": "2B"}}
CASES = {
    "one data set": (
        {"dataset": {"agibot": None, "prepared": {"path": "x"}}},
        {"dataset": {"prepared": {"path": "x"}}},
        "exactly one of",
    ),
    "size or experiment": (
        {"model": {"size": None}, "training": {"iterations": None, "nodes": None, "experiment":
         "predict2_video2world_training_2b_agibot_head_center_fisheye_color"}},
        {"model": {"size": None}},
        "model.size is missing",
    ),
    "iterations": ({}, {"training": {"iterations": None}}, "training.iterations is missing"),
    "context parallel": (
        {**GPU, "training": {"gpusPerNode": 8, "contextParallelSize": 4}},
        {**GPU, "training": {"gpusPerNode": 8, "contextParallelSize": 3}},
        "contextParallelSize must divide",
    ),
    "context parallel and heads": (
        {"model": {"size": "14B"}, "training": {"gpusPerNode": 8, "contextParallelSize": 8}},
        {**GPU, "training": {"nodes": 3, "gpusPerNode": 8, "contextParallelSize": 12}},
        "attention heads",
    ),
    "CPU is for Tiny": (
        {"training": {"device": "CPU"}},
        {**GPU, "training": {"device": "CPU", "gpusPerNode": 8}},
        "CPU can train",
    ),
    "access mode": (
        {"storage": {"accessMode": "ReadWriteMany"}},
        {"storage": {"accessMode": "ReadWriteOncePod"}},
        "cannot be shared",
    ),
    "paths stay on the volume": (
        {"dataset": {"agibot": {"path": "a/b..c"}}},
        {"dataset": {"agibot": {"path": "a/../b"}}},
        "without ..",
    ),
    "the checkpoint stays on the volume": (
        {"inference": {"checkpoint": "mine/w.pt"}},
        {"inference": {"checkpoint": "a/../../w.pt"}},
        "without ..",
    ),
    "absolute paths": (
        {"dataset": {"agibot": {"path": "a"}}},
        {"dataset": {"agibot": {"path": "/a"}}},
        "dataset.agibot.path",
    ),
    "variables of the plan": (
        {"stages": {"train": {"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}}},
        {"stages": {"train": {"env": [{"name": "PET_NNODES", "value": "2"}]}}},
        "set by the plan itself",
    ),
    "WORLD_SIZE is the plan's": (
        {"stages": {"train": {"env": [{"name": "MY_WORLD_SIZE", "value": "2"}]}}},
        {"stages": {"train": {"env": [{"name": "WORLD_SIZE", "value": "2"}]}}},
        "set by the plan itself",
    ),
    "a variable once": (
        {"stages": {"train": {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]}}},
        {"stages": {"train": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}}},
        "Duplicate value",
    ),
    "checkpoint or checkpoints": (
        {"inference": {"checkpoints": ["latest", 500, "all", "a/b..c/w.pt", ".x/w.pt"]}},
        {"inference": {"checkpoint": "latest", "checkpoints": [500]}},
        "inference.checkpoint is given beside inference.checkpoints; keep one",
    ),
    "checkpoints stay on the volume": (
        {"inference": {"checkpoints": ["..a/w.pt"]}},
        {"inference": {"checkpoints": ["a/../../w.pt"]}},
        "inference.checkpoints[0]",
    ),
    "iterations of checkpoints": (
        {"inference": {"checkpoints": [0]}},
        {"inference": {"checkpoints": [-1]}},
        "inference.checkpoints[0]",
    ),
    "every checkpoint needs samples": (
        {"inference": {"everyCheckpoint": True}},
        {"inference": {"everyCheckpoint": True, "samples": []}},
        "there is nothing to make; name inference.samples",
    ),
    "averaged weights are kept": (
        {"inference": {"weights": "EMA"}},
        {"inference": {"weights": "EMA"}, "training": {"ema": False}},
        "EMA is not kept with training.ema: false",
    ),
    "a volume for training and samples": (
        {"storage": {"accessMode": "ReadWriteMany"}, "inference": {"everyCheckpoint": True}},
        {"storage": {"accessMode": "ReadWriteOncePod"}, "training": {"nodes": 1},
         "inference": {"everyCheckpoint": True}},
        "cannot be shared",
    ),
    "outputs end in mp4": (
        {"inference": {"samples": [{"input": "a", "output": "a.mp4"}]}},
        {"inference": {"samples": [{"input": "a", "output": "a.avi"}]}},
        "output",
    ),
    "outputs differ": (
        {"inference": {"samples": [{"input": "a", "output": "a.mp4"}, {"input": "a"}]}},
        {"inference": {"samples": [{"input": "a", "output": "a.mp4"},
                                   {"input": "b", "output": "a.mp4"}]}},
        "given twice",
    ),
    "prompts fit an annotation": (
        {"inference": {"samples": [{"input": "a", "prompt": "x" * 4096}] * 20}},
        {"inference": {"samples": [{"input": "a", "prompt": "x" * 4096}] * 30}},
        "characters",
    ),
    "enumerations": (
        {"training": {"attention": "FlashAttention4"}},
        {"training": {"attention": "FlashAttention9"}},
        "Unsupported value",
    ),
    "bounds": (
        {"training": {"nodes": 1024, "gpusPerNode": 1}},
        {"training": {"nodes": 1025}},
        "less than or equal to 1024",
    ),
    "unknown fields": ({}, {"training": {"iteratons": 3}}, "unknown field"),
    "sizes": ({"storage": {"size": "1.5Ti"}}, {"storage": {"size": "big"}}, "storage.size"),
    "units": ({"storage": {"size": "100k"}}, {"storage": {"size": "100K"}}, "storage.size"),
    "no size at all": ({"storage": {"size": "0.5Gi"}}, {"storage": {"size": "0.0Gi"}}, "storage"),
}  # fmt: skip


def cleaned(value):
    """Without what is None: so that a case can take a field of the base away."""
    if isinstance(value, dict):
        return {k: cleaned(v) for k, v in value.items() if v is not None}
    return value


@pytest.mark.parametrize("name", CASES)
def test_rule(cluster, namespace, name):
    good, bad, words = CASES[name]
    accepted = cleaned(Resource.body(**good))
    assert refused(cluster, namespace, accepted) is None
    parse(accepted)  # the operator is of the same mind
    told = refused(cluster, namespace, cleaned(Resource.body(**bad)))
    assert told is not None
    assert words in told
    if name != "unknown fields":
        with pytest.raises(InvalidResource):
            parse(cleaned(Resource.body(**bad)))


@pytest.mark.parametrize("name", ["UPPER", "1st", "a" * 41, "a.b"])
def test_names(cluster, namespace, name):
    assert "metadata.name" in refused(cluster, namespace, Resource.body(name))
    with pytest.raises(InvalidResource):
        parse(Resource.body(name))


def test_defaults_are_the_servers(cluster, namespace):
    run = Resource(cluster, namespace).create()
    made = run.object["spec"]
    assert made["suspend"] is False
    assert made["cleanupPolicy"] == "Running"
    assert made["training"]["maxRestarts"] == 5
    assert made["storage"]["retention"] == "Keep"
    assert made["inference"]["guidance"] == 7
    parse(run.object)
    assert "status" not in run.object


FIXED = [
    ({"model": {"size": "2B"}}, "spec.model cannot be changed"),
    ({"dataset": {"agibot": {"camera": "head_color"}}}, "spec.dataset cannot be changed"),
    ({"storage": {"size": "2Gi"}}, "spec.storage cannot be changed"),
    ({"training": {"nodes": 3}}, "of spec.training only"),
    ({"training": {"seed": 3}}, "of spec.training only"),
    ({"training": {"learningRate": 0.1}}, "of spec.training only"),
    ({"scheduling": {"priorityClassName": "high"}}, "only while spec.suspend"),
]
FREE = [
    {"training": {"iterations": 500}},
    {"training": {"maxRestarts": 9, "checkpoint": {"keep": 1}}},
    {"inference": {"samples": [{"input": "other.mp4"}]}},
    {"ttlSecondsAfterFinished": 5},
    {"suspend": True},
    {"activeDeadlineSeconds": 500},
    {"images": {"trainer": "mine:2"}},
]


@pytest.mark.parametrize(("change", "words"), FIXED, ids=lambda v: str(v)[:40])
def test_what_work_is_built_on_stays_once_it_has_begun(cluster, namespace, change, words):
    run = Resource(cluster, namespace).create()
    path = f"{run.path}/run"
    cluster.admin.patch(f"{path}?dryRun=All", {"spec": change})  # free before
    cluster.admin.patch(f"{path}/status", {"status": {"startTime": "2026-11-24T12:00:00Z"}})
    with pytest.raises(ApiError, match=words):
        cluster.admin.patch(f"{path}?dryRun=All", {"spec": change})
    if "scheduling" in change:
        run.patch(suspend=True)
        run.patch(**change)


@pytest.mark.parametrize("change", FREE, ids=lambda v: str(v)[:40])
def test_what_may_change_at_any_time(cluster, namespace, change):
    run = Resource(cluster, namespace).create()
    started = {"status": {"startTime": "2026-11-24T12:00:00Z"}}
    cluster.admin.patch(f"{run.path}/run/status", started)
    run.patch(**change)
    parse(run.object)


def test_annotations_at_their_limit_do_no_harm(cluster, namespace):
    body = Resource.body()
    body["metadata"]["annotations"] = {"big": "x" * 262_000}
    run = Resource(cluster, namespace)
    cluster.admin.post(run.path, body)
    parse(run.object)
    cluster.admin.patch(f"{run.path}/run/status", {"status": {"restarts": 1}})
