"""The status as JSON: nothing is lost on the way in, and only what was set goes out."""

import copy
import json

import pytest

from reconcile_world import World
from video2world_common.progress_events import TrainProgress, Validated, parse
from video2world_operator.api.status import Phase, StageStatus, Status, dump_status, parse_status
from video2world_operator.reconcile.progress import update_status

FULL = {
    "phase": "Running",
    "stage": "train",
    "restarts": 0,
    "volumeID": "v",
    "stages": [
        {"name": "dataset", "state": "Succeeded", "attempt": 1, "jobUID": "j", "logTail": ""},
        {"name": "train", "state": "Running", "attempt": 2, "active": 0},
    ],
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "Valid",
            "message": "",
            "lastTransitionTime": "2026-11-24T12:00:00Z",
            "observedGeneration": 3,
        }
    ],
    "attempts": [{"number": 2, "startIteration": 0, "heldGPUSeconds": 1.5, "charged": False}],
    "closedGPUSeconds": {"useful": 1.0, "lost": 0.0, "idle": 0.5},
}


def test_what_is_read_is_written():
    before = copy.deepcopy(FULL)
    assert dump_status(parse_status(FULL)) == before
    assert before == FULL  # reading does not change it


def test_every_status_that_reconciling_writes_is_read_and_written_unchanged():
    world = World()
    for stage in ("download", "dataset", "embeddings", "latents", "train", "inference"):
        world.settle()
        assert dump_status(parse_status(world.status)) == world.status
        world.start_pods()
        world.round()
        assert dump_status(parse_status(world.status)) == world.status
        world.pods.clear()
        world.finish(stage)


@pytest.mark.parametrize("raw", [None, {}, [], "text"])
def test_no_status_is_an_empty_one(raw):
    assert parse_status(raw).is_empty
    assert dump_status(parse_status(raw)) == {}
    assert parse_status(raw).phase is Phase.PENDING


def test_only_fields_that_were_set_are_written():
    status = Status()
    assert dump_status(status) == {}
    status.restarts += 0
    status.stages = [StageStatus(name="train", message="", start_time=None)]
    assert dump_status(status) == {"restarts": 0, "stages": [{"name": "train", "message": ""}]}
    status.volume_id = "v"
    del status.volume_id, status.restarts
    assert (status.volume_id, status.restarts) == ("", 0)
    assert dump_status(status) == {"stages": [{"name": "train", "message": ""}]}


def test_a_field_that_does_not_exist_cannot_be_deleted():
    with pytest.raises(KeyError):
        del Status().volume  # the field is volume_id


def test_defaults_are_not_shared():
    one, other = Status(), Status()
    del one.stages
    one.stages.append(StageStatus(name="train"))
    assert other.stages == []
    assert Status().stages == []


def test_fields_of_another_version_are_kept_at_any_depth():
    raw = copy.deepcopy(FULL) | {"newField": {"a": [1]}}
    raw["stages"][1]["newField"] = "x"
    raw["conditions"][0]["newField"] = 1
    status = parse_status(raw)
    status.stages[1].attempt = 3
    raw["stages"][1]["attempt"] = 3
    assert dump_status(status) == raw


def test_values_that_cannot_be_read_cost_as_little_as_possible():
    raw = copy.deepcopy(FULL)
    raw["stages"][0] |= {"state": "Paused", "attempt": -1}  # values that this version lacks
    raw["stages"].append({"name": "evaluate", "state": "Pending"})
    raw["stages"].append({"state": "Pending"})
    raw["conditions"].append({"type": "Accepted", "status": "Perhaps"})
    raw["progress"] = "half"
    status = parse_status(raw)
    expected = copy.deepcopy(FULL)
    del expected["stages"][0]["state"], expected["stages"][0]["attempt"]
    assert dump_status(status) == expected


def test_the_running_phase_is_shown():
    status = Status()
    line = {"iteration": 3, "iterations": 9, "phase": "1/2 at 432x768"}
    event = parse(json.dumps({"event": "progress", "stage": "train"} | line))
    update_status(status, event, "now")
    assert dump_status(status)["progress"]["phase"] == "1/2 at 432x768"
    update_status(status, TrainProgress("train", 5, 9), "now")
    assert "phase" not in dump_status(status)["progress"]


def test_a_pace_below_zero_from_a_log_is_left_out():
    status = Status()
    update_status(status, TrainProgress("train", 1, 9, seconds_per_iteration=-1.0), "now")
    assert "secondsPerIteration" not in dump_status(status)["progress"]
    assert parse_status(dump_status(status)) == status


def validation_line(**fields):
    return json.dumps({"event": "validation", "stage": "train", "iteration": 10} | fields)


def test_a_validation_reaches_the_status():
    status = Status()
    line = validation_line(
        loss=0.123456789,
        low=0.1,
        middle=0.2,
        high=0.3,
        best_iteration=5,
        best_loss=0.1,
        base_loss=0.9,
        weights="ema",
        stopped="it no longer falls",
    )
    update_status(status, parse(line), "now")
    assert dump_status(status)["validation"] == {
        "iteration": 10,
        "loss": 0.123457,
        "lowNoise": 0.1,
        "middleNoise": 0.2,
        "highNoise": 0.3,
        "bestIteration": 5,
        "bestLoss": 0.1,
        "baseLoss": 0.9,
        "weights": "EMA",
        "stopped": "it no longer falls",
    }
    update_status(status, TrainProgress("train", 10, 20), "now")
    assert status.validation.stopped  # the report of the same iteration
    update_status(status, TrainProgress("train", 11, 20), "now")
    assert not status.validation.stopped  # training continues: its settings were changed


@pytest.mark.parametrize(
    "fields",
    [
        {"iteration": -1},
        {"iteration": "x"},
        {"best_iteration": 1.5},
        {"weights": 5},
        {"stopped": ["x"]},
    ],
)
def test_a_malformed_validation_is_plain_text(fields):
    assert parse(validation_line(**fields)) is None


def test_a_loss_that_is_no_number_does_not_lose_the_event():
    assert parse(validation_line(loss="nan", low=True, best_loss=1e999)) == Validated("train", 10)
