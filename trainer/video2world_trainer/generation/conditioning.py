"""What a sample starts from: the frames of an image or a video that the model is given."""

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

__all__ = ["IMAGE_SUFFIXES", "Condition", "Frames", "read_condition"]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
Frames = Literal["first", "last"]


@dataclass(frozen=True)
class Condition:
    """``given``: the conditioning frames, uint8 [1 or 5, H, W, 3], fitted to the model's size.

    ``truth``: the input's own continuation including the given frames, uint8 [T, H, W, 3], where
    the input has one: a video that goes on after its first frames, at most a clip long.
    """

    given: np.ndarray
    truth: np.ndarray | None

    def clip(self, frames: int) -> np.ndarray:
        """The given frames, held to the clip's length [frames, H, W, 3] (the VAE is causal)."""
        held = np.repeat(self.given[-1:], frames - len(self.given), axis=0)
        return np.concatenate([self.given, held])


def read_condition(
    path: Path,
    *,
    count: int,
    clip_frames: int,
    size: tuple[int, int],
    geometry: Geometry,
    frames: Frames = "first",
) -> Condition:
    """Read ``count`` (1 or 5) conditioning frames from the image or video ``path``.

    Args:
        path: an image (one frame only) or a video.
        count: number of conditioning pixel frames.
        clip_frames: frames of the clip to be generated, for the ground truth.
        size: height and width the model works at.
        geometry: how frames are brought to ``size``; as in training.
        frames: condition on the video's ``first`` frames (to compare with what follows) or on its
            ``last`` ones (to continue it, as upstream does).

    Raises:
        UserError: no such file, not readable, or too few frames.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        if count != 1:
            raise UserError(
                f"{path} is an image, which gives one frame: use --num_conditional_frames 1, or a "
                "video"
            )
        return Condition(fit(_read_image(path), size, geometry), None)
    start, stop = 0, clip_frames
    if frames == "last":
        stop = survey(path).info.frames
        start = max(0, stop - count)
    read = [fit(one[None], size, geometry)[0] for one in frames_of(path, start, stop)]
    if len(read) < count:
        raise UserError(f"{path} has {len(read)} frames, {count} are needed as condition")
    given = np.stack(read)
    goes_on = frames == "first" and len(given) > count
    return Condition(given[:count], given if goes_on else None)


def _read_image(path: Path) -> np.ndarray:
    """Read a picture as it is shown: upright, in RGB, without its alpha channel, as ffmpeg does."""
    try:
        with Image.open(on_volume(path)) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # Pillow would clip its values to 255
                deep = np.asarray(image, np.uint16)
                image = Image.fromarray(np.round(deep / 257).astype(np.uint8))
            return np.array(image.convert("RGB"))[None]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image file") from None
    except UserError:
        raise
    except Exception as error:  # damaged pictures and Exif data raise errors of many types
        raise UserError(f"{path}: the image cannot be read ({error})") from None
