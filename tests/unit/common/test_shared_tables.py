"""The operator and the trainer agree on model sizes and on the guide's experiments."""

import pytest

from video2world_common.model_sizes import SIZES
from video2world_operator.api.experiments import EXPERIMENTS as SPEC_FIELDS
from video2world_operator.api.validation import parse
from video2world_operator.plan.commands import commands
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.config import EXPERIMENTS, read_config

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


def test_both_know_the_same_experiments():
    assert set(SPEC_FIELDS) == set(EXPERIMENTS)
    assert len(EXPERIMENTS) == 10


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
    spec = SPEC_FIELDS[name]
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
    dit = preset.dit
    assert (shared.heads, shared.learning_rate, shared.warmup) == (
        dit.num_heads,
        preset.learning_rate,
        preset.warm_up_steps,
    )
    assert shared.rope == (dit.rope_ratio_h, dit.rope_ratio_w, dit.rope_ratio_t)
    for resolution, pixels in preset.sizes.items():
        for fps, frames in preset.clip_frames.items():
            made = resource(model={"size": size, "resolution": resolution, "fps": fps})
            assert (made.spec.video_size, made.spec.num_frames) == (pixels, frames)
            command = read_config(train_settings(made))
            assert (command.video_size, command.num_frames) == (pixels, frames)
            base = preset.base_weights(resolution, fps)
            assert command.dit_path == (base or "")
