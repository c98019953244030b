import pytest

from video2world_preprocess.stage import UserError
from video2world_trainer.config import EXPERIMENTS, TrainConfig, read_config

NAME = "predict2_video2world_training_2b_agibot_head_center_fisheye_color"


def test_the_guides_2b_experiment():
    config = read_config([f"experiment={NAME}"])
    assert (config.size, config.geometry, config.name) == (
        "2B", "stretch", "2b_agibot_head_center_fisheye_color",
    )  # fmt: skip
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
            f"experiment={NAME}", "trainer.max_iter=12", "optimizer.lr=1e-4",
            "dataloader_train.dataset.video_size=[432,768]", "+trainer.seed=3",
            "model.config.pipe_config.ema.enabled=false", "scheduler.cycle_lengths=[70]",
            "model_parallel.context_parallel_size=1", "model.config.train_architecture=lora",
        ]
    )  # fmt: skip
    assert (config.max_iter, config.learning_rate, config.video_size) == (12, 1e-4, (432, 768))
    assert (config.seed, config.ema, config.cycle_length) == (3, False, 70)
    assert config.architecture == "lora"


def test_tiny():
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
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(UserError) as error:
        read_config(["job.name=x", override])
    assert message in str(error.value)
    assert override.split("=")[0] in str(error.value)


def test_a_size_that_contradicts_the_experiment():
    with pytest.raises(UserError, match="contradicts"):
        read_config([f"experiment={NAME}", "model.size=14B"])


def test_every_setting_has_its_dotted_name():
    config = TrainConfig(name="x")
    assert config.as_overrides()["trainer.max_iter"] == 100_000
