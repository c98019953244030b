"""The operator accepts the settings that the train command accepts."""

import sys

import pytest

from repository import ROOT
from video2world_common.exit_codes import UserError
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.experiments import DECIDED, OVERRIDES
from video2world_operator.api.train_settings import SETTINGS, objection
from video2world_operator.api.validation import parse
from video2world_operator.plan.commands import commands
from video2world_trainer.training.config_parser import read_config

sys.path.insert(0, str(ROOT / "tools"))
import train_settings


def resource(*overrides, size="2B"):
    return parse(
        {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": "a"},
            "spec": {
                "model": {"size": size},
                "dataset": {"agibot": {}},
                "training": {"iterations": 5, "overrides": list(overrides)},
            },
        }
    )


@pytest.mark.parametrize("path", train_settings.files(), ids=lambda path: path.name)
def test_the_files_are_up_to_date(path):
    assert path.read_text() == train_settings.files()[path], "run make generate"


@pytest.mark.parametrize(
    ("override", "taken"),
    [
        ("optimizer.betas=[0.9,0.95]", True),
        ("optimizer.betas=(0.9,0.95)", True),
        ("optimizer.betas=[0.9]", False),
        ("optimizer.betas=[0.9,2]", False),
        ("optimizer.betas=0.9", False),
        ("optimizer.eps=1e-6", True),
        ("optimizer.eps=small", False),
        ("optimizer.eps=inf", False),
        ("optimizer.eps=nan", False),
        ("optimizer.weight_decay=-1", False),
        ("scheduler.f_min=[0.4]", True),
        ("scheduler.f_min=0.4", True),
        ("scheduler.cycle_lengths=[50_000]", True),
        ("scheduler.cycle_lengths=1.5", False),
        ("model.config.loss_weight=edm", True),
        ("model.config.loss_weight=other", False),
        ("model.config.high_sigma_ratio=1.5", False),
        ("model.config.adjust_video_noise=False", True),
        ("model.config.adjust_video_noise=0", False),
        ("model.config.pipe_config.max_num_conditional_frames=2", True),
        ("model.config.pipe_config.max_num_conditional_frames=two", False),
        ("model.config.pipe_config.max_num_conditional_frame=2", False),
        ("model.config.keep_activations=attention", True),
        ("trainer.logging_iter=0", False),
        ("trainer.grad_accum_iter=1", True),
        ("trainer.grad_accum_iter=2", True),
        ("trainer.global_batch=4", True),
        ("optimizer=fusedadamw", True),
        ("optimizer=adam", False),
        ("nonsense=1", False),
    ],
)
def test_operator_and_trainer_agree_on_each_override(override, taken):
    name, _, value = override.partition("=")
    assert (objection(name, value) is None) == taken
    if taken:
        read_config(["job.name=x", override])
        resource(override)
    else:
        with pytest.raises(UserError, match=name):
            read_config(["job.name=x", override])
        with pytest.raises(InvalidResource) as error:
            resource(override)
        assert str(error.value).startswith("spec.training.overrides[0]: ")
        assert name in str(error.value)


def test_an_override_without_a_field_reaches_the_command():
    argv = commands(resource("optimizer.betas=[0.9,0.95]", "+scheduler.f_min=0.4"))["train"].argv
    assert "optimizer.betas=[0.9,0.95]" in argv
    assert "scheduler.f_min=0.4" in argv
    ratio = "model.config.pipe_config.net.rope_t_extrapolation_ratio"
    argv = commands(resource(f"{ratio}=2"))["train"].argv
    assert [one for one in argv if one.startswith(ratio)] == [f"{ratio}=2"]
    config = read_config([one for one in argv if "=" in one])
    assert config.rope_t == 2


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_has_one_place_in_a_resource(name):
    """A field, the resource's own decision, or the command line as it is."""
    if name in DECIDED:
        with pytest.raises(InvalidResource, match=f"{name} cannot be set"):
            resource(f"{name}=x")
        assert name not in OVERRIDES


@pytest.mark.parametrize("size", ["Tiny", "2B", "14B"])
def test_sparse_attention_reaches_the_commands(size):
    made = resource("model.attention_pattern=sparse", size=size)
    assert made.spec.training.attention_pattern == "Sparse"
    train, download = commands(made)["train"].argv, commands(made)["download"].argv
    assert "model.attention_pattern=sparse" in train
    weights = [one for one in train if "dit_path=" in one]
    assert ["-natten.pt" in one for one in weights] == ([] if size == "Tiny" else [True])
    assert ("--natten_only" in download) == (size != "Tiny")
    dense = commands(resource())
    assert not any("attention_pattern" in one for one in dense["train"].argv)
    assert "--natten_only" not in dense["download"].argv


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("dataloader_train.dataset.video_size=[432,768]", "Sparse weights exist for 720p only"),
        (
            "model.config.pipe_config.net.atten_backend=torch",
            r"Torch \(spec.training.attention\) has no Sparse attention",
        ),
    ],
)
def test_what_cannot_be_sparse_is_refused(override, problem):
    with pytest.raises(InvalidResource, match=f"spec.training.attentionPattern: {problem}"):
        resource("model.attention_pattern=sparse", override)


def test_fields_of_training_reach_the_command():
    manager = "model.config.model_manager_config"
    made = resource(
        "trainer.stop_when_diverged=true", f"{manager}.dit_path=w.pt", f"{manager}.lora_alpha=32"
    )
    assert made.spec.training.stop_when_diverged is True
    assert made.spec.model.lora_alpha == 32
    argv = commands(made)["train"].argv
    assert "trainer.stop_when_diverged=true" in argv
    assert "model.config.model_manager_config.lora_alpha=32.0" in argv
    plain = commands(resource())["train"].argv
    assert not any("lora_alpha" in one or "diverged" in one for one in plain)
