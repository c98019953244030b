"""Test divergence detection: no false alarms, nothing missed, and the consequences."""

import io
import json
import math
import random
from dataclasses import asdict

import pytest

from reconcile_world import World
from tiny_training import JOB, events, losses, run
from video2world_common.progress_events import parse, with_warning
from video2world_operator.api.status import Status, dump_status, parse_status
from video2world_operator.cli.explain import explain
from video2world_operator.cli.snapshot import ClusterObjects, Snapshot
from video2world_operator.cli.status_tree import tree
from video2world_operator.reconcile.progress import update_status
from video2world_operator.terminal import Display
from video2world_trainer.checkpoint.folder import CheckpointFolder, read_latest
from video2world_trainer.results.page import render_page
from video2world_trainer.results.run_results import RunResults
from video2world_trainer.training.divergence import Divergence

NOTHING = 20.0
DECAY = [19 * math.exp(-n / 100) + 4 for n in range(400)]


def noisy(curve, clips, seed, spread=1.0):
    """Return reports of means over clips whose losses vary as with the noise level."""
    source = random.Random(seed)
    # a log-normal factor of mean 1, cut where a network that predicts nothing would be
    return [
        sum(
            min(mean * source.lognormvariate(-(spread**2) / 2, spread), 2.5 * NOTHING)
            for _ in range(clips)
        )
        / clips
        for mean in curve
    ]


def judged(reports, clips, every=10, nothing=NOTHING):
    found = Divergence(nothing=nothing)
    for number, loss in enumerate(reports, start=1):
        found.report(number * every, loss, clips, last=number == len(reports))
    return found


HEALTHY = {
    "falls": DECAY,
    "level": [5.0] * 400,
    "from base weights": [1.5 - n / 1000 for n in range(400)],
    "rises by half": [2.0] * 200 + [3.0] * 200,
    "learned by heart": [19 * math.exp(-n / 30) + 0.02 for n in range(400)],
    "other data afterwards": [0.1] * 200 + [4.0] * 200,
    "one spike": [*([3.0] * 100), 900.0, *([3.0] * 100)],
    "two spikes in a row": [*([3.0] * 100), 900.0, 900.0, *([3.0] * 100)],
    "skipped steps": [*([3.0] * 100), *([None] * 30), *([3.0] * 100)],
    "starts bad": [150.0, 120.0, *DECAY],
    "random weights": [62.0, 40.0, *DECAY],
}


