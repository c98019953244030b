"""Read the conditioning frames of a sample from an image or a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_preprocess.video.frame_survey import survey
from video2world_preprocess.video.reader import frames_of
from video2world_preprocess.video.resize import Geometry, fit

__all__ = ["IMAGE_SUFFIXES", "Conditioning", "Frames", "read_conditioning"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
Frames = Literal["first", "last"]


@dataclass(frozen=True)
class Conditioning:
    """Conditioning frames, and the video that they were taken from.

    ``frames`` are uint8 [1 or 5, H, W, 3], resized to the model's size. ``ground_truth`` is uint8
    [T, H, W, 3]: the input including the conditioning frames, at most a clip long; None if the
    input has no further frames.
    """

    frames: np.ndarray
    ground_truth: np.ndarray | None


def read_conditioning(
    path: Path,
    *,
    count: int,
    clip_frames: int,
    size: tuple[int, int],
    geometry: Geometry,
    frames: Frames = "first",
) -> Conditioning:
    """Read ``count`` (1 or 5) conditioning frames from the image or video ``path``.

    Args:
        path: an image (one frame only) or a video.
        count: number of conditioning pixel frames.
        clip_frames: pixel frames of the generated clip, for the ground truth.
        size: height and width in pixels that the model works at.
        geometry: how frames are resized to ``size``; as in training.
        frames: take the video's ``first`` frames, to compare with those that follow, or its
            ``last`` ones, to continue the video as upstream does.

    Raises:
        UserError: the file is missing, cannot be read, or has too few frames.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        if count != 1:
            raise UserError(
                f"{path} is an image, which gives one frame: use --num_conditional_frames 1, or a "
                "video"
            )
        return Conditioning(fit(_read_image(path), size, geometry), None)
    start, stop = 0, clip_frames
    if frames == "last":
        stop = survey(path).info.frames
        start = max(0, stop - count)
    read = [fit(one[None], size, geometry)[0] for one in frames_of(path, start, stop)]
    if len(read) < count:
        raise UserError(f"{path} has {len(read)} frames, and {count} are needed as condition")
    video = np.stack(read)
    has_more = frames == "first" and len(video) > count
    return Conditioning(video[:count], video if has_more else None)


def _read_image(path: Path) -> np.ndarray:
    """Read an image like ffmpeg: turned upright by its Exif data, in RGB, without alpha."""
    try:
        with Image.open(on_volume(path)) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # Pillow would clip its values to 255
                deep = np.asarray(image, np.uint16)
                image = Image.fromarray(np.round(deep / 257).astype(np.uint8))
            return np.array(image.convert("RGB"))[None]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image file") from None
    except UserError:
        raise
    except Exception as error:  # damaged images and Exif data raise errors of many types
        raise UserError(f"{path}: the image cannot be read ({error})") from None
