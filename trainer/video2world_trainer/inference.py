"""Generate videos from a checkpoint, input frames and prompts: the guide's chapter 3."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from video2world_common.events import ProgressReporter, emit, say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from video2world_common.markers import Marker, Provenance
from video2world_common.stage_runner import run_stage
from video2world_trainer import launch
from video2world_trainer.distributed.process_group import World, join, peer_lost
from video2world_trainer.evaluation.clip_meter import ClipMeter
from video2world_trainer.generation.batch_file import NUMBERS, check_number
from video2world_trainer.generation.clip_format import ASPECTS
from video2world_trainer.generation.load import load_pipeline
from video2world_trainer.generation.outputs import compare
from video2world_trainer.generation.pipeline import Pipeline
from video2world_trainer.generation.quality_metrics import lpips
from video2world_trainer.generation.requests import SampleRequest, parse_requests
from video2world_trainer.model.presets import PRESETS

__all__ = ["device_of", "main", "parser"]

NOT_INCLUDED = (  # the guide's flags for components that this project does not have
    "disable_guardrail",
    "offload_guardrail",
    "disable_prompt_refiner",
    "offload_prompt_refiner",
)
WITHOUT_EFFECT = {  # the guide's flags for choices that are fixed here: why
    "offload_text_encoder": "T5 is always released before the network is loaded",
    "downcast_text_encoder": "T5 always runs in bfloat16 on a GPU",
    "use_cuda_graphs": "CUDA graphs are not used",
    "init_lora_weights": "adapters are loaded from the file",
}
BENCHMARK_RUNS = 4  # the first is a warm-up and not timed


class _OutOfMemory(UserError):
    """One rank's GPU is full, which the main rank does not know of."""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the guide's flags and ours."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.inference",
        description=__doc__,
        allow_abbrev=False,
        epilog="Written next to every video: .png (contact sheet), .json (settings, timings, "
        "metrics), .txt (prompt). There is no guardrail and no prompt refiner; the guide's flags "
        "for them are accepted and have no effect. Neither have "
        + ", ".join(f"--{name} ({why})" for name, why in WITHOUT_EFFECT.items())
        + ".",
    )
    add = flags.add_argument
    add("--model_size", choices=sorted(PRESETS), default="2B")
    add(
        "--resolution",
        choices=("480", "720"),
        help="for weights that do not record their size, such as the published ones (default: 720)",
    )
    add(
        "--fps",
        type=int,
        choices=(10, 16),
        help="frames per second of the video; also selects the published weights (default: as the "
        "checkpoint was trained, else 16)",
    )
    add(
        "--dit_path",
        type=Path,
        help="a .pt or .safetensors file, a diffusers folder, or a run's checkpoints folder, of "
        "which --checkpoint is used (default: the published weights)",
    )
    add(
        "--checkpoint",
        choices=("latest", "best"),
        default="latest",
        help="which checkpoint of a run: the latest, or that with the least validation loss "
        "(default: %(default)s)",
    )
    add("--load_ema", action="store_true", help="use the checkpoint's EMA weights")
    add("--use_lora", action="store_true", help="refuse a checkpoint without LoRA adapters")
    add(
        "--lora_alpha",
        type=float,
        help="alpha that the adapters were trained with, if the checkpoint does not record it",
    )
    add("--lora_rank", type=int, help="rank of the adapters; must agree with the file")
    add(
        "--lora_target_modules",
        help="suffixes of the adapted layers' names; must agree with the file",
    )
    add("--prompt", help="default: the input's caption, in ../metas or next to it")
    add(
        "--negative_prompt",
        help="text that guidance steers away from (default: our own description of low quality, "
        "not upstream's; for Tiny, the all-zero embedding of dropped captions)",
    )
    add("--input_path", "--input_video", type=Path, help="image or video to start from")
    add(
        "--action_path",
        type=Path,
        help="actions that an action-conditioned checkpoint follows from the first frame on, clip "
        "after clip: .safetensors, .csv or .json (default: those of the data set's window, as many "
        "as a clip takes)",
    )
    add(
        "--input_annotation",
        type=Path,
        help="like --action_path, but as many as a clip takes, unless --autoregressive is set",
    )
    add(
        "--autoregressive",
        action="store_true",
        help="follow all actions of the annotation or window, clip after clip",
    )
    add("--chunk_size", type=int, help=argparse.SUPPRESS)  # the checkpoint decides it
    add(
        "--frames",
        choices=("first", "last"),
        default="first",
        help="condition on the video's first frames, to compare with those that follow, or on its "
        "last, to continue it as upstream does (default: first)",
    )
    add("--num_conditional_frames", "--num_conditional_frmaes", type=int, choices=(1, 5), default=1)
    add(
        "--aspect_ratio",
        choices=sorted(ASPECTS["720"]),
        help="like --resolution, for weights that do not record their size (default: 16:9)",
    )
    add("--geometry", choices=("crop", "stretch"), help="default: as the checkpoint was trained")
    add(
        "--batch_input_json",
        type=Path,
        help='[{"input_video", "prompt", "output_video"}, ...], or one object per line; an entry '
        f"may set its own negative_prompt, {', '.join(NUMBERS)}",
    )
    add(
        "--guidance",
        type=float,
        default=7.0,
        help="0 uses the prompt alone, at half the cost (default: 7)",
    )
    add("--num_steps", "--steps", type=int, default=35, help="solver steps (default: 35)")
    add("--seed", type=int, default=0)
    add("--save_path", type=Path, help="default: output/generated_video.mp4")
    add("--vae_path", type=Path, help="folder of the VAE (default: next to the published weights)")
    add("--text_encoder_path", help="folder or Hub id of the T5 encoder")
    add(
        "--num_gpus",
        type=int,
        default=1,
        help="GPUs of this machine that share each sample (default: 1)",
    )
    add("--natten", action="store_true", help="sparse attention, for the -natten checkpoints")
    add(
        "--approximate",
        action="store_true",
        help="extrapolate most network evaluations from earlier ones: faster, with another result",
    )
    add(
        "--offload",
        action="store_true",
        help="keep the network's weights in host memory, for small GPUs (on by default if the GPU "
        "is too small otherwise)",
    )
    add(
        "--latent_metrics",
        type=Path,
        metavar="FOLDER",
        help="also compare with the ground truth in the VAE's latents, and keep the figures of "
        "repeating the input and of the VAE's round trip in this folder",
    )
    add(
        "--lpips_weights",
        type=Path,
        help="torchvision's AlexNet for LPIPS (default: the file that torch.hub keeps)",
    )
    add("--force", action="store_true", help="run 14B without a GPU")
    add(
        "--benchmark",
        action="store_true",
        help="generate each sample 4 times and report the mean of the last 3",
    )
    add("--device", help="cuda, cuda:N or cpu (default: a GPU if there is one)")
    for name in (*NOT_INCLUDED, *WITHOUT_EFFECT):
        add(f"--{name}", nargs="?", const=True, default=False, help=argparse.SUPPRESS)
    return flags


