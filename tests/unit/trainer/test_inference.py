"""The inference command end to end on a small random checkpoint, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repository import ROOT
from video2world_preprocess.demo import draw_episode, scene
from video2world_preprocess.text.embedding_files import write_embedding
from video2world_preprocess.tiny_weights import write_tiny_t5
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.video.reader import probe, read_frames
from video2world_preprocess.video.resize import fit
from video2world_preprocess.video.writer import write_video
from video2world_trainer.generation.quality_metrics import psnr, ssim
from video2world_trainer.inference import main, parser
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import inject, merge
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.checkpointer import describe_run
from video2world_trainer.training.config import TrainConfig

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


def test_writes_video_contact_sheet_prompt_and_json(volume):
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
    generated = read_frames("results/x/a.mp4")
    # the metric is computed before the lossy encoding
    metrics = figures["metrics"]
    assert metrics["psnr"] == pytest.approx(psnr(generated[1:], truth[1:]), abs=0.5)
    assert metrics["frames"] == 16
    baseline = metrics["repeating_the_input"]
    assert baseline["psnr"] == pytest.approx(psnr(held, truth[1:]), abs=0.01)
    assert baseline["ssim"] == pytest.approx(ssim(held, truth[1:]), abs=1e-3)
    assert metrics["lpips"] is None
    assert "lpips" in metrics["lpips_missing"]
    timings = figures["timings"]
    assert set(timings) == {"condition", "denoise", "decode", "write"}
    parts = timings["condition"] + timings["denoise"] + timings["decode"]
    assert figures["seconds"] == pytest.approx(parts, abs=2e-3)
    assert (figures["passes"], figures["approximate"], figures["iteration"]) == (6, False, 7)
    reported = Path("docs/inference.md")
    documented = (ROOT / reported).read_text()
    for key in {*figures, *metrics}:
        assert f"`{key}`" in documented, f"{key} is not in {reported}"
    # the conditioning frame is reproduced, up to encoding losses
    assert psnr(generated[:1], fit(truth[:1], (96, 128), "crop")) > 25


def test_output_is_reproducible_and_depends_on_seed_weights_and_guidance(volume):
    runs = {
        "a": [],
        "b": [],
        "seed": ["--seed", "5"],
        "ema": ["--load_ema"],
        "prompt": ["--prompt", "The robot reaches for a tomato.", "--guidance", "0"],
    }
    for name, arguments in runs.items():
        assert infer(*arguments, target=f"{name}.mp4") == 0
    content = {name: Path(f"{name}.mp4").read_bytes() for name in runs}
    assert content["a"] == content["b"]
    assert len(set(content.values())) == len(runs) - 1


def test_two_ranks_write_the_video_of_one(volume, capfd):
    """--num_gpus, by gloo: each rank evaluates one branch of guidance."""
    assert infer("--seed", "3", target="one.mp4") == 0
    capfd.readouterr()
    flags = ["--seed", "3", "--num_gpus", "2", "--offload"]
    assert infer(*flags, target="two.mp4") == 0
    found = capfd.readouterr().out
    assert "weights in host memory; 2 ranks share each sample" in found
    assert found.count('"event": "sample"') == 1
    assert found.count('"event": "finished"') == 1
    assert psnr(read_frames("two.mp4"), read_frames("one.mp4")) > 45


def test_a_mistake_on_two_ranks_is_reported_once(volume, capfd):
    """By the main rank, which alone finds it; the other one ends without a traceback."""
    assert infer("--num_gpus", "2", "--vae_path", "nowhere", target="no.mp4") == 2
    captured = capfd.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines() if line.startswith("{")]
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["message"] in captured.err
    assert "Traceback" not in captured.err


def test_more_gpus_than_there_are(volume, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("V2W_INPUTS_HASH", raising=False)
    assert main(["--num_gpus", "2", "--input_path", "first.png"]) == 2
    captured = capfd.readouterr()
    problem = "--num_gpus 2: there are 1 GPUs here; lower it (inference.gpus), or provide more"
    assert problem in captured.err
    assert json.loads(captured.out)["message"] == problem


def test_approximate_and_offloaded_samples_are_labeled(volume, capfd):
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


def recorded(volume, pattern):
    """A checkpoint with the random one's weights, recorded as trained with ``pattern``."""
    model = volume / f"recorded/{pattern}/model"
    if not model.exists():
        shutil.copytree(volume / RUN / "model", model)
        clip = {"num_frames": 17, "video_size": (96, 128), "text_length": 64}
        ratios = {"rope_h": 1.0, "rope_w": 1.0}
        config = TrainConfig(size="Tiny", attention_pattern=pattern, **clip, **ratios)
        (model / "config.json").write_text(json.dumps(describe_run(config)))
    return str(model / "iter_000000007.pt")


