import re
from dataclasses import fields

import pytest

from video2world_common.exit_codes import UserError
from video2world_common.experiments import EXPERIMENTS
from video2world_trainer.train import main
from video2world_trainer.training.config import TrainConfig, as_overrides, settings_without_effect
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.fixed_settings import FIXED
from video2world_trainer.training.loss import NoiseDistribution

NAME = "predict2_video2world_training_2b_agibot_head_center_fisheye_color"


def test_the_guides_2b_experiment():
    config = read_config([f"experiment={NAME}"])
    assert (config.size, config.geometry, config.name) == (
        "2B",
        "stretch",
        "2b_agibot_head_center_fisheye_color",
    )
    assert (config.rope_h, config.rope_w, config.rope_t) == (2.0, 2.0, 1.0)
    assert (config.num_frames, config.video_size) == (93, (704, 1280))
    assert config.latent_shape == (16, 24, 88, 160)
    assert (config.max_iter, config.save_iter, config.context_parallel_size) == (100_000, 500, 2)
    assert (config.weight_decay, config.f_max, config.cycle_length) == (0.1, 0.99, 400_000)
    assert str(config.checkpoint_folder) == (
        "checkpoints/posttraining/video2world/2b_agibot_head_center_fisheye_color/checkpoints"
    )


def test_the_guides_14b_experiment_and_its_variants():
    config = read_config(["experiment=" + NAME.replace("2b", "14b") + "_480p_10fps"])
    assert (config.num_frames, config.video_size) == (61, (432, 768))
    assert (config.weight_decay, config.f_max, config.cycle_length) == (0.2, 0.2, 50_000)
    assert config.context_parallel_size == 8
    assert len(EXPERIMENTS) == 10


def test_without_experiment_rope_is_that_of_the_base_weights():
    config = read_config(["model.size=2B", "job.name=x"])
    assert (config.rope_h, config.geometry, config.context_parallel_size) == (3.0, "crop", 1)


def test_overrides_win_and_are_typed():
    config = read_config(
        [
            f"experiment={NAME}",
            "trainer.max_iter=12",
            "optimizer.lr=1e-4",
            "dataloader_train.dataset.video_size=[432,768]",
            "+trainer.seed=3",
            "model.config.pipe_config.ema.enabled=false",
            "scheduler.cycle_lengths=[70]",
            "model_parallel.context_parallel_size=1",
            "model.config.train_architecture=lora",
        ]
    )
    assert (config.max_iter, config.learning_rate, config.video_size) == (12, 1e-4, (432, 768))
    assert (config.seed, config.ema, config.cycle_length) == (3, False, 70)
    assert config.architecture == "lora"


def test_defaults_of_tiny():
    config = read_config(["model.size=Tiny", "job.name=demo"])
    assert config.latent_shape == (16, 5, 12, 16)
    assert config.text_length == 64
    assert (config.rope_h, config.rope_w, config.rope_t) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_iters=3", "did you mean trainer.max_iter?"),
        ("checkpoint.save_itr=3", "did you mean checkpoint.save_iter?"),
        ("trainer.max_iter=many", "must be a whole number"),
        ("trainer.max_iter=1.5", "must be a whole number"),
        ("trainer.max_iter=0", "at least 1"),
        ("optimizer.lr=nan", "must be a number"),
        ("model.size=3B", "one of Tiny, 2B, 14B"),
        ("model.config.train_architecture=loar", "one of base, lora"),
        ("dataloader_train.dataset.video_size=[704]", "[height,width]"),
        ("dataloader_train.dataset.video_size=[700,1280]", "multiples of 16"),
        ("dataloader_train.dataset.num_frames=94", "as 93"),
        ("model.config.pipe_config.ema.enabled=1", "true or false"),
        ("job.name=../../etc", "job.name"),
        ("job.group=a/b", "folder name"),
        ("experiment=predict2_video2world_training_2b_agibot", "did you mean predict2_"),
        ("model.size", "key=value"),
        ("optimizer.betas=[0.9]", "two numbers, as [0.9,0.99]"),
        ("optimizer.betas=[0.9,1.5]", "at most 1"),
        ("optimizer.betas=[0.9,1]", "both must be below 1"),
        ("model.config.pipe_config.max_num_conditional_frames=24", "24 latent frames"),
        ("model.config.pipe_config.min_num_conditional_frames=2", "is above max_num_conditional"),
        ("model.config.loss_weight=uniform", "one of flow, edm"),
        ("model.config.pipe_config.ema.rate=0.5", "at most 0.28"),
        ("model.config.model_manager_config.lora_alpha=4", "set that too"),
        ("model.config.atten_backend=torch", "did you mean model.config.pipe_config.net.atten_"),
        ("optimizer.beta=[0.9,0.99]", "did you mean optimizer.betas?"),
        ("trainer.foo=3", "is not a setting; python -m video2world_trainer.train --help lists"),
        ("trainer.grad_accum_iter=0", "this must be at least 1"),
        ("trainer.memory_format=channels_last", "cannot be set here: the layout in memory is"),
        ("dataloader_train.num_workers=8", "latents are small files, which one thread reads"),
        ("model.config.pipe_config.net.num_blocks=2", "must match the weights: set model.size"),
        ("model.config.pipe_config.net.atten_backnd=torch", "did you mean model.config.pipe_"),
    ],
)
def test_invalid_overrides_are_explained(override, message):
    with pytest.raises(UserError) as error:
        read_config(["job.name=x", override])
    assert message in str(error.value)
    assert override.split("=")[0] in str(error.value)


