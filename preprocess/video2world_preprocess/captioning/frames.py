"""Choose frames of a video and encode them for a request."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from video2world_common.exit_codes import UserError
from video2world_preprocess.video.decode import VideoInfo
from video2world_preprocess.video.reader import frames_of

__all__ = ["LONGEST_SIDE", "Frame", "chosen_frames", "read_pictures", "scaled_size"]

LONGEST_SIDE = 768  # pixels; vision models divide larger pictures into more tokens
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Frame:
    """A frame as a ``data:`` URL of a JPEG, and its time in seconds."""

    seconds: float
    url: str


def chosen_frames(info: VideoInfo, per_second: float, most: int) -> list[int]:
    """Return the numbers of the frames to show: evenly spaced, with the first and the last.

    Args:
        per_second: frames per second of video, approximately.
        most: maximum number of frames.
    """
    last = info.frames - 1
    count = min(max(2, round(float(last / info.fps) * per_second) + 1), most, info.frames)
    return [round(last * i / (count - 1)) for i in range(count)] if count > 1 else [0]


def scaled_size(width: int, height: int) -> tuple[int, int]:
    """Return the size whose longest side is at most ``LONGEST_SIDE``."""
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def read_pictures(video: Path, info: VideoInfo, numbers: list[int]) -> list[Frame]:
    """Decode the frames ``numbers`` of ``video``.

    Raises:
        UserError: the video is unusable, or has no such frame.
    """
    found = []
    pixels_of = frames_of(video, wanted=frozenset(numbers).__contains__)
    for number, pixels in zip(numbers, pixels_of, strict=False):
        picture = Image.fromarray(pixels)
        picture = picture.resize(scaled_size(*picture.size), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        picture.save(jpeg, "jpeg", quality=JPEG_QUALITY)
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        found.append(Frame(float(number / info.fps), url))
    if len(found) < len(numbers):
        raise UserError(f"{video} ends before its header says: cut it again")
    return found
