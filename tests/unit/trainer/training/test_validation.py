"""The validation loss: same draws each time and for every number of ranks, and no effect on
training; what is recorded, kept and stopped by it."""

import json
import math
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tiny_training import (
    JOB,
    SETTINGS,
    SHAPE,
    add_window,
    events,
    finish,
    losses,
    read_until,
    run,
    start,
)
from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.validation_record import (
    ValidationResult,
    best_checkpoint,
    best_result,
    read_results,
    write_results,
)
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.loss import NoiseDistribution, sample_sigma, sigma_at
from video2world_trainer.training.progress import Progress
from video2world_trainer.training.validation import choose_clips
from video2world_trainer.training.validation_schedule import ValidationSchedule

pytestmark = pytest.mark.usefixtures("one_thread")

ON = ["trainer.run_validation=true", "trainer.validation_iter=2"]
SHORT = ["trainer.max_iter=6", "checkpoint.save_iter=3"]
SPARSE_CLIP = ["dataloader_train.dataset.video_size=[96,128]", "model.attention_pattern=sparse"]


@pytest.fixture
def held_out(volume):
    """The tiny data set with two held-out windows of two clips."""
    generator = torch.Generator().manual_seed(1)
    for number in range(2):
        add_window(volume, f"v{number}", torch.randn((2, *SHAPE), generator=generator), "val")
    return volume


def weights(volume, iteration, job="demo"):
    return CheckpointFolder(volume / JOB.replace("demo", job)).load("model", iteration)


def validations(out):
    return {one["iteration"]: one["loss"] for one in events(out, "validation")}


def record(volume, job="demo"):
    return json.loads((volume / JOB.replace("demo", job) / "validation.json").read_text())


# --------------------------------------------------------------------- draws


@pytest.mark.parametrize("frames", [1, 24])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 1.0])
def test_levels_are_quantiles_of_the_training_distribution(frames, ratio):
    distribution = NoiseDistribution(high_sigma_ratio=ratio)
    drawn = sample_sigma(50_000, frames, torch.Generator().manual_seed(0), distribution)
    for share in (0.05, 0.3, 0.5, 0.8, 0.98):
        below = float((drawn < sigma_at(share, frames, distribution)).double().mean())
        assert below == pytest.approx(share, abs=0.01)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(1, 60))
def test_clips_are_chosen_evenly_and_once(counts, wanted):
    chosen = choose_clips(counts, wanted)
    assert len(chosen) == min(wanted, sum(counts))
    assert len(set(chosen)) == len(chosen)
    assert all(0 <= clip < counts[window] for window, clip in chosen)
    quotas = [sum(one == window for one, _ in chosen) for window in range(len(counts))]
    open_ones = [q for q, count in zip(quotas, counts, strict=True) if q < count]
    assert not open_ones or max(quotas) - min(open_ones) <= 1  # no window twice before all once


# --------------------------------------------------------------------- training is not affected


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model.config.train_architecture=lora"],
        ["trainer.validation_weights=ema"],
    ],
    ids=["base", "lora", "ema"],
)
def test_training_is_the_same_with_and_without(here, held_out, settings):
    _, without = here(held_out, *SHORT, *settings, "job.name=without")
    code, out = here(held_out, *SHORT, *settings, *ON)
    assert code == 0, out
    assert losses(out) == losses(without)
    expected = weights(held_out, 6, "without")
    assert all(torch.equal(one, expected[name]) for name, one in weights(held_out, 6).items())
    assert sorted(validations(out)) == [0, 2, 4, 6]
    assert len({one["loss"] for one in record(held_out)}) == 4


