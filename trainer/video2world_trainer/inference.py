"""The inference stage, the guide's chapter 3: checkpoint, first frame and prompt to a video."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video2world_preprocess.events import Progress, emit, say
from video2world_preprocess.files import write_json, write_text
from video2world_preprocess.pickles import read_embedding
from video2world_preprocess.stage import UserError, run_stage
from video2world_preprocess.text import TextEncoder
from video2world_preprocess.vae import load_vae
from video2world_preprocess.video import write_video

from .checkpoint import CheckpointFolder
from .conditioning import Condition, read_condition
from .contact_sheet import write_contact_sheet
from .generate import Settings, decode, denoised, encode_given, given_mask, network_velocity
from .metrics import psnr
from .model import VideoDiT
from .presets import PRESETS, Preset, preset
from .run_config import RunConfig
from .weights import load_dit_weights

__all__ = ["main", "parser"]

# Upstream's own paragraph is not ours to ship; this one names the same kinds of flaws.
NEGATIVE_PROMPT = (
    "A low-quality video: blurry and noisy frames, compression artefacts, flicker, washed-out or "
    "oversaturated colours, bad exposure, jerky camera, unnatural motion, objects that deform, "
    "merge, vanish or pass through each other, implausible physics, text and watermarks."
)
ASPECTS: dict[str, dict[str, tuple[int, int]]] = {  # height, width (facts sheet 5.2)
    "720": {
        "1:1": (960, 960), "4:3": (704, 960), "3:4": (960, 704),
        "16:9": (704, 1280), "9:16": (1280, 704),
    },
    "480": {
        "1:1": (480, 480), "4:3": (480, 640), "3:4": (640, 480),
        "16:9": (432, 768), "9:16": (768, 432),
    },
}  # fmt: skip
ABSENT = (  # the guide's flags for parts that this project does not ship
    "disable_guardrail", "offload_guardrail", "disable_prompt_refiner", "offload_prompt_refiner",
)  # fmt: skip
SETTLED = {  # the guide's flags that choose what is chosen here anyway
    "offload_text_encoder": "T5 is always released before the network is loaded",
    "downcast_text_encoder": "T5 always runs in bfloat16 on a GPU",
    "use_cuda_graphs": "CUDA graphs are not used",
}
BENCHMARK_RUNS = 4  # the first of them, which warms up, is not timed


def parser() -> argparse.ArgumentParser:
    """The guide's flags and ours."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.inference",
        description=__doc__,
        allow_abbrev=False,
        epilog="Beside every video: .png (contact sheet), .json (settings, timings, PSNR), .txt "
        "(prompt). There is no guardrail and no prompt refiner in this build; the guide's flags "
        "about them are accepted and have no effect, as are "
        + ", ".join(f"--{name} ({why})" for name, why in SETTLED.items())
        + ".",
    )
    add = flags.add_argument
    add("--model_size", choices=sorted(PRESETS), default="2B")
    add("--resolution", choices=("480", "720"), default="720")
    add("--fps", type=int, choices=(10, 16), default=16)
    add(
        "--dit_path",
        type=Path,
        help="a .pt or .safetensors file, a diffusers folder, or a run's "
        "checkpoints folder (the latest is taken); default: the published weights",
    )
    add("--load_ema", action="store_true", help="use the averaged weights of the checkpoint")
    add("--prompt", default="", help="default: the input's caption, in ../metas or beside it")
    add(
        "--negative_prompt",
        default=NEGATIVE_PROMPT,
        help="what guidance leads away from (a paragraph of our own on low quality, not "
        "upstream's); Tiny uses the empty embedding that its training dropped texts to",
    )
    add("--input_path", type=Path, help="image or video to start from")
    add(
        "--frames",
        choices=("first", "last"),
        default="first",
        help="condition on the video's "
        "first frames, to compare with what follows, or on its last, as upstream does",
    )
    add("--num_conditional_frames", "--num_conditional_frmaes", type=int, choices=(1, 5), default=1)
    add("--aspect_ratio", choices=sorted(ASPECTS["720"]), default="16:9")
    add("--geometry", choices=("crop", "stretch"), help="default: as the checkpoint was trained")
    add("--batch_input_json", type=Path, help='[{"input_video", "prompt", "output_video"}, ...]')
    add("--guidance", type=float, default=7.0, help="0: the prompt alone, half the work (7)")
    add("--num_steps", "--steps", type=int, default=35, help="solver steps (35)")
    add("--seed", type=int, default=0)
    add("--save_path", type=Path, default=Path("output/generated_video.mp4"))
    add("--vae_path", type=Path, help="folder of the VAE; default: beside the published weights")
    add("--text_encoder_path", help="folder or Hub id of the T5 encoder")
    add("--num_gpus", type=int, default=1, help="only 1 so far")
    add("--natten", action="store_true", help="not in this build: refused")
    add("--benchmark", action="store_true", help="generate 4 times, report the mean of the last 3")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name in (*ABSENT, *SETTLED):
        add(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    return flags


@dataclass(frozen=True)
class Item:
    """One sample to make."""

    source: Path
    prompt: str
    target: Path


def _meant(path: Path) -> Path:
    """``path``, or what is there of what the guide's own command means by it.

    Its example leaves ``videos/`` out of the input's path and names a run's folder by the whole
    experiment (facts sheet 8.2).
    """
    if path.exists():
        return path
    for other in (
        path.parent / "videos" / path.name,
        Path(*(part.removeprefix("predict2_video2world_training_") for part in path.parts)),
    ):
        if other != path and other.exists():
            say(f"note: there is no {path}: {other} is taken")
            return other
    return path


def _items(args: argparse.Namespace) -> list[Item]:
    if args.batch_input_json is None:
        if args.input_path is None:
            raise UserError("--input_path: name the image or video to start from")
        return _checked([Item(_meant(args.input_path), args.prompt, args.save_path)], "--save_path")
    path = args.batch_input_json
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--batch_input_json {path} cannot be read ({error})") from None
    if not isinstance(entries, list) or not all(
        isinstance(one, dict) and isinstance(one.get("input_video"), str) for one in entries
    ):
        raise UserError(f"{path}: it must be a list of objects with input_video and prompt")
    if not entries:
        raise UserError(f"{path}: the list is empty; name at least one input_video")
    items = [
        Item(
            _meant(Path(one["input_video"])),
            str(one.get("prompt") or ""),
            Path(one.get("output_video") or f"output_{number}.mp4"),
        )
        for number, one in enumerate(entries)
    ]
    return _checked(items, f"{path}: output_video")


def _checked(items: list[Item], where: str) -> list[Item]:
    """``items``, if writing one can destroy neither an input nor another one's files."""
    inputs = {item.source.resolve() for item in items}
    taken: set[Path] = set()
    for item in items:
        target = item.target.resolve()
        if item.target.suffix.lower() != ".mp4":
            raise UserError(f"{where} {item.target}: the name must end in .mp4")
        if target in inputs:
            raise UserError(f"{where} {item.target}: this is an input; choose another name")
        if target.with_suffix("") in taken:
            raise UserError(f"{where} {item.target}: two samples have this name; rename one")
        taken.add(target.with_suffix(""))
    return items


def _checkpoint(args: argparse.Namespace, chosen: Preset) -> tuple[Path, RunConfig]:
    """The weights' file and what it says of its training."""
    path = args.dit_path
    if path is None:
        published = chosen.base_weights(f"{args.resolution}p", args.fps)
        if published is None:
            raise UserError("--dit_path: name the checkpoint; Tiny has no published weights")
        path = Path(published)
    path = _meant(path)
    if path.is_dir() and (path / "model").is_dir():
        iteration = CheckpointFolder(path).newest_whole(("model",))
        if iteration is None:
            raise UserError(f"--dit_path {path}: there is no checkpoint in this folder")
        path = CheckpointFolder(path).path("model", iteration)
    if not path.exists():
        raise UserError(
            f"--dit_path {path}: there is no such file; train first, or run the download stage"
        )
    return path, RunConfig.read(path.parent / "config.json")


def _caption(source: Path) -> str:
    """The caption of a data set's window, or of a user's own video; empty if there is none."""
    name = f"{source.stem}.txt"
    for path in (source.parent.parent / "metas" / name, source.parent / name):
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return ""


class Texts:
    """Embeddings of prompts: the data set's own where the prompt is its caption, else T5's."""

    def __init__(self, encoder: str, device: str, length: int) -> None:
        self._folder, self._device, self._length = encoder, device, length
        self._known: dict[str, np.ndarray] = {}
        self._refused: dict[str, UserError] = {}

    def prepare(self, prompts: Mapping[str, Path | None]) -> None:
        """Encode all ``prompts`` (each with its data-set embedding, if any), loading T5 once.

        T5 is released on return. A bad embedding file is reported when its prompt is asked for.
        """
        missing = []
        for prompt, cached in prompts.items():
            if cached is not None and cached.is_file():
                try:
                    self._known[prompt] = read_embedding(cached)
                except UserError as error:  # it must not cost the other prompts
                    self._refused[prompt] = error
            else:
                missing.append(prompt)
        if missing:
            encoder = TextEncoder.load(self._folder, self._device)
            self._known.update(zip(missing, encoder.encode(missing), strict=True))

    def padded(self, prompt: str | None) -> Tensor:
        """[1, length, 1024] float32, zeros beyond the prompt; None is zeros throughout.

        Raises:
            UserError: the prompt's embedding file is damaged or refused.
        """
        text = torch.zeros(1, self._length, 1024)
        if prompt in self._refused:
            raise self._refused[prompt]
        if prompt is not None:
            rows = torch.from_numpy(self._known[prompt][: self._length]).float()
            text[0, : len(rows)] = rows
        return text


@dataclass(frozen=True)
class Engine:
    """Everything that is loaded once for all samples."""

    args: argparse.Namespace
    chosen: Preset
    run: RunConfig
    checkpoint: Path
    size: tuple[int, int]
    clip_frames: int
    geometry: Any
    net: VideoDiT
    vae: Any
    texts: Texts


def _size(args: argparse.Namespace, chosen: Preset, run: RunConfig) -> tuple[int, int]:
    if run.video_size is not None:
        return run.video_size
    if chosen.size == "Tiny":
        return chosen.sizes["720p"]
    return ASPECTS[args.resolution][args.aspect_ratio]


def _load(args: argparse.Namespace, items: Sequence[Item]) -> Engine:
    if args.num_gpus != 1:
        raise UserError("--num_gpus: inference runs on one GPU so far; leave the flag out")
    if args.num_steps < 1:
        raise UserError(f"--num_steps {args.num_steps}: at least 1")
    if not math.isfinite(args.guidance) or args.guidance < 0:
        raise UserError(f"--guidance {args.guidance}: 0 or more")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: from 0 to 2**32 - 1")
    if args.natten:
        raise UserError("--natten: sparse attention is not part of this build; leave the flag out")
    device = _device(args.device)
    chosen = PRESETS[args.model_size]
    checkpoint, run = _checkpoint(args, chosen)
    if run.size is not None and run.size != args.model_size:
        raise UserError(
            f"--model_size {args.model_size}: {checkpoint} was trained as {run.size}; use that"
        )
    chosen = preset(args.model_size, rope_ratios=run.rope_ratios)
    clip_frames = run.num_frames or chosen.clip_frames[args.fps]
    if args.num_conditional_frames >= clip_frames:
        raise UserError(
            f"--num_conditional_frames {args.num_conditional_frames}: {checkpoint} makes clips of "
            f"{clip_frames} frames, so nothing would be left to generate"
        )
    texts = _texts(args, chosen, run, items)  # first, so that T5 and the network never coexist
    if device.type == "cpu" and chosen.size != "Tiny":
        say(f"warning: no GPU: a {chosen.size} sample takes hours on a CPU")
    net = VideoDiT(chosen.dit)
    load_dit_weights(net, checkpoint, ema=args.load_ema, lora_scale=run.lora_scale)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    net = net.to(device, dtype).eval().requires_grad_(False)
    vae = load_vae(args.vae_path or f"{chosen.base_folder}/tokenizer", device)
    return Engine(
        args=args,
        chosen=chosen,
        run=run,
        checkpoint=checkpoint,
        size=_size(args, chosen, run),
        clip_frames=clip_frames,
        geometry=args.geometry or run.geometry or "crop",
        net=net,
        vae=vae,
        texts=texts,
    )


def _device(name: str) -> torch.device:
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); try cpu") from None