@pytest.mark.parametrize("clips", [1, 4, 40, 320])
@pytest.mark.parametrize("name", HEALTHY)
def test_noisy_healthy_curves_are_not_reported(name, clips):
    for seed in range(3):
        curve = HEALTHY[name]
        noise = noisy([one or 0 for one in curve], clips, seed)
        reports = [
            one if one is None or one > 100 else heard
            for one, heard in zip(curve, noise, strict=True)
        ]
        every = max(1, 10 // clips)
        found = judged(reports, clips, every)
        assert found.since is None, (name, seed, asdict(found))
        assert found.warning() == ""
        assert len(reports) * every - found.healthy <= max(40, 3 * every)


def test_a_long_run_of_single_clips_is_not_reported():
    for spread in (0.8, 1.2):
        assert judged(noisy([3.0] * 60_000, 1, 7, spread), 1, 1).since is None


DIVERGED = {  # curve, and between which iterations (of ten a report) it must be said to have begun
    "at once": ([4e11] * 10, 0, 0),
    "at the very end": ([*DECAY[:50], 3e5], 480, 500),
    "a run of two reports": ([19.0, 1e6], 0, 10),
    "explodes": ([*DECAY[:100], *(25 * 4.0**n for n in range(30))], 960, 1020),
    "collapses to nothing": ([*DECAY, *([21.0] * 40)], 3960, 4000),
    "worse than nothing, level": ([*([1.5] * 60), *([30.0] * 40)], 560, 600),
    "leaves the numbers": ([*([3.0] * 60), *([math.inf] * 5)], 560, 600),
    "falls again slowly": ([2e11 * 0.5**n for n in range(20)], 0, 0),
}


@pytest.mark.parametrize("clips", [10, 40])
@pytest.mark.parametrize("name", DIVERGED)
def test_divergence_is_detected_and_dated(name, clips):
    curve, low, high = DIVERGED[name]
    found = judged([one if one > 100 else noisy([one], clips, 1)[0] for one in curve], clips)
    assert found.since is not None, asdict(found)
    assert low <= found.since <= high
    assert f"diverged after iteration {found.since}: the loss is" in found.warning()


def test_divergence_is_detected_soon():
    for name, (curve, *_) in DIVERGED.items():
        found = Divergence(nothing=NOTHING)
        bad = next(n for n, one in enumerate(curve) if one > 20 and n) if name != "at once" else 0
        for number, loss in enumerate(curve[: bad + 6], start=1):
            found.report(number * 10, loss, 40, last=number == len(curve))
        assert found.since is not None or len(curve) > bad + 6, name


def test_a_recovered_run_has_no_warning():
    found = judged([*([3.0] * 50), *([900.0] * 5)], 40)
    assert found.since == 500
    for number in range(56, 62):
        found.report(number * 10, 3.0, 40)
    assert found.since is None
    assert found.healthy == 610


@pytest.mark.parametrize("cut", range(0, 130, 13))
def test_a_resumed_run_detects_the_same_as_an_uninterrupted_one(cut):
    reports = noisy([*DECAY[:80], *(25 * 3.0**n for n in range(50))], 5, 3)
    whole = judged(reports, 5)
    first = Divergence(nothing=NOTHING)
    for number, loss in enumerate(reports[:cut], start=1):
        first.report(number * 10, loss, 5)
    second = Divergence.restored(json.loads(json.dumps(first.state())))
    for number, loss in enumerate(reports[cut:], start=cut + 1):
        second.report(number * 10, loss, 5, last=number == len(reports))
    assert second.state() == whole.state()


def test_without_the_loss_of_predicting_zero_only_a_rise_counts():
    assert judged([1e9] * 20, 40, nothing=0.0).since is None
    assert judged([*([3.0] * 20), *([1e9] * 20)], 40, nothing=0.0).since is not None


# ---------------------------------------------------------------------- a real training


def test_a_real_training_is_healthy_and_records_the_loss_of_predicting_zero(here, volume):
    code, out = here(volume, "trainer.max_iter=36", "trainer.logging_iter=1")
    assert code == 0, out
    assert "diverged" not in out
    state = CheckpointFolder(volume / JOB).load("trainer", 36)["progress"]["divergence"]
    assert state["nothing"] == pytest.approx(20, rel=0.2)  # noise and latents of unit variance
    assert state["healthy"] >= 32


BAD = ["optimizer.lr=1", "scheduler.warm_up_steps=0", "optimizer.weight_decay=0"]


def test_a_diverged_run_is_warned_of_and_trained_to_the_end(here, volume):
    code, out = here(volume, "trainer.max_iter=30", "trainer.logging_iter=5", *BAD)
    assert code == 0, out
    assert out.count("warning: Training has diverged after iteration") == 2  # when seen, at the end
    assert "Lower optimizer.lr (spec.training.learningRate)" in out
    last = events(out, "progress")[-1]
    assert last["warning"].startswith("Training has diverged after iteration 0")
    assert last["diverged_after"] == 0
    assert "Training has diverged" in events(out, "finished")[0]["warning"]
    html = (volume / "results/demo/index.html").read_text()
    assert 'class="warning">Training has diverged after iteration 0:' in html


def test_stop_when_diverged_keeps_the_last_sound_checkpoint_to_resume_from(
    here,
    volume,
):
    """It is not pruned, later ones are deleted, and a sound learning rate continues from it."""
    settings = ["trainer.logging_iter=5", "checkpoint.save_iter=5", "checkpoint.keep=1"]
    code, out = here(volume, "trainer.max_iter=10", *settings)
    assert code == 0, out
    before = losses(out)
    stop = "trainer.stop_when_diverged=true"
    code, out = here(volume, "trainer.max_iter=200", *settings, *BAD, stop)
    assert code == 2, out
    assert "Traceback" not in out
    failed = events(out, "failed")[0]
    assert failed["reason"] == "UserError"
    assert "The checkpoint of iteration 10 is kept" in failed["message"]
    assert [one["iteration"] for one in events(out, "checkpoint")] == [15, 20]
    assert events(out, "withdrawn") == [
        {
            "event": "withdrawn",
            "stage": "train",
            "iteration": 10,
            "path": f"{JOB}/model/iter_000000010.pt",
        }
    ]
    assert read_latest(volume / JOB) == 10
    assert CheckpointFolder(volume / JOB).iterations() == [10]
    code, out = here(volume, "trainer.max_iter=15", *settings, stop)
    assert code == 0, out
    assert "resuming from iteration 10" in out
    assert losses(out)[15] < 2 * max(before.values())


def test_a_run_that_diverges_immediately_leaves_no_checkpoint(here, volume):
    flags = ["trainer.logging_iter=5", "checkpoint.save_iter=5", "trainer.stop_when_diverged=true"]
    code, out = here(volume, "trainer.max_iter=200", *flags, *BAD)
    assert code == 2, out
    assert "No checkpoint was saved before that" in out
    assert CheckpointFolder(volume / JOB).iterations() == []
    assert read_latest(volume / JOB) is None
    code, out = here(volume, "trainer.max_iter=5", *flags)
    assert code == 0, out
    assert "from the start" in out


@pytest.mark.slow
def test_ranks_agree_to_stop(volume):
    code, out = run(
        volume,
        "trainer.max_iter=200",
        "trainer.logging_iter=5",
        "trainer.stop_when_diverged=true",
        *BAD,
        ranks=2,
        module="video2world_trainer.launch",
    )
    assert code == 2, out
    assert len(events(out, "withdrawn")) == 1


# ---------------------------------------------------------------------- what people see of it

WARNING = "Training has diverged after iteration 40: the loss is 4e+11."


def line(**fields):
    reported = {
        "event": "progress",
        "stage": "train",
        "iteration": 60,
        "iterations": 90,
        "loss": 4e11,
    }
    return json.dumps(reported | fields)


def test_the_status_warns_until_the_loss_is_sound_again():
    status = Status()
    update_status(status, parse(line(warning=WARNING)), "now")
    warning = status.progress.warning
    assert warning == WARNING
    assert with_warning("Stage train runs.", warning) == f"Stage train runs. {WARNING}"
    assert with_warning(f"It failed: {WARNING}", warning) == f"It failed: {WARNING}"
    update_status(status, parse(line()), "now")
    assert "warning" not in dump_status(status)["progress"]
    assert with_warning("Stage train runs.", status.progress.warning) == "Stage train runs."
    assert parse(line(warning=["x"])) is None


def test_withdrawn_checkpoints_are_removed_from_the_status():
    saved = {"event": "checkpoint", "stage": "train", "iteration": 60, "path": "m/60.pt"}
    status = Status()
    update_status(status, parse(json.dumps(saved)), "now")
    gone = saved | {"event": "withdrawn", "iteration": 40, "path": "m/40.pt"}
    update_status(status, parse(json.dumps(gone)), "now")
    assert dump_status(status)["checkpoint"] == {"iteration": 40, "path": "m/40.pt", "time": "now"}
    update_status(status, parse(json.dumps(gone | {"iteration": 0, "path": ""})), "now")
    assert "checkpoint" not in dump_status(status)


def test_operator_status_tree_and_explanation_show_it():
    world = World()
    world.to_training()
    world.status["progress"] = {"iteration": 60, "iterations": 90, "warning": WARNING}
    world.round()
    assert world.status["message"].endswith(WARNING)
    seen = Snapshot("run", parse_status(world.status), list(world.pods.values()))
    assert any(WARNING in one and "warning" in one for one in tree(seen, world.now))
    (cause,) = explain(seen, ClusterObjects(world.body["metadata"], world.body["spec"]), world.now)
    assert cause.what == WARNING
    assert "spec.training.stopWhenDiverged" in cause.remedy


def test_the_terminal_warns_once():
    out = io.StringIO()
    display = Display(out)
    display.start("train")
    for iteration in (10, 20, 30):
        warning = WARNING if iteration > 10 else ""
        display.event(parse(line(iteration=iteration, warning=warning)))
        display.event(parse('{"event": "resumed", "stage": "train", "iteration": 3}'))
    assert out.getvalue().count(f"warning: {WARNING}") == 1


def test_the_page_warns_of_the_newest_record_only():
    records = [{"iteration": n * 10, "loss": 3.0} for n in range(1, 5)]
    assert "diverged" not in render_page(RunResults("x", records=records))
    bad = [*records, {"iteration": 50, "loss": 1e9, "diverged_after": 40}]
    assert "Training has diverged after iteration 40:" in render_page(RunResults("x", records=bad))
    assert "diverged" not in render_page(
        RunResults("x", records=[*bad, {"iteration": 60, "loss": 3.0}])
    )