def test_a_checkpoint_decides_on_sparse_attention(volume, capfd):
    assert infer(checkpoint=recorded(volume, "sparse"), target="sparse.mp4") == 0
    assert "attention: masked, sparse" in capfd.readouterr().out
    assert json.loads(Path("sparse.json").read_text())["sparse"] is True
    assert infer("--natten", target="flag.mp4") == 0  # nothing is recorded of it
    assert infer(checkpoint=recorded(volume, "dense"), target="dense.mp4") == 0
    assert json.loads(Path("dense.json").read_text())["sparse"] is False
    sparse, flag, dense = (Path(f"{name}.mp4").read_bytes() for name in ("sparse", "flag", "dense"))
    assert sparse == flag != dense
    assert infer("--natten", checkpoint=recorded(volume, "dense"), target="no.mp4") == 2
    assert "was trained with dense attention; leave --natten out" in capfd.readouterr().err


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
    """14B is refused with its duration; 2B logs a warning."""
    Path("any.pt").write_bytes(b"x")
    flags = ["--prompt", "x", "--input_path", "first.png", "--dit_path", "any.pt"]
    assert main(["--model_size", "14B", "--device", "cpu", *flags]) == 2
    message = capfd.readouterr().err
    assert re.search(r"--model_size 14B: there is no GPU .* about \d+ hours .* --force", message)
    assert main(["--model_size", "2B", "--device", "cpu", *flags]) == 2
    captured = capfd.readouterr()
    assert re.search(r"no GPU: a 2B sample takes about \d+ hours", captured.out)
    assert "any.pt is damaged or not a checkpoint" in captured.err


def test_a_prompt_that_is_too_long_is_noted(volume, capfd):
    write_tiny_t5(Path(PRESETS["Tiny"].text_encoder_folder))
    assert infer("--prompt", "the robot moves " * 40) == 0
    assert "fills all 64 positions" in capfd.readouterr().out
    assert infer("--prompt", "the robot moves") == 0
    assert "fills all" not in capfd.readouterr().out


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


def test_one_invalid_input_does_not_fail_the_others(volume, capfd):
    good = {"input_video": f"datasets/d/val/videos/{STEM}.mp4", "output_video": "batch/1.mp4"}
    bad = {"input_video": "damaged.mp4", "prompt": "The robot reaches for a tomato."}
    Path("batch.json").write_text(json.dumps([bad | {"output_video": "batch/0.mp4"}, good]))
    assert infer("--batch_input_json", "batch.json") == 2
    assert "1 of 2 samples" in capfd.readouterr().err
    assert Path("batch/1.mp4").exists()
    assert not Path("batch/0.mp4").exists()


