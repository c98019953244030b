"""The inference command with action-conditioned checkpoints, end to end at Tiny size."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from video2world_common.action_statistics import ActionStatistics
from video2world_preprocess.demo import draw_episode, scene
from video2world_preprocess.text.embedding_files import write_embedding
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.video.reader import probe, read_frames
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.checkpoint.run_config import RunConfig
from video2world_trainer.checkpoint_runs import Checkpoint, sample_task
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.action_chunks import plan_chunks
from video2world_trainer.generation.clip_format import choose_clip_format
from video2world_trainer.generation.load import load_pipeline
from video2world_trainer.generation.quality_metrics import psnr
from video2world_trainer.generation.requests import parse_requests
from video2world_trainer.inference import main, parser
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import PRESETS, preset
from video2world_trainer.training.checkpointer import describe_run
from video2world_trainer.training.config import TrainConfig

torch.set_num_threads(1)
WINDOW = "datasets/d/val/videos/w.mp4"
PER_FRAME, PER_CLIP, PLAIN = "per_frame/model/iter_000000007.pt", "per_clip/model/a.pt", "plain.pt"
NAMES = ("shoulder", "elbow", "gripper")
POSES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def statistics(names, **changes):
    wide = len(names)
    made = ActionStatistics(
        names=names,
        representation="absolute",
        source="test",
        fps=30.0,
        rows=100,
        mean=(0.1,) * wide,
        std=(0.5,) * wide,
        min=(-1.0,) * (wide - 1) + (0.0,),
        max=(1.0,) * wide,
        offset=(0.1,) * wide,
        scale=(2.0,) * wide,
    )
    return replace(made, **changes)


def write_checkpoint(path, recorded, frames):
    """Write a random checkpoint whose action embedders are not zero, with its record."""
    net = VideoDiT(preset("Tiny", actions=recorded.conditioning if recorded else None).dit)
    generator = torch.Generator().manual_seed(0)
    net.init_weights(generator)
    with torch.no_grad():
        for name, one in net.named_parameters():
            if "modulation" in name or "action" in name:
                one.normal_(std=0.05, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"net.{name}": one for name, one in net.state_dict().items()}, path)
    if recorded is not None:
        clip = {"num_frames": frames, "video_size": (96, 128), "text_length": 64}
        config = TrainConfig(
            size="Tiny", action_conditioning=recorded.kind, rope_h=1.0, rope_w=1.0, **clip
        )
        (path.parent / "config.json").write_text(json.dumps(describe_run(config, recorded)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A volume with a window of 40 frames and its actions, and three random checkpoints."""
    volume = tmp_path_factory.mktemp("volume")
    frames = draw_episode(scene(685393))[:40]
    write_video(volume / WINDOW, frames, 30)
    Image.fromarray(frames[0]).save(volume / "first.png")
    val = volume / "datasets/d/val"
    (val / "metas").mkdir()
    (val / "metas/w.txt").write_text("The robot reaches for a tomato.\n")
    embedding = np.random.default_rng(0).normal(size=(9, 1024)).astype(np.float16)
    write_embedding(val / "t5_xxl/w.pickle", embedding)
    (val / "actions").mkdir()
    save_file({"actions": own_actions()}, val / "actions/w.safetensors")
    TransformVAE().save_pretrained(volume / PRESETS["Tiny"].base_folder / "tokenizer")
    write_checkpoint(volume / PER_FRAME, RecordedActions("per_frame", statistics(NAMES)), 17)
    poses = statistics(POSES, representation="relative_pose", fps=4.0)
    write_checkpoint(volume / PER_CLIP, RecordedActions("per_clip", poses), 13)
    write_checkpoint(volume / PLAIN, None, 17)
    return volume


def own_actions():
    steps = np.arange(39)
    rows = [np.sin(steps / 5), np.cos(steps / 7), steps > 20]
    return np.stack(rows, axis=1).astype(np.float32)


