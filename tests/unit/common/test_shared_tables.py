"""The operator and the trainer agree on model sizes and on the guide's experiments."""

import pytest

from video2world_common.experiments import EXPERIMENTS
from video2world_common.model_sizes import SIZES
from video2world_operator.api.experiments import fields_of
from video2world_operator.api.validation import parse
from video2world_operator.plan.commands import commands
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.config_parser import read_config

DECIDED_BY_THE_RESOURCE = {"dit_path", "keep"}


def resource(**spec):
    return parse(
        {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": "a"},
            "spec": {"dataset": {"agibot": {}}, "training": {"iterations": 100_000}} | spec,
        }
    )


def train_settings(made):
    """The settings in a resource's train command."""
    argv = commands(made)["train"].argv
    return argv[argv.index("video2world_trainer.train") + 1 :]


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_an_experiment_means_the_same_to_both(name):
    made = resource(training={"experiment": name})
    by_name = vars(read_config([f"experiment={name}"]))
    by_resource = vars(read_config(train_settings(made)))
    different = {field for field, value in by_name.items() if by_resource[field] != value}
    assert different == DECIDED_BY_THE_RESOURCE
    # Without the experiment's name, every value comes from the fields of the spec.
    settings = [one for one in train_settings(made) if one != f"experiment={name}"]
    by_fields = vars(read_config(settings))
    different = {field for field, value in by_name.items() if by_fields[field] != value}
    assert different <= DECIDED_BY_THE_RESOURCE | {"shard_size"}
    spec = fields_of(EXPERIMENTS[name])
    assert by_name["name"] == spec["training"]["jobName"]
    assert by_name["max_iter"] == spec["training"]["iterations"]
    assert by_name["save_iter"] == spec["training"]["checkpoint"]["everyIterations"]
    assert by_name["context_parallel_size"] == spec["training"]["contextParallelSize"]
    assert by_name["size"] == spec["model"]["size"]
    assert by_name["geometry"] == spec["model"]["geometry"].lower()
    assert by_name["rope_h"] == by_name["rope_w"] == spec["model"]["ropeRatio"]


def test_both_know_the_same_sizes():
    assert set(SIZES) == set(PRESETS)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_a_size_means_the_same_to_both(size):
    shared, preset = SIZES[size], PRESETS[size]
    config = read_config(train_settings(resource(model={"size": size})))
    assert shared.num_heads == preset.dit.num_heads
    assert shared.rope_ratios == (config.rope_h, config.rope_w, config.rope_t)
    assert (shared.learning_rate, shared.warmup_iterations) == (
        config.learning_rate,
        config.warm_up_steps,
    )
    by_trainer = read_config([f"model.size={size}", "job.name=a"])
    assert (by_trainer.rope_h, by_trainer.learning_rate, by_trainer.warm_up_steps) == (
        config.rope_h,
        config.learning_rate,
        config.warm_up_steps,
    )
    for resolution, pixels in shared.frame_sizes.items():
        for fps, frames in shared.clip_frames.items():
            made = resource(model={"size": size, "resolution": resolution, "fps": fps})
            assert (made.spec.video_size, made.spec.num_frames) == (pixels, frames)
            command = read_config(train_settings(made))
            assert (command.video_size, command.num_frames) == (pixels, frames)
            base = preset.base_weights(resolution, fps)
            assert command.dit_path == (base or "")