def test_recorded_settings_of_the_run_take_effect(volume, capfd, tmp_path):
    config = {
        "run": {},
        "size": "Tiny",
        "architecture": "base",
        "geometry": "stretch",
        "num_frames": 9,
        "video_size": [64, 96],
        "text_length": 16,
        "rope_ratio_t": 1.0,
        "rope_ratio_h": 2.0,
        "rope_ratio_w": 2.0,
    }
    (tmp_path / "iter_000000001.pt").symlink_to(volume / RUN / "model/iter_000000007.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert infer(checkpoint=str(tmp_path / "iter_000000001.pt"), target="s.mp4") == 0
    info = probe("s.mp4")
    assert (info.frames, info.width, info.height) == (9, 96, 64)
    (tmp_path / "config.json").write_text(json.dumps(config | {"size": "2B"}))
    assert infer(checkpoint=str(tmp_path / "iter_000000001.pt")) == 2
    assert "was trained as 2B" in capfd.readouterr().err


def test_flags_of_missing_components_are_noted(volume, capfd):
    assert infer("--disable_guardrail", "--offload_prompt_refiner") == 0
    assert "no guardrail" in capfd.readouterr().out


def test_a_lora_file_needs_its_alpha(volume, capfd):
    net = VideoDiT(PRESETS["Tiny"].dit)
    net.load_state_dict(torch.load(f"{RUN}/model/iter_000000007.pt", weights_only=True), False)
    net.init_weights(torch.Generator().manual_seed(0))
    inject(net, rank=2, alpha=8.0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, one in net.named_parameters():
            if "lora_B" in name:
                one.normal_(generator=torch.Generator().manual_seed(2))
    state = {f"net.{name}": one.detach() for name, one in net.state_dict().items()}
    torch.save(state, "upstream.pt")
    assert infer("--use_lora", checkpoint="upstream.pt") == 2
    assert "upstream.pt: it holds LoRA adapters of rank 2, but not the alpha" in (
        capfd.readouterr().err
    )
    flags = ["--use_lora", "--lora_rank", "2", "--lora_alpha", "8", "--seed", "1"]
    assert infer(*flags, checkpoint="upstream.pt", target="lora.mp4") == 0
    merge(net)
    torch.save({f"net.{name}": one for name, one in net.state_dict().items()}, "merged.pt")
    assert infer("--seed", "1", checkpoint="merged.pt", target="merged.mp4") == 0
    assert psnr(read_frames("lora.mp4"), read_frames("merged.mp4")) > 45
    assert infer("--lora_rank", "4", "--lora_alpha", "8", checkpoint="upstream.pt") == 2
    assert "has rank 2" in capfd.readouterr().err
    assert infer("--use_lora") == 2
    assert "--use_lora: " in capfd.readouterr().err
    assert infer("--use_lora", "--lora_alpha", "-1") == 2
    assert "--lora_alpha -1.0: above 0" in capfd.readouterr().err


SOURCE = f"datasets/d/val/videos/{STEM}.mp4"


def batch(*entries, lines=False, mark=""):
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(list(entries))
    Path("batch.json").write_text(mark + text, encoding="utf-8")
    return main(
        [
            "--device",
            "cpu",
            "--model_size",
            "Tiny",
            "--num_steps",
            "2",
            "--seed",
            "3",
            "--dit_path",
            RUN,
            "--batch_input_json",
            "batch.json",
        ]
    )


def test_an_entry_may_override_settings(volume, capfd):
    write_tiny_t5(Path(PRESETS["Tiny"].text_encoder_folder))
    own = {
        "seed": 9,
        "guidance": 2,
        "num_steps": 3,
        "num_conditional_frames": 5,
        "negative_prompt": "blurry",
    }
    entries = [
        {"input_video": SOURCE, "output_video": f"own/{number}.mp4", **settings}
        for number, settings in enumerate(
            [{}, own, {"negative_prompt": "blurry"}, {"guidance": 0}, {"seed": 4, "sead": 1}]
        )
    ]
    assert batch(*entries) == 0
    assert "the key sead is not read; did you mean seed?" in capfd.readouterr().out
    reported = [json.loads(Path(f"own/{number}.json").read_text()) for number in range(5)]
    assert [one["seed"] for one in reported] == [3, 9, 3, 3, 4]
    assert [one["passes"] for one in reported] == [6, 8, 6, 3, 6]
    assert [one["negative_prompt"] for one in reported] == [None, "blurry", "blurry", None, None]
    assert reported[1] | {"guidance": 2, "steps": 3, "conditional_frames": 5} == reported[1]
    assert len({Path(f"own/{number}.mp4").read_bytes() for number in range(5)}) == 5
    # the result is the same as for each alone
    flags = ["--seed", "9", "--guidance", "2", "--num_steps", "3", "--negative_prompt", "blurry"]
    assert infer(*flags, "--num_conditional_frames", "5", target="own/alone.mp4") == 0
    assert Path("own/alone.mp4").read_bytes() == Path("own/1.mp4").read_bytes()


@pytest.mark.parametrize(("lines", "mark"), [(True, ""), (False, "\ufeff"), (True, "\ufeff")])
def test_json_lines_and_a_byte_order_mark_are_read(volume, lines, mark):
    entries = [{"input_video": SOURCE, "output_video": f"l/{n}.mp4"} for n in range(2)]
    assert batch(*entries, lines=lines, mark=mark) == 0
    assert batch(*entries[:1], lines=lines, mark=mark) == 0
    assert Path("l/1.mp4").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"prompt": ["a", "b"]},
            "entry 1: prompt must be a string, not a list; write one entry for",
        ),
        ({"prompt": 5}, "entry 1: prompt must be a string, not 5"),
        ({"negative_prompt": {"a": 1}}, "entry 1: negative_prompt must be a string"),
        ({"output_video": 3}, "entry 1: output_video must be a string, not 3"),
        ({"input_video": None}, "entry 1: input_video is missing"),
        ({"seed": "7"}, "entry 1: seed 7: from 0"),
        ({"seed": True}, "entry 1: seed True: from 0"),
        ({"seed": -1}, "entry 1: seed -1: from 0"),
        ({"guidance": "high"}, "entry 1: guidance high: 0 or more"),
        ({"num_steps": 0}, "entry 1: num_steps 0: at least 1"),
        ({"num_conditional_frames": 2}, "entry 1: num_conditional_frames 2: 1 or 5"),
    ],
)
def test_an_invalid_entry_is_refused_by_key(volume, capfd, entry, message):
    good = {"input_video": SOURCE, "output_video": "never.mp4"}
    assert batch(good, {"input_video": SOURCE, "output_video": "x.mp4"} | entry) == 2
    captured = capfd.readouterr()
    assert f"batch.json: {message}" in captured.err
    assert "Traceback" not in captured.err
    assert not Path("never.mp4").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '[{"input_video": "a.mp4"}, 3]', "[[]]"])