@pytest.fixture
def volume(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def flags_of(*arguments, source=WINDOW, checkpoint=PER_FRAME, target="o.mp4"):
    flags = ["--device", "cpu", "--model_size", "Tiny", "--num_steps", "2"]
    flags += ["--dit_path", checkpoint, "--input_path", source, "--save_path", target]
    return [*flags, *arguments]


def infer(*arguments, **options):
    return main(flags_of(*arguments, **options))


def facts(target="o.mp4"):
    return json.loads(Path(target).with_suffix(".json").read_text())


def write_csv(path, rows, names=NAMES):
    lines = [",".join(names), *(",".join(f"{x:.9g}" for x in row) for row in rows)]
    Path(path).write_text("\n".join(lines) + "\n")


def generated(*arguments, **options):
    """Return the exact frames of a sample, before they are encoded as mp4."""
    args = parser().parse_args(flags_of(*arguments, **options))
    requests = parse_requests(args)
    kept = []
    pipeline = load_pipeline(args, requests, World(device=torch.device("cpu")))
    replace(pipeline, measure=lambda video, _: kept.append(video)).generate(
        requests[0], lambda: None
    )
    return kept[0]


def test_a_window_brings_its_own_actions(volume, capfd):
    assert infer() == 0
    found = facts()
    assert (found["frames"], found["metrics"]["frames"], found["passes"]) == (17, 16, 6)
    actions = found["actions"]
    assert actions["file"] == "datasets/d/val/actions/w.safetensors"
    assert actions["names"] == list(NAMES)
    assert actions["range"] == {"min": [-1, -1, 0], "max": [1, 1, 1]}
    assert np.allclose(actions["rows"], own_actions()[:16], atol=1e-6)
    assert (actions["clips"], actions["seams"], actions["repeated_last_rows"]) == (1, [], 0)
    assert actions["of_the_input"] is True
    assert "16 actions from datasets/d/val/actions/w.safetensors" in capfd.readouterr().out


def test_other_actions_make_another_video_without_a_ground_truth(volume, capfd):
    write_csv("own.csv", own_actions()[:16])
    write_csv("other.csv", -own_actions()[:16] * [1, 1, -1])
    frames = {name: generated("--action_path", f"{name}.csv") for name in ("own", "other")}
    assert np.array_equal(frames["own"], generated())
    assert psnr(frames["own"], frames["other"]) < 40
    assert infer("--action_path", "own.csv") == 0
    assert (facts()["metrics"]["frames"], facts()["actions"]["of_the_input"]) == (16, True)
    assert infer("--action_path", "other.csv") == 0
    assert (facts()["metrics"], facts()["actions"]["of_the_input"]) == (None, False)
    write_csv("wild.csv", own_actions()[:16] * [1, 3, 1])
    capfd.readouterr()
    assert infer("--action_path", "wild.csv") == 0
    assert "row 0: elbow is 3, outside the range of the training data" in capfd.readouterr().out


def test_long_sequences_are_generated_clip_after_clip(volume, capfd):
    flags = ["--autoregressive", "--seed", "3"]
    video = generated(*flags)
    assert len(video) == 40
    found = facts()
    assert found["passes"] == 3 * 6
    actions = found["actions"]
    assert (actions["clips"], actions["seams"]) == (3, [16, 32])
    assert actions["repeated_last_rows"] == 9
    assert "9 repetitions of the last action fill the last clip" in capfd.readouterr().out
    # the first clip is that of a sample without further ones
    assert np.array_equal(video[:17], generated("--seed", "3"))
    # each further one starts from the last frame before it, with its own noise and actions
    for chunk in plan_chunks(39, 16)[1:]:
        Image.fromarray(video[chunk.first]).save("seam.png")
        write_csv("part.csv", own_actions()[chunk.first : chunk.first + chunk.rows])
        flags = ["--action_path", "part.csv", "--seed", str(chunk.seed(3))]
        caption = ["--prompt", "The robot reaches for a tomato."]
        shutil.copytree("datasets/d/val/t5_xxl", "seam/t5_xxl", dirs_exist_ok=True)
        Path("seam/videos").mkdir(exist_ok=True)
        Path("seam/metas").mkdir(exist_ok=True)
        shutil.copy("datasets/d/val/metas/w.txt", "seam/metas/seam.txt")
        shutil.copy("seam/t5_xxl/w.pickle", "seam/t5_xxl/seam.pickle")
        shutil.copy("seam.png", "seam/videos/seam.png")
        again = generated(*flags, *caption, source="seam/videos/seam.png")
        assert np.array_equal(video[chunk.first + 1 :][: chunk.rows], again[1:])


def test_the_ground_truth_is_compared_over_its_whole_length(volume):
    assert infer("--autoregressive", target="long.mp4") == 0
    assert probe("long.mp4").frames == 40
    assert facts("long.mp4")["metrics"]["frames"] == 39
    with Image.open("long.png") as sheet:
        assert sheet.height > 3 * 96 + 100


def test_ranks_offload_and_approximation_follow_actions_too(volume):
    write_csv("moves.csv", own_actions()[:20])
    flags = ["--action_path", "moves.csv", "--seed", "2", "--num_steps", "4"]
    assert infer(*flags, target="one.mp4") == 0
    one = read_frames("one.mp4")
    assert len(one) == 21
    assert infer(*flags, "--offload", target="offload.mp4") == 0
    assert Path("offload.mp4").read_bytes() == Path("one.mp4").read_bytes()
    assert infer(*flags, "--num_gpus", "2", target="two.mp4") == 0
    assert psnr(read_frames("two.mp4"), one) > 45
    assert infer(*flags, "--num_steps", "9", "--approximate", target="near.mp4") == 0
    assert facts("near.mp4")["passes"] == 2 * 2 * 6


def annotation(count):
    poses = [[0.3 + 0.01 * n, 0.02 * n, 0.1, 0.01 * n, 0, -0.01 * n] for n in range(count)]
    return {"state": poses, "continuous_gripper_state": [0.5] * count, "action": [[9.0] * 7]}


def test_upstream_s_documented_call(volume, capfd):
    """Guidance is a no-op without text; a rest of 6 actions is generated, not dropped."""
    Path("13.json").write_text(json.dumps(annotation(31)))
    call = [
        *("--model_size", "Tiny", "--dit_path", PER_CLIP, "--input_video", WINDOW),
        *("--input_annotation", "13.json", "--num_conditional_frames", "1", "--seed", "0"),
        *("--disable_guardrail", "--disable_prompt_refiner", "--num_steps", "2"),
    ]
    call += ["--device", "cpu"]
    assert main([*call, "--guidance", "0", "--save_path", "clip.mp4"]) == 0
    info = probe("clip.mp4")
    assert (info.frames, info.fps) == (13, 4)
    assert "the first 12 of 30 actions are used" in capfd.readouterr().out
    assert main([*call, "--save_path", "guided.mp4", "--chunk_size", "8"]) == 0  # default: 7
    out = capfd.readouterr().out
    assert "guidance has no effect without text" in out
    assert "--chunk_size 8 has no effect" in out
    assert Path("guided.mp4").read_bytes() == Path("clip.mp4").read_bytes()
    found = facts("guided.mp4")
    assert (found["passes"], found["guidance"], found["prompt"]) == (3, 0, "")
    assert main([*call, "--autoregressive", "--save_path", "all.mp4"]) == 0
    assert probe("all.mp4").frames == 31
    assert facts("all.mp4")["actions"]["repeated_last_rows"] == 6
    assert infer("--num_conditional_frames", "5", "--action_path", "13.json", checkpoint=PER_CLIP)
    assert "starts from 1 frame; set 1" in capfd.readouterr().err


def test_nvidia_s_weights_decide_the_clip_without_a_record():
    path = Path("x/Cosmos-Predict2-2B-Sample-Action-Conditioned/model-480p-4fps.pt")
    args = parser().parse_args([])
    found = choose_clip_format(args, PRESETS["2B"], RunConfig(), path, 1)
    assert (found.size, found.frames, found.fps) == ((480, 640), 13, 4)


def test_no_text_is_read_without_a_reason(volume):
    """An image without a caption, and no text encoder."""
    Path("13.json").write_text(json.dumps(annotation(13)))
    flags = ["--action_path", "13.json", "--text_encoder_path", "nowhere"]
    assert infer(*flags, source="first.png", checkpoint=PER_CLIP) == 0


def test_a_batch_names_actions_for_each_sample(volume):
    write_csv("left.csv", own_actions()[:16])
    write_csv("right.csv", own_actions()[5:25])
    entries = [
        {"input_video": WINDOW, "output_video": f"moves/{name}.mp4"} | more
        for name, more in {
            "left": {"actions": "left.csv"},
            "right": {"actions": "right.csv"},
            "own": {},
            "bad": {"actions": "gone.csv"},
        }.items()
    ]
    Path("batch.json").write_text(json.dumps(entries))
    assert infer("--batch_input_json", "batch.json") == 2  # of bad alone
    lengths = {name: probe(f"moves/{name}.mp4").frames for name in ("left", "right", "own")}
    assert lengths == {"left": 17, "right": 21, "own": 17}
    assert not Path("moves/bad.mp4").exists()


def test_samples_are_made_again_when_their_actions_change(volume):
    write_csv("moves.csv", own_actions())
    checkpoint = Checkpoint("x", Path(PER_FRAME), 7)
    entry = {"input_video": WINDOW, "output_video": "o.mp4", "actions": "moves.csv"}
    before = sample_task(checkpoint, entry, []).digest
    write_csv("moves.csv", own_actions()[:9])
    assert sample_task(checkpoint, entry, []).digest != before
    task = sample_task(checkpoint, {"input_video": WINDOW, "output_video": "o.mp4"}, [])
    assert Path("datasets/d/val/actions/w.safetensors") in task.files_read


@pytest.mark.parametrize(
    ("arguments", "options", "wanted"),
    [
        (["--action_path", "m.csv"], {"checkpoint": PLAIN}, "m.csv: plain.pt was trained without"),
        ([], {"source": "first.png"}, "follows actions, and there is no"),
        (["--action_path", "gone.csv"], {}, "gone.csv: there is no such file"),
        (["--action_path", "wide.csv"], {}, "wide.csv has the columns"),
        (["--action_path", "m.csv", "--input_annotation", "m.csv"], {}, "name the actions once"),
        (["--frames", "last"], {}, "leads to the video's last frame and not from it"),
        (
            ["--action_path", "short.csv", "--num_conditional_frames", "5"],
            {},
            "short.csv: 3 actions make 4 frames, of which the first 5 are given",
        ),
        ([], {"source": "other/videos/w.mp4"}, "7 numbers per action, but"),
    ],
)
def test_bad_input_is_refused_before_weights_are_read(volume, capfd, arguments, options, wanted):
    write_csv("m.csv", own_actions()[:16])
    write_csv("short.csv", own_actions()[:3])
    write_csv("wide.csv", np.zeros((16, 4)), ("a", "b", "c", "d"))
    Path("other/actions").mkdir(parents=True, exist_ok=True)
    save_file({"actions": np.zeros((39, 7), np.float32)}, "other/actions/w.safetensors")
    assert infer("--prompt", "x", *arguments, **options) == 2
    captured = capfd.readouterr()
    assert wanted in captured.err
    assert "Traceback" not in captured.err
    assert "attention:" not in captured.out


def test_a_plain_checkpoint_ignores_a_window_s_actions(volume, capfd):
    assert infer("--autoregressive", checkpoint=PLAIN) == 0
    assert facts()["actions"] is None
    assert "--autoregressive has no effect" in capfd.readouterr().out
