"""Decide the size, length and frame rate of the generated video."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from video2world_common import per_clip_actions
from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.model_sizes import SIZES
from video2world_trainer.checkpoint.run_config import RunConfig, actions_of
from video2world_trainer.model.presets import Preset

__all__ = ["ASPECTS", "ClipFormat", "choose_clip_format"]

# Height and width in pixels by resolution and aspect ratio, as in upstream
# (cosmos_predict2/datasets/utils.py)
ASPECTS: dict[str, dict[str, tuple[int, int]]] = {
    "720": {
        "1:1": (960, 960),
        "4:3": (704, 960),
        "3:4": (960, 704),
        "16:9": (704, 1280),
        "9:16": (1280, 704),
    },
    "480": {
        "1:1": (480, 480),
        "4:3": (480, 640),
        "3:4": (640, 480),
        "16:9": (432, 768),
        "9:16": (768, 432),
    },
}


@dataclass(frozen=True)
class ClipFormat:
    """Height, width in pixels, number of pixel frames, and frames per second of playback."""

    size: tuple[int, int]
    frames: int
    fps: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        return (1 + (self.frames - 1) // 4, self.size[0] // 16, self.size[1] // 16)

    @property
    def tokens(self) -> int:
        """Tokens of the clip."""
        time, height, width = self.grid
        return time * height * width


def choose_clip_format(
    args: argparse.Namespace,
    preset: Preset,
    run: RunConfig,
    checkpoint: Path,
    given: int,
) -> ClipFormat:
    """Combine the flags with what the checkpoint records of its training, which takes precedence.

    Logs a note about flags that have no effect. Actions ``per_clip`` decide the frame rate too, and
    NVIDIA's weights of that kind, which have no record, the size and length.

    Args:
        args: the command's flags.
        preset: the model size.
        run: the checkpoint's record.
        checkpoint: its path, for messages.
        given: the most conditioning frames of any sample.

    Raises:
        UserError: the clip would have no frames left to generate.
    """
    actions = actions_of(checkpoint, run)
    if actions is not None and actions.kind == "per_clip":
        fps = args.fps or round(actions.statistics.fps) or 1
        published = per_clip_actions.FRAMES
    else:
        fps = args.fps or run.fps or 16
        published = SIZES[preset.size].clip_frames[fps]
    frames = run.num_frames or published
    if args.fps is not None and frames != published:
        say(
            f"note: --fps {fps} changes the playback only: {checkpoint} makes clips of {frames} "
            "frames"
        )
    if given >= frames:
        raise UserError(
            f"--num_conditional_frames {given}: {checkpoint} makes clips of {frames} frames, so "
            "nothing would be left to generate"
        )
    if actions is not None and run.size is None:
        run = replace(run, video_size=per_clip_actions.FRAME_SIZE)
    size = _choose_size(args, preset, run, checkpoint)
    return ClipFormat(size, frames, fps)


def _requested_size(args: argparse.Namespace) -> tuple[int, int]:
    return ASPECTS[args.resolution or "720"][args.aspect_ratio or "16:9"]


def _choose_size(
    args: argparse.Namespace, preset: Preset, run: RunConfig, checkpoint: Path
) -> tuple[int, int]:
    requested = _requested_size(args)
    default = SIZES[preset.size].frame_sizes["720p"] if preset.size == "Tiny" else requested
    size = run.video_size or default
    flags = [f"--{name}" for name in ("resolution", "aspect_ratio") if getattr(args, name)]
    if flags and requested in run.phase_sizes:
        return requested
    if flags and size != requested:
        say(
            f"note: the checkpoint decides the size: {checkpoint} makes {size[1]}x{size[0]} "
            f"(width x height), and {' and '.join(flags)} ha{'ve' if flags[1:] else 's'} no effect"
        )
    return size