def _texts(
    args: argparse.Namespace, chosen: Preset, run: RunConfig, items: Sequence[Item]
) -> Texts:
    """The embeddings of every prompt that ``items`` need."""
    texts = Texts(
        args.text_encoder_path or chosen.text_encoder_folder,
        args.device,
        run.text_length or chosen.text_tokens,
    )
    wanted: dict[str, Path | None] = {}
    for item in items:
        prompt = _prompt(item)
        if not prompt:
            continue
        embedding = item.source.parent.parent / "t5_xxl" / f"{item.source.stem}.pickle"
        own = prompt == _caption(item.source) and embedding.is_file()
        wanted[prompt] = wanted.get(prompt) or (embedding if own else None)
    if args.guidance and chosen.size != "Tiny" and args.negative_prompt:
        wanted[args.negative_prompt] = None
    texts.prepare(wanted)
    return texts


def _prompt(item: Item) -> str:
    return item.prompt.strip() or _caption(item.source)


def _text(engine: Engine, prompt: str) -> Tensor:
    positive = engine.texts.padded(prompt)
    if not engine.args.guidance:
        return positive
    # as upstream, an empty negative prompt takes the positive one
    negative = None if engine.chosen.size == "Tiny" else engine.args.negative_prompt or prompt
    return torch.cat([positive, engine.texts.padded(negative)])


