"""The guide's experiments and overrides set the corresponding fields."""

import pytest

from video2world_common.experiments import EXPERIMENTS
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.experiments import OVERRIDES, expand
from video2world_operator.api.validation import parse
from video2world_operator.plan.commands import run_folder

NAME = "predict2_video2world_training_{}_agibot_head_center_fisheye_color{}"


def resource(training, **spec):
    return parse(
        {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": "run"},
            "spec": {"dataset": {"agibot": {}}, "training": training} | spec,
        }
    )


@pytest.mark.parametrize(
    ("size", "suffix", "parallel", "frames", "height"),
    [
        ("2b", "", 2, 93, 704),
        ("2b", "_480p_10fps", 1, 61, 432),
        ("2b", "_480p_16fps", 1, 93, 432),
        ("2b", "_720p_10fps", 2, 61, 704),
        ("2b", "_720p_16fps", 2, 93, 704),
        ("14b", "", 8, 93, 704),
        ("14b", "_480p_10fps", 8, 61, 432),
        ("14b", "_480p_16fps", 8, 93, 432),
        ("14b", "_720p_10fps", 8, 61, 704),
        ("14b", "_720p_16fps", 8, 93, 704),
    ],
)
def test_named_experiments(size, suffix, parallel, frames, height):
    made = resource({"experiment": NAME.format(size, suffix)})
    spec = made.spec
    assert spec.model.size.lower() == size
    assert (spec.context_parallel, spec.num_frames, spec.video_size[0]) == (
        parallel,
        frames,
        height,
    )
    assert (spec.iterations, spec.training.checkpoint.every_iterations) == (100_000, 500)
    assert spec.model.geometry == "Stretch"
    assert spec.rope_ratios[:2] == (2.0, 2.0)
    job = f"{size}_agibot_head_center_fisheye_color{suffix}"
    assert run_folder(made) == f"checkpoints/posttraining/video2world/{job}/checkpoints"
    assert NAME.format(size, suffix) in EXPERIMENTS


def test_the_guide_has_ten_experiments():
    assert len(EXPERIMENTS) == 10


def test_fields_override_the_experiment():
    made = resource(
        {"experiment": NAME.format("2b", ""), "iterations": 1000}, model={"geometry": "Crop"}
    )
    assert made.spec.iterations == 1000
    assert made.spec.model.geometry == "Crop"
    assert made.spec.model.rope_ratio == 2.0


def test_without_an_experiment_the_base_weights_set_the_rope_ratios():
    assert resource({"iterations": 1}, model={"size": "2B"}).spec.rope_ratios == (3.0, 3.0, 1.0)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("model.config.train_architecture=lora", "training.architecture", "LoRA"),
        ("model.config.train_architecture=base", "training.architecture", "Base"),
        (
            'model.config.pipe_config.net.atten_backend="transformer_engine"',
            "training.attention",
            "TransformerEngine",
        ),
        ("trainer.max_iter=20", "training.iterations", 20),
        ("+trainer.max_iter=20", "training.iterations", 20),
        ("checkpoint.save_iter=7", "training.checkpoint.everyIterations", 7),
        ("model.config.pipe_config.ema.enabled=False", "training.ema", False),
        ("optimizer.lr=1e-5", "training.learningRate", 1e-5),
        ("dataloader_train.dataset.video_size=[432,768]", "model.resolution", "480p"),
        (
            "dataloader_train.dataset.dataset_dir=datasets/a/train",
            "dataset.prepared.path",
            "datasets/a",
        ),
    ],
)
def test_overrides(override, path, value):
    full, problems = expand({"training": {"overrides": [override]}})
    assert problems == []
    for part in path.split("."):
        full = full[part]
    assert full == value


def test_an_override_overrides_the_experiment():
    training = {"experiment": NAME.format("2b", ""), "overrides": ["trainer.max_iter=20"]}
    assert resource(training).spec.iterations == 20


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"experiment": NAME.format("2b", "_480p_12fps")}, "not an experiment of the guide; did"),
        (
            {"overrides": ["model.config.train_arch=lora"]},
            "spec.training.overrides[0]: model.config.train_arch is not a known setting; "
            "did you mean model.config.train_architecture?",
        ),
        ({"overrides": ["trainer.max_iter"]}, "has no value; write it as name=value"),
        (
            {"overrides": ["trainer.max_iter=x"]},
            "'x' is not valid for trainer.max_iter; use a whole",
        ),
        ({"overrides": ["model.config.train_architecture=dora"]}, "use base or lora"),
        (
            {"iterations": 5, "overrides": ["trainer.max_iter=6"]},
            "contradicts spec.training.iterations: 5; keep one of them",
        ),
        ({"overrides": ["experiment=x"]}, "set the experiment in spec.training.experiment"),
    ],
)
def test_invalid_experiments_and_overrides_are_refused(training, expected):
    with pytest.raises(InvalidResource) as caught:
        resource(
            {"iterations": 5} | training if "overrides" in training else training,
            model={"size": "2B"},
        )
    assert expected in str(caught.value).splitlines()[0]


def test_a_size_that_contradicts_the_experiment_is_refused():
    with pytest.raises(InvalidResource, match=r"spec\.model\.size: 14B contradicts"):
        resource({"experiment": NAME.format("2b", "")}, model={"size": "14B"})


def test_expanding_is_idempotent_and_does_not_change_its_source():
    source = {
        "training": {
            "experiment": NAME.format("14b", ""),
            "overrides": ["model.config.train_architecture=lora"],
        }
    }
    once, _ = expand(source)
    assert set(source["training"]) == {"experiment", "overrides"}
    assert expand(once) == (once, [])


def test_a_short_name_is_completed():
    made = resource({"experiment": "2b_agibot_head_center_fisheye_color"})
    assert made.spec.training.experiment == NAME.format("2b", "")


@pytest.mark.parametrize("name", sorted(OVERRIDES))
def test_every_override_names_a_field_of_the_schema(name):
    from video2world_operator.api.crd_schema import build

    schema = build()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for part in OVERRIDES[name].field.split("."):
        schema = schema["properties"][part]
    assert "default" not in schema  # the API server would hide whether the user gave it