def _check_flags(args: argparse.Namespace) -> None:
    if args.num_gpus < 1:
        raise UserError(f"--num_gpus {args.num_gpus}: at least 1")
    for name in NUMBERS:
        check_number(name, getattr(args, name), f"--{name}")
    if args.lora_alpha is not None and not 0 < args.lora_alpha < math.inf:
        raise UserError(f"--lora_alpha {args.lora_alpha}: above 0")


def _note_flags_without_effect(
    args: argparse.Namespace, requests: Sequence[SampleRequest], world: World
) -> None:
    if any(getattr(args, name) for name in NOT_INCLUDED):
        say("note: there is no guardrail and no prompt refiner; flags for them have no effect")
    for name, why in WITHOUT_EFFECT.items():
        if getattr(args, name):
            say(f"note: --{name} has no effect: {why}")
    if args.force and not (args.model_size == "14B" and world.device.type == "cpu"):
        say("note: --force has no effect: it is for 14B without a GPU")
    if any(one.negative_prompt is not None and not one.guidance for one in requests):
        say("note: a negative prompt has no effect if guidance is 0")
    if args.approximate:
        say("note: --approximate: most network evaluations are extrapolated, not computed")


def device_of(name: str | None) -> torch.device:
    """Return the device of ``--device``; raise UserError if it cannot be used."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); try cpu") from None


def _generate_all(args: argparse.Namespace, world: World) -> tuple[Provenance, Mapping[str, Any]]:
    """Generate all samples on every rank; only the main rank writes files and log lines.

    Raises:
        UserError: a flag is invalid, or some samples failed, after all others are written.
    """
    _check_flags(args)
    requests = parse_requests(args)
    _note_flags_without_effect(args, requests, world)
    try:
        pipeline = _measuring(load_pipeline(args, requests, world), args)
        offloaded = "; weights in host memory" if pipeline.offload else ""
        shared = f"; {world.size} ranks share each sample" if world.size > 1 else ""
        say(f"attention: {pipeline.attention}{offloaded}{shared}")
        runs = BENCHMARK_RUNS if args.benchmark else 1
        ends = list(itertools.accumulate(runs * pipeline.steps(one) for one in requests))
        progress = ProgressReporter("inference", ends[-1], "steps")
        outputs: list[str] = []
        failures: list[str] = []
        quality: dict[str, Any] = {}
        for end, request in zip(ends, requests, strict=True):
            target = str(request.target)
            try:
                summaries = [pipeline.generate(request, progress.advance) for _ in range(runs)]
            except UserError as error:  # must not fail the other samples
                say(f"left out: {request.source}: {error}")
                failures.append(f"{request.source}: {error}")
                progress.advance(end - progress.done)
                continue
            outputs.append(target)
            if (summary := summaries[-1]) is not None:
                quality = _quality(summary["metrics"])
                emit("sample", "inference", path=target, seconds=_seconds(summaries), **quality)
    except torch.OutOfMemoryError as error:
        raise _OutOfMemory(_out_of_memory(args, str(error))) from None
    if failures:
        raise UserError(f"{len(failures)} of {len(requests)} samples failed: {'; '.join(failures)}")
    facts = {"samples": len(outputs)} | (quality if len(outputs) == 1 else {})
    return Provenance().left(outputs if world.is_main_rank else ()), facts


def _measuring(pipeline: Pipeline, args: argparse.Namespace) -> Pipeline:
    """Return ``pipeline`` with the metrics that the flags ask for."""
    if pipeline.encoders is None:  # not the main rank, which alone measures
        return pipeline
    if args.latent_metrics is not None:
        meter = ClipMeter(pipeline.encoders.vae, args.latent_metrics, args.lpips_weights)
        return replace(pipeline, measure=meter.measure)
    distance = partial(lpips, weights=args.lpips_weights)
    return replace(pipeline, measure=partial(compare, distance_of=distance))


def _quality(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the event fields about a sample's quality; none without ground truth."""
    if metrics is None:
        return {}
    return {
        "psnr": metrics["psnr"],
        "psnr_frames": metrics["frames"],
        "psnr_of_repeating_the_input": metrics["repeating_the_input"]["psnr"],
    }


