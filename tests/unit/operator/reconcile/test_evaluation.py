"""The evaluation stage in a simulated cluster, and its answer in the status."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcile_world import World, causes, resource
from video2world_common.markers import Marker, Provenance
from video2world_common.progress_events import ActionsMeasured, Evaluated, evaluated, parse
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
MEASURED = {
    "followed": True,
    "text": "The model follows its actions: lift 21 % (95 % interval 17 % to 25 %)",
    "clips": 16,
    "lift": 0.21,
    "low": 0.17,
    "high": 0.25,
}
IGNORED = MEASURED | {"followed": False, "text": "It ignores its actions", "low": -0.01}
HELD_OUT = {"agibot": {"validationEpisodeIDs": [1]}}


def event(**changes):
    return json.dumps({"event": "evaluation", "stage": "evaluation", **ANSWER, **changes})


def test_an_event_becomes_the_status():
    status = Status()
    update_status(status, parse(event()), "now")
    assert dump_status(status)["evaluation"] == ANSWER
    update_status(status, parse(event(actions=MEASURED)), "now")
    assert dump_status(status)["evaluation"] == ANSWER | {"actions": MEASURED}
    update_status(status, parse(event(low=None, high=None, iteration=None)), "now")
    assert dump_status(status)["evaluation"].keys() == ANSWER.keys() - {"low", "high", "iteration"}


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "Great"},
        {"verdict": []},
        {"clips": -1},
        {"base": None},
        {"text": 3},
        {"actions": []},
        {"actions": MEASURED | {"followed": "yes"}},
        {"actions": {"followed": True, "clips": 1}},
    ],
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
    world.body["metadata"]["generation"] += 1
    world.settle()
    assert world.status["stage"] == "evaluation"
    assert "evaluation" not in world.status
    world.round(events=[Evaluated("evaluation", **ANSWER)])
    assert world.status["evaluation"] == ANSWER
    del world.body["spec"]["evaluation"]
    world.body["metadata"]["generation"] += 1
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


CONDITIONED = {
    "dataset": HELD_OUT | {"actions": {"columns": ["state/joint/position"]}},
    "training": {"iterations": 1000, "nodes": 2, "conditioning": {"actions": {}}},
}


def at_the_evaluation(**evaluation):
    world = World(resource(evaluation=evaluation, **CONDITIONED))
    for stage in ("download", "dataset", "embeddings", "latents", "train", "inference"):
        world.settle()
        world.finish(stage)
    world.settle()
    return world


def answered(actions):
    return parse(event(actions=actions))


def conditions(world):
    return {one["type"]: one for one in world.status["conditions"]}


@pytest.mark.parametrize("actions", [MEASURED, IGNORED])
def test_a_condition_says_whether_actions_are_followed(actions):
    world = at_the_evaluation()
    assert "ActionsFollowed" not in conditions(world)
    world.round(events=[answered(actions)])
    world.finish("evaluation")
    world.settle()
    assert world.status["phase"] == "Succeeded"
    found = conditions(world)["ActionsFollowed"]
    followed = actions["followed"]
    assert found["status"] == str(followed)
    assert found["reason"] == ("ActionsFollowed" if followed else "ActionsIgnored")
    assert found["message"] == actions["text"]
    assert found["observedGeneration"] == 1
    lines = tree(Snapshot("run", parse_status(world.status)), world.now)
    assert any(actions["text"] in line for line in lines)
    why = causes(world)
    assert [one.what for one in why] == ([] if followed else [actions["text"]])

    # a new evaluation starts without an answer, and one without actions has none
    world.body["spec"]["evaluation"] = {"samples": 5}
    world.body["metadata"]["generation"] += 1
    world.settle()
    assert "ActionsFollowed" not in conditions(world)
    world.round(events=[parse(event())])
    assert "ActionsFollowed" not in conditions(world)


@pytest.mark.parametrize(
    ("asked", "actions", "reason"),
    [
        (True, IGNORED, "ActionsIgnored"),
        (False, IGNORED, "UserError"),
        (True, MEASURED, "UserError"),
        (True, None, "UserError"),
    ],
)
def test_ignored_actions_fail_the_run_if_that_is_asked(asked, actions, reason):
    world = at_the_evaluation(failWhenActionsIgnored=asked)
    world.start_pods()
    world.round(events=[answered(actions)])
    line = {"event": "failed", "stage": "evaluation", "reason": "UserError", "message": "no lift"}
    world.pod("run-evaluation-1-0", phase="Failed", exit_code=2, tail=json.dumps(line))
    world.jobs["run-evaluation-1"] = replace(
        world.jobs["run-evaluation-1"], failed="PodFailurePolicy"
    )
    world.round()
    assert conditions(world)["Failed"]["reason"] == reason
    assert world.status["message"].endswith("no lift")
    assert world.stage("evaluation")["state"] == "Failed"
    (cause,) = causes(world)
    assert ("spec.dataset.actions" in cause.remedy) == (reason == "ActionsIgnored")


def test_a_local_run_reads_the_answer_of_a_stage_that_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = plan_of(resource(evaluation={}, dataset=HELD_OUT)).stage("evaluation")
    measured = ANSWER | {"actions": MEASURED}
    Marker("evaluation", stage.inputs_hash).write(Provenance(), {"evaluation": measured})
    check = check_stages(tmp_path, [stage])["evaluation"]
    assert check.done
    expected = Evaluated("evaluation", **ANSWER, actions=ActionsMeasured(**MEASURED))
    assert evaluated("evaluation", check.result) == expected