def test_sparse_training_is_the_same_too(here, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        add_window(tmp_path, "w0", torch.randn((1, 16, 2, 12, 16), generator=generator), split)
    _, without = here(tmp_path, *SHORT, *SPARSE_CLIP, "job.name=without")
    code, out = here(tmp_path, *SHORT, *SPARSE_CLIP, *ON)
    assert code == 0, out
    assert losses(out) == losses(without)
    assert sorted(validations(out)) == [0, 2, 4, 6]


def test_phases_are_measured_at_the_last_frame_size(here, held_out):
    smaller = held_out / "datasets/d/train/latents_16x32"
    smaller.mkdir()
    generator = torch.Generator().manual_seed(2)
    for path in (held_out / "datasets/d/train/latents").iterdir():
        clips = torch.randn((2, *SHAPE[:2], 2, 4), generator=generator)
        facts = {"geometry": "crop"}
        save_file({"latents": clips, "starts": torch.arange(2)}, smaller / path.name, facts)
    phases = [*SHORT, "trainer.phases=[[16,32,3],[32,32]]"]
    _, without = here(held_out, *phases, "job.name=without")
    code, out = here(held_out, *phases, *ON)
    assert code == 0, out
    assert losses(out) == losses(without)
    assert sorted(validations(out)) == [0, 2, 4, 6]
    _, single = here(held_out, *SHORT, *ON, "job.name=single")
    assert validations(out)[0] == validations(single)[0]


def test_a_resumed_run_records_what_the_uninterrupted_one_does(here, held_out):
    here(held_out, *SHORT, *ON, "job.name=whole")
    here(held_out, *SHORT, *ON, "trainer.max_iter=3")
    # after a kill the file may be ahead of the newest checkpoint
    ahead = [ValidationResult.restored(one) for one in record(held_out, "whole")]
    write_results(held_out / JOB, ahead)
    code, out = here(held_out, *SHORT, *ON)
    assert code == 0, out
    assert sorted(validations(out)) == [4, 6]
    by_iteration = {one["iteration"]: one for one in record(held_out)}
    assert by_iteration.pop(3)  # the last iteration of the first part
    assert list(by_iteration.values()) == record(held_out, "whole")
    expected = weights(held_out, 6, "whole")
    assert all(torch.equal(one, expected[name]) for name, one in weights(held_out, 6).items())


def test_validation_can_begin_in_the_middle_of_a_run(here, held_out):
    here(held_out, *SHORT, "trainer.max_iter=3")
    code, out = here(held_out, *SHORT, *ON)
    assert code == 0, out
    assert sorted(validations(out)) == [4, 6]


def test_a_run_shorter_than_the_interval_is_validated_at_both_ends(here, held_out):
    code, out = here(held_out, *SHORT, *ON, "trainer.validation_iter=50")
    assert code == 0, out
    assert sorted(validations(out)) == [0, 6]


def test_a_stop_during_a_validation_ends_it_and_resuming_repeats_it(here, held_out):
    many = ["trainer.validation_levels=32", "trainer.max_iter=2", "checkpoint.save_iter=2"]
    _, whole = here(held_out, *ON, *many, "job.name=whole")
    process = start(held_out, *ON, *many)
    read_until(process, 1)
    process.send_signal(signal.SIGTERM)  # within the validation of iteration 2, or next to it
    code, out = finish(process)
    assert code in (0, 143), out  # 0: it was over before
    code, rest = here(held_out, *ON, *many)
    assert code == 0, rest
    assert record(held_out) == record(held_out, "whole")
    assert losses(whole)[2] == (losses(out) | losses(rest))[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, ["model.config.fsdp_shard_size=2", "trainer.validation_weights=ema"]),
        (2, ["model_parallel.context_parallel_size=2"]),
        (4, ["model.config.fsdp_shard_size=2", "model_parallel.context_parallel_size=2"]),
    ],
    ids=["fsdp-ema", "context", "4-ranks"],
)
def test_ranks_share_the_work_and_agree(here, held_out, ranks, settings):
    """Within 1e-5 of a single rank at the base weights; training differs between layouts."""
    here(held_out, *ON, "trainer.max_iter=2", "trainer.validation_clips=3", "job.name=alone")
    three = [*SHORT, *ON, "trainer.validation_clips=3"]
    code, out = run(held_out, *three, *settings, ranks=ranks)
    assert code == 0, out
    found, expected = record(held_out)[0], record(held_out, "alone")[0]
    for key in ("loss", "low", "middle", "high"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)
    _, plain = run(held_out, *SHORT, *settings, "job.name=without", ranks=ranks)
    assert losses(out) == losses(plain)
    expected = weights(held_out, 6, "without")
    assert all(torch.equal(one, expected[name]) for name, one in weights(held_out, 6).items())


# --------------------------------------------------------------------- what is measured


def test_a_validation_is_reported_by_noise_level(here, held_out):
    code, out = here(held_out, *SHORT, *ON, "trainer.validation_levels=3")
    assert code == 0, out
    for one in events(out, "validation"):
        assert one["loss"] == pytest.approx((one["low"] + one["middle"] + one["high"]) / 3)
        assert one["weights"] == "regular"
        assert math.isfinite(one["seconds"])
    assert "validation loss" in out