def _seconds(summaries: Sequence[Mapping[str, Any] | None]) -> float:
    """Return the seconds of a single run, or the mean of several without the first, a warm-up."""
    timed = [float(one["seconds"]) for one in summaries if one is not None]
    return round(statistics.mean(timed[1:] or timed), 2)


def _out_of_memory(args: argparse.Namespace, reason: str) -> str:
    remedy = "--num_gpus with more GPUs (inference.gpus), --resolution 480 or --fps 10"
    if not args.offload:
        remedy = f"--offload (inference.offload), {remedy}"
    return f"the GPU's memory is too small ({reason.splitlines()[0]}): try {remedy}"


def _finished_before(stage: str) -> bool:
    inputs_hash = os.environ.get("V2W_INPUTS_HASH")
    name = os.environ.get("V2W_STAGE", stage)
    return bool(inputs_hash and Marker(name, inputs_hash).read() is not None)


def _report(problem: str) -> int:
    """Report a user error, and return its exit code."""
    print(f"error: {problem}", file=sys.stderr, flush=True)
    emit("failed", "inference", reason="UserError", message=problem)
    return EXIT_USER_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(argv)
    ranked = "TORCHELASTIC_RUN_ID" in os.environ
    if args.num_gpus > 1 and not ranked and not _finished_before("inference"):
        gpus = 0 if args.device == "cpu" else torch.cuda.device_count()
        if gpus and args.num_gpus > gpus:
            return _report(
                f"--num_gpus {args.num_gpus}: there are {gpus} GPUs here; lower it "
                "(inference.gpus), or provide more"
            )
        flags = ["--standalone", f"--nproc_per_node={args.num_gpus}", "-m"]
        return launch.main([*flags, "video2world_trainer.inference", *argv])

    def work() -> tuple[Provenance, Mapping[str, Any]]:
        world = (
            join(on_cpu=args.device == "cpu") if ranked else World(device=device_of(args.device))
        )
        if ranked and args.device not in (None, "cpu", "cuda"):
            say(f"note: --device {args.device} has no effect with --num_gpus: each rank has a GPU")
        try:
            return _generate_all(args, world)
        finally:
            world.leave()

    if ranked and os.environ["RANK"] != "0":
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                work()
        except _OutOfMemory as error:
            return _report(f"rank {os.environ['RANK']}: {error}")
        except UserError:  # the main rank reports it
            return EXIT_USER_ERROR
        except RuntimeError as error:
            if not peer_lost(error):
                raise
            return EXIT_FAILURE  # the rank that ended before has reported why
        return 0
    return run_stage(work, stage="inference")


if __name__ == "__main__":
    raise SystemExit(main())
