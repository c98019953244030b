"""The guide's commands, with the guide's flags as they are printed there, for each of its steps."""

import shlex
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from video2world_preprocess import agibot, download, embeddings
from video2world_trainer import inference, train
from video2world_trainer.generation import requests
from video2world_trainer.training.config_parser import read_config

DATASET = "agibot_head_center_fisheye_color"


def words(line):
    return shlex.split(line)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", {"delete_only": False, "split_only": False, "task_ids": [327], "keep_tar": False}),
        ("--delete-only", {"delete_only": True}),
        (
            "--split-only --val_episode_ids 685393",
            {"split_only": True, "val_episode_ids": ["685393"], "window_size": 5.0},
        ),
        (  # the script's other flags
            f"--task_ids 327 328 --data_dir d --repo_id a/b --keep_tar --camera {DATASET} "
            "--window-size 4 --min-last-window 6",
            {"task_ids": [327, 328], "window_size": 4.0, "min_last_window": 6.0, "keep_tar": True},
        ),
    ],
)
def test_data(line, wanted):
    assert wanted.items() <= vars(agibot.parser().parse_args(words(line))).items()


def test_embeddings():
    args = embeddings.parser().parse_args(words(f"--dataset_path datasets/{DATASET}/train"))
    assert [str(path) for path in args.dataset_path] == [f"datasets/{DATASET}/train"]
    assert (args.max_length, args.cache_dir) == (512, "checkpoints/google-t5/t5-11b")


def test_download():
    line = "--model_types video2world --model_sizes 2B --fps 16 --resolution 720 --dry-run"
    args = download.parser().parse_args(words(line))
    assert [one.repo_id for one in download.repositories(args)] == [
        "nvidia/Cosmos-Predict2-2B-Video2World",
        "google-t5/t5-11b",
    ]


@pytest.mark.parametrize(
    ("launch", "size", "more", "wanted"),
    [
        ("--nproc_per_node=8 --master_port=12341", "2b", "", {"architecture": "base"}),
        (
            "--nproc_per_node=8 --nnodes=4 --rdzv_id 123 --rdzv_backend c10d "
            "--rdzv_endpoint node0:1234",
            "14b",
            "model.config.train_architecture=lora "
            'model.config.pipe_config.net.atten_backend="transformer_engine"',
            {"architecture": "lora", "attention": "transformer_engine"},
        ),
    ],
)
def test_training(launch, size, more, wanted):
    line = (
        f"{launch} -m video2world_trainer.train --config=cosmos_predict2/configs/base/config.py "
        f"-- experiment=predict2_video2world_training_{size}_{DATASET} {more}"
    )
    torchrun = parse_args(words(line))
    assert torchrun.training_script == "video2world_trainer.train"
    overrides, dry = train.parse_arguments(torchrun.training_script_args)
    assert not dry
    config = read_config(overrides)
    assert (config.size, config.name) == (size.upper(), f"{size}_{DATASET}")
    assert (config.project, config.group, config.max_iter) == ("posttraining", "video2world", 1e5)
    assert config.dataset_dir == f"datasets/{DATASET}/train"
    assert wanted.items() <= vars(config).items()


def test_inference():
    line = (
        '--model_size 2B --dit_path "x/model/iter_000001000.pt" --prompt "The robot reaches." '
        '--input_path "val/a.mp4" --num_conditional_frmaes 1 --save_path results/a.mp4 '
        "--resolution 720 --fps 16 --load_ema --negative_prompt bad --aspect_ratio 16:9 "
        "--guidance 7 --seed 0 --num_gpus 1 --disable_guardrail --offload_guardrail "
        "--disable_prompt_refiner --offload_prompt_refiner --offload_text_encoder "
        "--downcast_text_encoder --benchmark --use_cuda_graphs --natten"
    )
    args = inference.parser().parse_args(words(line))
    assert args.num_conditional_frames == 1
    assert str(args.dit_path) == "x/model/iter_000001000.pt"
    assert inference.parser().parse_args(["--num_conditional_frames", "5"]).batch_input_json is None


def test_the_guides_own_paths_are_understood(tmp_path, monkeypatch, capsys):
    """Its example leaves videos/ out and names the run's folder by the experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val/videos").mkdir(parents=True)
    (tmp_path / "val/videos/a.mp4").touch()
    (tmp_path / f"checkpoints/2b_{DATASET}").mkdir(parents=True)
    existing_path = requests.existing_path
    assert str(existing_path(Path("val/a.mp4"))) == "val/videos/a.mp4"
    written = f"checkpoints/predict2_video2world_training_2b_{DATASET}"
    assert str(existing_path(Path(written))) == f"checkpoints/2b_{DATASET}"
    assert "val/a.mp4: using val/videos/a.mp4" in capsys.readouterr().out
    assert str(existing_path(Path("val/videos/a.mp4"))) == "val/videos/a.mp4"
    assert str(existing_path(Path("nowhere/a.mp4"))) == "nowhere/a.mp4"
    assert capsys.readouterr().out == ""
