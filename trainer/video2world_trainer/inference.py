"""The inference command, the guide's chapter 3: checkpoint, first frame and prompt to a video."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from video2world_common.events import Progress, emit, say
from video2world_common.exit_codes import EXIT_USER_ERROR, UserError
from video2world_common.markers import Marker, Provenance
from video2world_common.stage import run_stage
from video2world_trainer import launch
from video2world_trainer.distributed.process_group import World, join
from video2world_trainer.generation.batch_file import FLAGS, check_flag
from video2world_trainer.generation.pipeline import ASPECTS, load
from video2world_trainer.generation.requests import Item, items_of
from video2world_trainer.model.presets import PRESETS

__all__ = ["main", "parser"]

ABSENT = (  # the guide's flags for parts that this project does not ship
    "disable_guardrail",
    "offload_guardrail",
    "disable_prompt_refiner",
    "offload_prompt_refiner",
)
SETTLED = {  # the guide's flags that choose what is chosen here anyway
    "offload_text_encoder": "T5 is always released before the network is loaded",
    "downcast_text_encoder": "T5 always runs in bfloat16 on a GPU",
    "use_cuda_graphs": "CUDA graphs are not used",
    "init_lora_weights": "adapters are as the file has them",
}
BENCHMARK_RUNS = 4  # the first of them, which warms up, is not timed


def parser() -> argparse.ArgumentParser:
    """The guide's flags and ours."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.inference",
        description=__doc__,
        allow_abbrev=False,
        epilog="Beside every video: .png (contact sheet), .json (settings, timings, metrics), .txt "
        "(prompt). There is no guardrail and no prompt refiner in this build; the guide's flags "
        "about them are accepted and have no effect, as are "
        + ", ".join(f"--{name} ({why})" for name, why in SETTLED.items())
        + ".",
    )
    add = flags.add_argument
    add("--model_size", choices=sorted(PRESETS), default="2B")
    add(
        "--resolution",
        choices=("480", "720"),
        help="of published weights and others that do not say what they were trained for (720)",
    )
    add(
        "--fps",
        type=int,
        choices=(10, 16),
        help="frames a second of the video; of published weights also which (default: as the "
        "checkpoint was trained, else 16)",
    )
    add(
        "--dit_path",
        type=Path,
        help="a .pt or .safetensors file, a diffusers folder, or a run's "
        "checkpoints folder (the latest is taken); default: the published weights",
    )
    add("--load_ema", action="store_true", help="use the averaged weights of the checkpoint")
    add("--use_lora", action="store_true", help="refuse a checkpoint without LoRA adapters")
    add(
        "--lora_alpha",
        type=float,
        help="alpha that the checkpoint's adapters were trained with, if it does not say it",
    )
    add("--lora_rank", type=int, help="their rank; the file says it, and must agree")
    add("--lora_target_modules", help="ends of the adapted layers' names; the file must agree")
    add("--prompt", help="default: the input's caption, in ../metas or beside it")
    add(
        "--negative_prompt",
        help="what guidance leads away from (default: a paragraph of our own on low quality, not "
        "upstream's; for Tiny the empty embedding that its training dropped texts to)",
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
    add(
        "--aspect_ratio",
        choices=sorted(ASPECTS["720"]),
        help="as --resolution: a checkpoint that says its picture size decides it (16:9)",
    )
    add("--geometry", choices=("crop", "stretch"), help="default: as the checkpoint was trained")
    add(
        "--batch_input_json",
        type=Path,
        help='[{"input_video", "prompt", "output_video"}, ...], or one object a line; an entry may '
        f"have its own negative_prompt, {', '.join(FLAGS)}",
    )
    add("--guidance", type=float, default=7.0, help="0: the prompt alone, half the work (7)")
    add("--num_steps", "--steps", type=int, default=35, help="solver steps (35)")
    add("--seed", type=int, default=0)
    add("--save_path", type=Path, help="default: output/generated_video.mp4")
    add("--vae_path", type=Path, help="folder of the VAE; default: beside the published weights")
    add("--text_encoder_path", help="folder or Hub id of the T5 encoder")
    add("--num_gpus", type=int, default=1, help="GPUs of this machine that share each sample")
    add("--natten", action="store_true", help="sparse attention, for the -natten checkpoints")
    add(
        "--approximate",
        action="store_true",
        help="extrapolate most network evaluations from earlier ones: quicker, not the same video",
    )
    add(
        "--offload",
        action="store_true",
        help="keep the network's weights in host memory, for small GPUs (on by itself where the "
        "GPU is too small without)",
    )
    add("--force", action="store_true", help="run 14B without a GPU")
    add("--benchmark", action="store_true", help="generate 4 times, report the mean of the last 3")
    add("--device", help="cuda, cuda:N or cpu (default: a GPU if there is one)")
    for name in (*ABSENT, *SETTLED):
        add(f"--{name}", nargs="?", const=True, default=False, help=argparse.SUPPRESS)
    return flags


def _check(args: argparse.Namespace) -> None:
    if args.num_gpus < 1:
        raise UserError(f"--num_gpus {args.num_gpus}: at least 1")
    for name in FLAGS:
        check_flag(name, getattr(args, name), f"--{name}")
    if args.lora_alpha is not None and not 0 < args.lora_alpha < math.inf:
        raise UserError(f"--lora_alpha {args.lora_alpha}: above 0")


def _tell_of_flags(args: argparse.Namespace, items: Sequence[Item], world: World) -> None:
    """Name the flags that have no effect."""
    if any(getattr(args, name) for name in ABSENT):
        say("note: this build has no guardrail and no prompt refiner; flags about them do nothing")
    for name, why in SETTLED.items():
        if getattr(args, name):
            say(f"note: --{name} has no effect: {why}")
    if args.force and not (args.model_size == "14B" and world.device.type == "cpu"):
        say("note: --force has no effect: it is for 14B without a GPU")
    if any(item.negative_prompt is not None and not item.guidance for item in items):
        say("note: a negative prompt has no effect where guidance is 0")
    if args.approximate:
        say("note: --approximate: most network evaluations are extrapolated, not computed")


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); try cpu") from None


