"""The inference command end to end on a small random checkpoint, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video2world_preprocess.demo import draw_episode, scene
from video2world_preprocess.pickles import write_embedding
from video2world_preprocess.tiny_weights import write_tiny_t5
from video2world_preprocess.transform_vae import TransformVAE
from video2world_preprocess.video import fit, probe, read_frames, write_video
from video2world_trainer.engine import needed_bytes
from video2world_trainer.inference import main
from video2world_trainer.metrics import psnr, ssim
from video2world_trainer.model import VideoDiT
from video2world_trainer.presets import PRESETS

torch.set_num_threads(1)
STEM = "task_327_episode_685393_window_0_frame_0-149"
BASE = PRESETS["Tiny"].base_folder
RUN = "checkpoints/posttraining/video2world/x/checkpoints"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A volume with a data set of one window, the tiny VAE and a random checkpoint."""
    volume = tmp_path_factory.mktemp("volume")
    val = volume / "datasets/d/val"
    frames = draw_episode(scene(685393))[:40]
    write_video(val / f"videos/{STEM}.mp4", frames, 30)
    write_video(volume / "short.mp4", frames[:7], 30)
    Image.fromarray(frames[0]).save(volume / "first.png")
    (volume / "damaged.mp4").write_bytes(b"not a video")
    (val / "metas").mkdir()
    (val / f"metas/{STEM}.txt").write_text("The robot reaches for a tomato.\n")
    embedding = np.random.default_rng(0).normal(size=(9, 1024)).astype(np.float16)
    write_embedding(val / f"t5_xxl/{STEM}.pickle", embedding)
    TransformVAE().save_pretrained(volume / BASE / "tokenizer")
    net = VideoDiT(PRESETS["Tiny"].dit)
    net.init_weights(torch.Generator().manual_seed(0))
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    averaged = {
        f"net_ema.{name}": one + 0.01 * torch.randn(one.shape, generator=torch.manual_seed(1))
        for name, one in net.named_parameters()
    }
    (volume / RUN / "model").mkdir(parents=True)
    torch.save(state | averaged, volume / RUN / "model/iter_000000007.pt")
    for part in ("optim", "scheduler", "trainer"):
        (volume / RUN / part).mkdir()
    (volume / RUN / "latest_checkpoint.txt").write_text("iter_000000007.pt\n")
    return volume


@pytest.fixture
def volume(made, monkeypatch):
    monkeypatch.chdir(made)  # a worker's working directory is the volume's root
    return made


def infer(*arguments, source=f"datasets/d/val/videos/{STEM}.mp4", checkpoint=RUN, target="o.mp4"):
    flags = [
        "--device",
        "cpu",
        "--model_size",
        "Tiny",
        "--num_steps",
        "2",
        "--dit_path",
        checkpoint,
    ]
    flags += ["--input_path", source, "--save_path", target]
    return main([*flags, *arguments])


def test_writes_video_sheet_prompt_and_figures(volume):
    assert infer("--num_conditional_frmaes", "1", target="results/x/a.mp4") == 0
    info = probe("results/x/a.mp4")
    assert (info.frames, info.width, info.height, float(info.fps)) == (17, 128, 96, 16)
    assert Path("results/x/a.txt").read_text() == "The robot reaches for a tomato.\n"
    with Image.open("results/x/a.png") as sheet:
        assert sheet.width > 6 * 128
        assert sheet.height > 3 * 96
    figures = json.loads(Path("results/x/a.json").read_text())
    assert figures["checkpoint"].endswith("iter_000000007.pt")
    truth = read_frames(f"datasets/d/val/videos/{STEM}.mp4", 0, 17)
    held = np.broadcast_to(truth[:1], truth[1:].shape)
    assert figures["psnr_of_repeating_the_input"] == pytest.approx(psnr(held, truth[1:]), abs=0.01)
    generated = read_frames("results/x/a.mp4")
    # the file is lossy, the figure is of the frames before encoding
    assert figures["psnr"] == pytest.approx(psnr(generated[1:], truth[1:]), abs=0.5)
    metrics = figures["metrics"]
    assert (metrics["frames"], metrics["psnr"]) == (16, figures["psnr"])
    assert metrics["repeating_the_input"]["ssim"] == pytest.approx(ssim(held, truth[1:]), abs=1e-3)
    assert metrics["lpips"] is None
    assert "lpips" in metrics["lpips_missing"]
    timings = figures["timings"]
    assert set(timings) == {"condition", "denoise", "decode", "write"}
    parts = timings["condition"] + timings["denoise"] + timings["decode"]
    assert figures["seconds"] == pytest.approx(parts, abs=2e-3)
    assert (figures["passes"], figures["approximate"], figures["iteration"]) == (6, False, 7)
    told = Path("docs/inference.md")
    documented = (Path(__file__).parents[2] / told).read_text()
    for key in {*figures, *metrics}:
        assert f"`{key}`" in documented, f"{key} is not in {told}"
    # the given frame comes through, as far as the codec carries it
    assert psnr(generated[:1], fit(truth[:1], (96, 128), "crop")) > 25