def test_settings_of_loss_and_optimizer():
    config = read_config(
        [
            "job.name=x",
            "optimizer.betas=[0.9,0.95]",
            "optimizer.eps=1e-6",
            "model.config.pipe_config.min_num_conditional_frames=1",
            "model.config.pipe_config.max_num_conditional_frames=2",
            "model.config.pipe_config.conditioner.text.dropout_rate=0.1",
            "model.config.high_sigma_ratio=0",
            "model.config.adjust_video_noise=false",
            "model.config.loss_scale=1",
            "model.config.loss_weight=edm",
            "model.config.pipe_config.ema.rate=0.05",
            "scheduler.f_min=[0.4]",
        ]
    )
    assert (config.betas, config.eps, config.ema_rate) == ((0.9, 0.95), 1e-6, 0.05)
    assert config.noise_distribution == NoiseDistribution((1, 2), 0.1, 0.0, False)
    assert (config.loss_scale, config.loss_weight, config.f_min) == (1.0, "edm", 0.4)
    assert read_config(["job.name=x"]).noise_distribution == NoiseDistribution()


@pytest.mark.parametrize("name", FIXED)
def test_fixed_settings_accept_their_value_and_explain_themselves(name):
    key = name + "x" if name.endswith(".") else name
    with pytest.raises(UserError) as error:
        read_config(["job.name=x", f"{key}=other"])
    assert f"{key}=other cannot be set here: {FIXED[name].reason}" == str(error.value)
    for value in FIXED[name].values:
        read_config(["job.name=x", f"{key}={value}"])
    assert name not in as_overrides(TrainConfig(name="x"))


def test_overrides_of_the_guides_experiment_file_are_accepted():
    """Its groups and fields, as another experiment file would set them."""
    read_config(
        [
            f"experiment={NAME}",
            "optimizer=fusedadamw",
            "scheduler=lambdalinear",
            "ckpt_type=standard",
            "model.config.pipe_config.prompt_refiner_config.enabled=False",
            "model.config.pipe_config.guardrail_config.enabled=False",
            "trainer.distributed_parallelism=fsdp",
            "scheduler.f_max=[0.99]",
        ]
    )


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], []),
        (["model.config.lora_rank=4"], ["model.config.lora_rank"]),
        (["model.config.lora_rank=4", "model.config.train_architecture=lora"], []),
        (["model.config.vae_path=x"], ["model.config.vae_path"]),
        (
            ["model.config.pipe_config.ema.enabled=false", "model.config.pipe_config.ema.rate=0.2"],
            ["model.config.pipe_config.ema.rate"],
        ),
    ],
)
def test_settings_without_effect_are_reported(overrides, named):
    found = settings_without_effect(read_config(["job.name=x", *overrides]))
    assert [key for key, _ in found] == named


def test_help_lists_every_setting_with_its_default(capsys):
    for flag in ("--help", "-h"):
        assert main([flag]) == 0
        text = capsys.readouterr().out
        for one in fields(TrainConfig):
            assert f"  {one.metadata['key']}\n      {one.metadata['help']} (" in text
        assert "base learning rate (a number; default 2.15792e-05, Tiny: 0.002)" in text
        assert f"experiment=NAME):\n  {NAME}" in text
    assert set(re.findall(r"^  ([a-z_]+\.\S+)$", text, re.MULTILINE)) == set(
        as_overrides(TrainConfig())
    )


def test_ignored_flags_of_the_guide_are_reported(capsys):
    assert main(["--config=cosmos_predict2/config.py", "--dryrun", "--", "job.name=x"]) == 0
    assert "note: --config cosmos_predict2/config.py is not read" in capsys.readouterr().err
    assert main(["--config", "a.py", "--dryrun", "--", "job.name=x"]) == 0
    assert main(["--verbose", "--", "job.name=x"]) == 2


def test_a_size_that_contradicts_the_experiment_is_rejected():
    with pytest.raises(UserError, match="contradicts"):
        read_config([f"experiment={NAME}", "model.size=14B"])


def test_every_setting_has_its_dotted_name():
    config = TrainConfig(name="x")
    assert as_overrides(config)["trainer.max_iter"] == 100_000