def _make(engine: Engine, item: Item, progress: Progress) -> dict[str, Any]:
    """Generate one sample and write its files; the summary that goes into its .json."""
    args = engine.args
    prompt = _prompt(item)
    if not prompt:
        raise UserError(
            f"{item.source}: give --prompt, as there is no caption {item.source.stem}.txt in "
            "../metas or beside it"
        )
    condition = read_condition(
        item.source,
        count=args.num_conditional_frames,
        clip_frames=engine.clip_frames,
        size=engine.size,
        geometry=engine.geometry,
        frames=args.frames,
    )
    text = _text(engine, prompt)
    seconds = []
    for _ in range(BENCHMARK_RUNS if args.benchmark else 1):
        started = time.perf_counter()
        given = encode_given(engine.vae, condition.given, engine.clip_frames)
        given_latents = 1 + (args.num_conditional_frames - 1) // 4
        velocity = network_velocity(engine.net, text, given_mask(given, given_latents))
        latents = denoised(
            velocity,
            given,
            given_latents,
            Settings(seed=args.seed, steps=args.num_steps, guidance=args.guidance),
            after_step=progress.advance,
        )
        video = decode(engine.vae, latents)
        seconds.append(time.perf_counter() - started)
    timed = seconds[1:] or seconds
    summary = {
        "prompt": prompt,
        "input": str(item.source),
        "checkpoint": str(engine.checkpoint),
        "ema": args.load_ema,
        "seed": args.seed,
        "guidance": args.guidance,
        "steps": args.num_steps,
        "frames": len(video),
        "fps": args.fps,
        "size": list(engine.size),
        "seconds": round(sum(timed) / len(timed), 2),
        **_compare(video, condition, args.num_conditional_frames),
    }
    write_video(item.target, video, args.fps)
    write_contact_sheet(
        item.target.with_suffix(".png"),
        _rows(video, condition),
        args.fps,
        title=f"{item.source.name}   {engine.checkpoint.name}",
    )
    write_text(item.target.with_suffix(".txt"), prompt + "\n")
    write_json(item.target.with_suffix(".json"), summary)
    return summary