def _work(args: argparse.Namespace, world: World) -> tuple[Provenance, dict[str, Any]]:
    """What every rank does; only the leader's words and results count."""
    _check(args)
    items = items_of(args)
    _tell_of_flags(args, items, world)
    try:
        engine = load(args, items, world)
        say(f"attention: {engine.attention}" + ("; weights streamed" if engine.offload else ""))
        runs = BENCHMARK_RUNS if args.benchmark else 1
        ends = list(itertools.accumulate(runs * (item.num_steps + 1) for item in items))
        progress = Progress("inference", ends[-1], "steps")
        outputs: list[str] = []
        failures: list[str] = []
        quality: dict[str, Any] = {}
        for end, item in zip(ends, items, strict=True):
            try:
                made = [engine.make(item, progress.advance) for _ in range(runs)]
            except UserError as error:  # one bad input must not cost the others
                say(f"left out: {item.source}: {error}")
                failures.append(f"{item.source}: {error}")
                progress.advance(end - progress.done)
                continue
            outputs.append(str(item.target))
            if (facts := made[-1]) is not None:
                quality = {key: facts[key] for key in facts if key.startswith("psnr")}
                emit(
                    "sample", "inference", path=str(item.target), seconds=_seconds(made), **quality
                )
    except torch.OutOfMemoryError as error:
        raise UserError(_larger(args, str(error))) from None
    if failures:
        raise UserError(
            f"{len(failures)} of {len(items)} samples could not be made: {'; '.join(failures)}"
        )
    summary = {"samples": len(outputs)} | (quality if len(outputs) == 1 else {})
    return Provenance().left(outputs if world.leads else ()), summary  # the leader writes them


def _seconds(made: Sequence[dict[str, Any] | None]) -> float:
    """Of one run; the mean of all but the first, which warms up, where there are several."""
    timed = [one["seconds"] for one in made if one is not None]
    return round(statistics.mean(timed[1:] or timed), 2)


def _larger(args: argparse.Namespace, reason: str) -> str:
    remedy = "--num_gpus with more GPUs, --resolution 480 or --fps 10"
    if not args.offload:
        remedy = f"--offload, {remedy}"
    return f"the GPU's memory is too small ({reason.splitlines()[0]}): try {remedy}"


def _finished_before(stage: str) -> bool:
    inputs_hash = os.environ.get("V2W_INPUTS_HASH")
    name = os.environ.get("V2W_STAGE", stage)
    return bool(inputs_hash and Marker(name, inputs_hash).read() is not None)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(argv)
    ranked = "TORCHELASTIC_RUN_ID" in os.environ
    if args.num_gpus > 1 and not ranked and not _finished_before("inference"):
        gpus = 0 if args.device == "cpu" else torch.cuda.device_count()
        if gpus and args.num_gpus > gpus:
            print(f"error: --num_gpus {args.num_gpus}: this machine has {gpus}", file=sys.stderr)
            return EXIT_USER_ERROR
        flags = ["--standalone", f"--nproc_per_node={args.num_gpus}", "-m"]
        return launch.main([*flags, "video2world_trainer.inference", *argv])

    def work() -> tuple[Provenance, dict[str, Any]]:
        world = join(on_cpu=args.device == "cpu") if ranked else World(device=_device(args.device))
        if ranked and args.device not in (None, "cpu", "cuda"):
            say(
                f"note: --device {args.device} has no effect with --num_gpus: each rank has its GPU"
            )
        try:
            return _work(args, world)
        finally:
            world.leave()

    if ranked and os.environ["RANK"] != "0":
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                work()
            except UserError:  # the leader says it
                return EXIT_USER_ERROR
        return 0
    return run_stage(work, stage="inference")


if __name__ == "__main__":
    raise SystemExit(main())
