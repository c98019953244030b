"""The evaluation stage in a simulated cluster, and its answer in the status."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcile_world import World, resource
from video2world_common.markers import Marker, Provenance
from video2world_common.progress_events import Evaluated, evaluated, parse
from video2world_operator.api.status import Status, dump_status, parse_status
from video2world_operator.cli.snapshot import Snapshot
from video2world_operator.cli.status_tree import tree
from video2world_operator.local.stage_check import check_stages
from video2world_operator.reconcile.progress import update_status
from video2world_operator.reconcile.reconciler import plan_of

ANSWER = {
    "verdict": "Better",
    "text": "Post-training helped: PSNR 18.00 dB (base weights) to 21.00 dB (iteration 1000)",
    "metric": "psnr",
    "checkpoint": "iter_000001000",
    "iteration": 1000,
    "clips": 16,
    "base": 18.0,
    "value": 21.0,
    "difference": 3.0,
    "low": 2.5,
    "high": 3.5,
}
HELD_OUT = {"agibot": {"validationEpisodeIDs": [1]}}


def event(**changes):
    return json.dumps({"event": "evaluation", "stage": "evaluation", **ANSWER, **changes})


def test_an_event_becomes_the_status():
    status = Status()
    update_status(status, parse(event()), "now")
    assert dump_status(status)["evaluation"] == ANSWER
    update_status(status, parse(event(low=None, high=None, iteration=None)), "now")
    assert dump_status(status)["evaluation"].keys() == ANSWER.keys() - {"low", "high", "iteration"}


@pytest.mark.parametrize(
    "changes",
    [{"verdict": "Great"}, {"verdict": []}, {"clips": -1}, {"base": None}, {"text": 3}],
)
def test_an_event_that_is_not_one_is_plain_text(changes):
    assert parse(event(**changes)) is None
    assert evaluated("evaluation", ANSWER | changes) is None


@given(st.dictionaries(st.sampled_from(list(ANSWER)), st.none() | st.booleans() | st.text()))
def test_no_event_breaks_the_status(changes):
    if (found := parse(event(**changes))) is not None:
        status = Status()
        update_status(status, found, "now")
        assert parse_status(dump_status(status)).evaluation == status.evaluation


def test_the_stage_follows_inference_and_its_answer_is_shown():
    world = World(resource(evaluation={"samples": 4}, dataset=HELD_OUT))
    for stage in ("download", "dataset", "embeddings", "latents", "train", "inference"):
        world.settle()
        assert "run-evaluation-1" not in world.jobs
        world.finish(stage)
    world.settle()
    assert world.status["stage"] == "evaluation"
    pod = next(m for m in world.applied if m["metadata"]["name"] == "run-evaluation-1")
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    world.round(events=[Evaluated("evaluation", **ANSWER)])
    world.finish("evaluation")
    world.settle()
    assert world.status["phase"] == "Succeeded"
    assert world.status["evaluation"] == ANSWER
    lines = tree(Snapshot("run", parse_status(world.status)), world.now)
    shown = [number for number, line in enumerate(lines) if "evaluation" in line]
    assert ANSWER["text"] in lines[shown[0] + 1]

    # another choice of windows is evaluated again, and none without the stage
    world.body["spec"]["evaluation"] = {"samples": 5}
    world.settle()
    assert world.status["stage"] == "evaluation"
    assert "evaluation" not in world.status
    world.round(events=[Evaluated("evaluation", **ANSWER)])
    assert world.status["evaluation"] == ANSWER
    del world.body["spec"]["evaluation"]
    world.settle()
    assert "evaluation" not in world.status


def test_a_worse_model_is_no_failure():
    world = World(resource(evaluation={}, dataset=HELD_OUT))
    for stage in ("download", "dataset", "embeddings", "latents", "train", "inference"):
        world.settle()
        world.finish(stage)
    world.settle()
    world.round(events=[Evaluated("evaluation", **ANSWER | {"verdict": "Worse"})])
    world.finish("evaluation")
    world.settle()
    assert (world.status["phase"], world.status["evaluation"]["verdict"]) == ("Succeeded", "Worse")


def test_a_local_run_reads_the_answer_of_a_stage_that_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = plan_of(resource(evaluation={}, dataset=HELD_OUT)).stage("evaluation")
    Marker("evaluation", stage.inputs_hash).write(Provenance(), {"evaluation": ANSWER})
    check = check_stages(tmp_path, [stage])["evaluation"]
    assert check.done
    assert evaluated("evaluation", check.result) == Evaluated("evaluation", **ANSWER)