def _rows(video: np.ndarray, condition: Condition) -> dict[str, np.ndarray]:
    rows = {"input": condition.given}
    if condition.truth is not None:
        rows["ground truth"] = condition.truth
    return rows | {"generated": video}


def _compare(video: np.ndarray, condition: Condition, given: int) -> dict[str, float | None]:
    """PSNR of the frames that were not given, against the truth; of holding the last given too.

    As far as the truth goes; null where two videos are equal, as JSON has no infinity.
    """
    if condition.truth is None:
        return {}
    truth = condition.truth[given:]
    held = np.broadcast_to(condition.given[-1:], truth.shape)
    values = {
        "psnr": psnr(video[given : given + len(truth)], truth),
        "psnr_of_repeating_the_input": psnr(held, truth),
    }
    return {
        "psnr_frames": len(truth),
        **{name: round(db, 3) if math.isfinite(db) else None for name, db in values.items()},
    }


def _work(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    if any(getattr(args, name) for name in ABSENT):
        say("note: this build has no guardrail and no prompt refiner; flags about them do nothing")
    for name, why in SETTLED.items():
        if getattr(args, name):
            say(f"note: --{name} has no effect: {why}")
    items = _items(args)
    engine = _load(args, items)
    steps = (BENCHMARK_RUNS if args.benchmark else 1) * (args.num_steps + 1)  # of one sample
    progress = Progress("inference", len(items) * steps, "steps")
    outputs: list[str] = []
    failures: list[str] = []
    quality: dict[str, Any] = {}
    for number, item in enumerate(items, start=1):
        try:
            summary = _make(engine, item, progress)
        except UserError as error:  # one bad input must not cost the others
            say(f"left out: {item.source}: {error}")
            failures.append(f"{item.source}: {error}")
            progress.advance(number * steps - progress.done)
            continue
        outputs.append(str(item.target))
        quality = {key: summary[key] for key in summary if key.startswith("psnr")}
        emit("sample", "inference", path=str(item.target), seconds=summary["seconds"], **quality)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(items)} samples could not be made: {'; '.join(failures)}"
        )
    return outputs, {"samples": len(outputs)} | (quality if len(outputs) == 1 else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="inference")


if __name__ == "__main__":
    raise SystemExit(main())