def test_same_seed_same_bytes_and_what_changes_them(volume):
    runs = {
        "a": [], "b": [], "seed": ["--seed", "5"], "ema": ["--load_ema"],
        "prompt": ["--prompt", "The robot reaches for a tomato.", "--guidance", "0"],
    }  # fmt: skip
    for name, arguments in runs.items():
        assert infer(*arguments, target=f"{name}.mp4") == 0
    content = {name: Path(f"{name}.mp4").read_bytes() for name in runs}
    assert content["a"] == content["b"]
    assert len(set(content.values())) == len(runs) - 1


def test_two_ranks_write_what_one_writes(volume, capfd):
    """--num_gpus, by gloo: each rank evaluates one branch of guidance."""
    assert infer("--seed", "3", target="one.mp4") == 0
    capfd.readouterr()
    assert infer("--seed", "3", "--num_gpus", "2", target="two.mp4") == 0
    found = capfd.readouterr().out
    assert found.count('"event": "sample"') == 1
    assert found.count('"event": "finished"') == 1
    assert psnr(read_frames("two.mp4"), read_frames("one.mp4")) > 45


def test_approximate_and_offloaded_samples_say_so(volume, capfd):
    flags = ["--num_steps", "9", "--seed", "4"]
    assert infer(*flags, target="exact.mp4") == 0
    assert infer(*flags, "--offload", target="streamed.mp4") == 0
    assert Path("streamed.mp4").read_bytes() == Path("exact.mp4").read_bytes()
    assert infer(*flags, "--approximate", target="near.mp4") == 0
    assert "--approximate: most network evaluations are extrapolated" in capfd.readouterr().out
    figures = json.loads(Path("near.json").read_text())
    assert figures["approximate"] is True
    assert figures["passes"] == 2 * 6  # the first three of ten levels, 5, 8 and 9
    assert Path("near.mp4").read_bytes() != Path("exact.mp4").read_bytes()


def test_an_image_is_a_first_frame(volume):
    assert infer("--prompt", "x", "--text_encoder_path", "nowhere/at/all", source="first.png") == 2
    assert infer(source="first.png") == 2  # no prompt and no caption


@pytest.mark.parametrize(
    ("arguments", "options", "wanted"),
    [
        ([], {"source": "gone.mp4"}, "gone.mp4"),
        ([], {"source": "damaged.mp4"}, "damaged.mp4"),
        ([], {"checkpoint": "nowhere.pt"}, "nowhere.pt"),
        ([], {"checkpoint": "damaged.mp4"}, "damaged.mp4"),
        (["--num_gpus", "0"], {}, "--num_gpus"),
        (["--num_steps", "0"], {}, "--num_steps"),
        (["--guidance", "nan"], {}, "--guidance"),
        (["--vae_path", "nowhere"], {}, "nowhere"),
        (["--natten"], {}, "no sparse Tiny model"),
        (["--natten", "--aspect_ratio", "1:1"], {}, "--resolution 720 of 16:9 only"),
        ([], {"target": "/proc/nothing/o.mp4"}, "nothing can be written into /proc/nothing"),
        (["--device", "cuda:99"], {}, "--device cuda:99"),
    ],
)
def test_bad_input_is_named_without_a_traceback(volume, capfd, arguments, options, wanted):
    Path("o.mp4").unlink(missing_ok=True)
    options = {"checkpoint": RUN} | options
    assert infer("--prompt", "", *arguments, **options) == 2
    message = capfd.readouterr().err
    assert wanted in message
    assert "Traceback" not in message
    assert not Path("o.mp4").exists()