def test_an_invalid_batch_file_is_refused(volume, capfd, text):
    Path("bad.json").write_text(text)
    assert infer("--batch_input_json", "bad.json") == 2
    captured = capfd.readouterr()
    assert "bad.json" in captured.err
    assert "Traceback" not in captured.err


NOTES = {  # flags that have no effect here, and their notes
    "--aspect_ratio 9:16": "the checkpoint decides the size: .* makes 128x96",
    "--resolution 480": "the checkpoint decides the size: .* and --resolution has no effect",
    "--aspect_ratio 1:1 --resolution 720": "--resolution and --aspect_ratio have no effect",
    "--guidance 0 --negative_prompt x": "a negative prompt has no effect if guidance is 0",
    "--force": "--force has no effect",
    "--lora_alpha 4": "LoRA adapters has no effect",
    "--lora_rank 4": "LoRA adapters has no effect",
    "--lora_target_modules q_proj": "LoRA adapters has no effect",
    "--init_lora_weights true": "--init_lora_weights has no effect",
    "--disable_guardrail": "no guardrail",
    "--offload_guardrail": "no guardrail",
    "--disable_prompt_refiner": "no guardrail",
    "--offload_prompt_refiner": "no guardrail",
    "--offload_text_encoder": "--offload_text_encoder has no effect",
    "--downcast_text_encoder": "--downcast_text_encoder has no effect",
    "--use_cuda_graphs": "--use_cuda_graphs has no effect",
    "--autoregressive": "--autoregressive has no effect: this checkpoint follows no actions",
    "--chunk_size 8": "--chunk_size 8 has no effect: this checkpoint makes clips of 17 frames",
}
ACTS = {  # flags with an effect that a test shows or that is obvious
    "model_size",
    "fps",
    "dit_path",
    "checkpoint",
    "load_ema",
    "use_lora",
    "prompt",
    "negative_prompt",
    "input_path",
    "frames",
    "num_conditional_frames",
    "geometry",
    "batch_input_json",
    "guidance",
    "num_steps",
    "seed",
    "save_path",
    "vae_path",
    "text_encoder_path",
    "num_gpus",
    "natten",
    "approximate",
    "offload",
    "benchmark",
    "device",
    "latent_metrics",
    "lpips_weights",
    "action_path",
    "input_annotation",
}


def test_every_flag_has_an_effect_or_a_note():
    noted = {word[2:] for flags in NOTES for word in flags.split() if word.startswith("--")}
    known = {action.dest for action in parser()._actions} - {"help"}
    assert known == noted | ACTS


@pytest.mark.parametrize("flags", NOTES)
def test_a_flag_without_effect_is_noted(volume, capfd, flags):
    assert infer("--num_steps", "1", *flags.split(), target="n.mp4") == 0
    assert re.search(f"note: .*{NOTES[flags]}", capfd.readouterr().out)


def test_no_note_without_a_reason(volume, capfd):
    assert infer("--num_steps", "1", "--model_size", "Tiny") == 0
    assert "note:" not in capfd.readouterr().out
    assert batch({"input_video": SOURCE, "output_video": "n.mp4"}) == 0
    assert "note:" not in capfd.readouterr().out
    Path("batch.json").write_text(json.dumps([{"input_video": SOURCE, "output_video": "n.mp4"}]))
    assert infer("--batch_input_json", "batch.json", "--prompt", "x") == 0
    out = capfd.readouterr().out
    for name in ("input_path", "prompt", "save_path"):
        assert f"note: --{name} has no effect with --batch_input_json" in out


def test_the_frame_rate_is_the_checkpoints_unless_set(volume, capfd, tmp_path):
    config = {
        "run": {},
        "size": "Tiny",
        "architecture": "base",
        "geometry": "crop",
        "num_frames": 17,
        "video_size": [96, 128],
        "text_length": 64,
        "rope_ratio_t": 1.0,
        "rope_ratio_h": 1.0,
        "rope_ratio_w": 1.0,
        "fps": 10,
    }
    (tmp_path / "iter_000000001.pt").symlink_to(volume / RUN / "model/iter_000000007.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for flags, fps in ([], 10), (["--fps", "16"], 16):
        checkpoint = str(tmp_path / "iter_000000001.pt")
        assert infer("--num_steps", "1", *flags, checkpoint=checkpoint, target="f.mp4") == 0
        assert float(probe("f.mp4").fps) == fps