def test_the_average_is_measured_if_requested(here, held_out):
    _, ema = here(held_out, *SHORT, *ON, "trainer.validation_weights=ema", "job.name=ema")
    _, regular = here(held_out, *SHORT, *ON)
    assert validations(ema)[0] == validations(regular)[0]
    assert validations(ema)[6] != validations(regular)[6]
    assert losses(ema) == losses(regular)


def test_other_draws_do_not_compare(here, held_out):
    here(held_out, *SHORT, *ON, "trainer.max_iter=3")
    here(held_out, *SHORT, *ON, "trainer.validation_clips=2")
    results = read_results(held_out / JOB)
    assert len({one.draws for one in results}) == 2
    assert best_result(results).draws == results[-1].draws


# --------------------------------------------------------------------- stopping, and the best


def result(iteration, loss, draws=""):
    return ValidationResult(iteration, loss, loss, loss, loss, 2, 4, "regular", draws)


class _Draws:
    draws = ""


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([3.0, 2.0, 1.0], False),
        ([3.0, 1.0, 2.0], False),
        ([3.0, 1.0, 2.0, 1.0], True),  # not lower: equal
        ([1.0, None, 2.0], True),
        ([None, None, None], False),
        ([3.0, 1.0, 2.0, 0.5], False),
    ],
)
def test_training_stops_when_validations_are_not_lower(values, stops):
    config = read_config([*SETTINGS, *ON, "trainer.stop_after_validations=2"])
    progress = Progress(validation=[result(10 * n, v).plain() for n, v in enumerate(values)])
    schedule = ValidationSchedule(config, None, progress, _Draws())
    assert bool(schedule.stopped) == stops


def test_a_run_that_no_longer_improves_ends_with_a_checkpoint(here, held_out):
    flat = ["optimizer.lr=0", "trainer.stop_after_validations=2", "trainer.logging_iter=100"]
    code, out = here(held_out, *ON, *flat)
    assert code == 0, out
    assert sorted(validations(out)) == [0, 2, 4]
    assert CheckpointFolder(held_out / JOB).latest_complete() == 4
    (finished,) = events(out, "finished")
    assert finished["iteration"] == 4
    assert "not lower in the 2 validations since" in finished["stopped"]
    assert events(out, "validation")[-1]["stopped"] == finished["stopped"]
    code, out = here(held_out, *ON, *flat)  # nothing more to do
    assert code == 0, out
    assert "training ended early" in out
    assert not events(out, "validation")
    code, out = here(held_out, *ON, "optimizer.lr=0", "trainer.max_iter=6")  # without that setting
    assert code == 0, out
    assert CheckpointFolder(held_out / JOB).latest_complete() == 6


def test_the_best_checkpoint_is_kept_and_found(here, held_out, tmp_path):
    folder = CheckpointFolder(tmp_path / "c")
    parts = ("model", "optim", "scheduler", "trainer")
    values = {10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5}
    for iteration in values:
        kept = {part: folder.write(part, iteration, {"x": 1}) for part in parts}
        known = {one: loss for one, loss in values.items() if one <= iteration}
        folder.publish(iteration, kept, keep=2, losses=known)
    assert folder.iterations() == [40, 30, 20]
    write_results(folder.folder, [result(one, loss) for one, loss in values.items()])
    assert best_checkpoint(folder) == 20
    folder.path("model", 20).write_bytes(b"damaged")
    assert best_checkpoint(folder) == 30


def test_there_is_no_best_checkpoint_without_validations(tmp_path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(UserError, match=r"was validated; set spec\.training\.validation"):
        best_checkpoint(folder)
    (tmp_path / "validation.json").write_text('[{"iteration": "x"}]')
    with pytest.raises(UserError, match="is damaged"):
        best_checkpoint(folder)


# --------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.validation_clips=5"], "the 2 held-out windows in datasets/d/val have 4 clips"),
        (
            ["trainer.validation_weights=ema", "model.config.pipe_config.ema.enabled=false"],
            "there is no moving average",
        ),
        (["dataloader_val.dataset.dataset_dir=elsewhere"], "no window in elsewhere/latents"),
        (["trainer.validation_levels=2"], "at least 3"),
        (
            ["trainer.run_validation=false", "trainer.stop_after_validations=2"],
            "set trainer.run_validation=true too",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(here, held_out, settings, message):
    code, out = here(held_out, *ON, *settings)
    assert code == 2, out
    assert message in out
    assert "Traceback" not in out