def test_large_models_without_a_gpu(volume, capfd):
    """14B is refused, with how long it would take; 2B is only warned of."""
    Path("any.pt").write_bytes(b"x")
    flags = ["--prompt", "x", "--input_path", "first.png", "--dit_path", "any.pt"]
    assert main(["--model_size", "14B", "--device", "cpu", *flags]) == 2
    message = capfd.readouterr().err
    assert re.search(r"--model_size 14B: there is no GPU .* about \d+ hours .* --force", message)
    assert main(["--model_size", "2B", "--device", "cpu", *flags]) == 2
    captured = capfd.readouterr()
    assert re.search(r"no GPU: a 2B sample takes about \d+ hours", captured.out)
    assert "any.pt is damaged or not a checkpoint" in captured.err


def test_a_prompt_beyond_all_positions_is_told_of(volume, capfd):
    write_tiny_t5(Path(PRESETS["Tiny"].text_encoder_folder))
    assert infer("--prompt", "the robot moves " * 40) == 0
    assert "fills all 64 positions" in capfd.readouterr().out
    assert infer("--prompt", "the robot moves") == 0
    assert "fills all" not in capfd.readouterr().out


def test_the_memory_that_offload_is_decided_by():
    """2B with both branches: 8.63 GiB were measured; 14B fits into 48 GB, not into 24."""
    tokens = 24 * 44 * 80
    small = needed_bytes(PRESETS["2B"].dit, 1_956_413_440, tokens, 2)
    assert small == pytest.approx(8.63 * 2**30, rel=0.05)
    large = needed_bytes(PRESETS["14B"].dit, 14_265_285_632, tokens, 2)
    assert 24e9 < large < 0.9 * 48e9


def test_wrong_model_size_is_explained(volume, capfd):
    torch.save({"net.x_embedder.proj.1.weight": torch.zeros(2048, 72)}, "2b.pt")
    assert infer(checkpoint="2b.pt") == 2
    message = capfd.readouterr().err
    assert "[2048, 72]" in message
    assert "--model_size" in message


def test_too_few_frames_for_five(volume, capfd):
    write_video("four.mp4", draw_episode(scene(1))[:4], 30)
    assert infer("--num_conditional_frames", "5", "--prompt", "x", source="four.mp4") == 2
    assert infer("--num_conditional_frames", "5", "--prompt", "x", source="first.png") == 2


def test_one_bad_item_does_not_cost_the_others(volume, capfd):
    good = {"input_video": f"datasets/d/val/videos/{STEM}.mp4", "output_video": "batch/1.mp4"}
    bad = {"input_video": "damaged.mp4", "prompt": "The robot reaches for a tomato."}
    Path("batch.json").write_text(json.dumps([bad | {"output_video": "batch/0.mp4"}, good]))
    assert infer("--batch_input_json", "batch.json") == 2
    assert "1 of 2 samples" in capfd.readouterr().err
    assert Path("batch/1.mp4").exists()
    assert not Path("batch/0.mp4").exists()


def test_the_runs_own_settings_are_obeyed(volume, capfd, tmp_path):
    config = {
        "run": {}, "size": "Tiny", "architecture": "base", "geometry": "stretch", "num_frames": 9,
        "video_size": [64, 96], "text_length": 16, "rope_ratio_t": 1.0, "rope_ratio_h": 2.0,
        "rope_ratio_w": 2.0,
    }  # fmt: skip
    (tmp_path / "iter_000000001.pt").symlink_to(volume / RUN / "model/iter_000000007.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert infer(checkpoint=str(tmp_path / "iter_000000001.pt"), target="s.mp4") == 0
    info = probe("s.mp4")
    assert (info.frames, info.width, info.height) == (9, 96, 64)
    (tmp_path / "config.json").write_text(json.dumps(config | {"size": "2B"}))
    assert infer(checkpoint=str(tmp_path / "iter_000000001.pt")) == 2
    assert "was trained as 2B" in capfd.readouterr().err


def test_absent_parts_are_said_to_be_absent(volume, capfd):
    assert infer("--disable_guardrail", "--offload_prompt_refiner") == 0
    assert "no guardrail" in capfd.readouterr().out
