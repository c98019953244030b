"""Render a stage's report as an HTML page with pictures of a few videos."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["render_page"]

MAX_VIDEOS = 8
PICTURES, PICTURE_WIDTH = 4, 240  # pictures per video, and their width in pixels
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("video2world_preprocess"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class _Video:
    name: str
    caption: str = ""
    jpeg: str = ""  # in base64
    error: str = ""


def render_page(
    title: str,
    counts: Mapping[str, Any],
    problems: Mapping[str, Sequence[Any]],
    samples: Sequence[Path],
) -> str:
    """Return the page as HTML.

    Args:
        counts: numbers and texts by name.
        problems: objects with ``kind``, ``item`` and ``reason``, by heading.
        samples: videos of a dataset, of which a few evenly spaced ones are shown with captions.
    """
    shown = min(MAX_VIDEOS, len(samples))
    chosen = dict.fromkeys(samples[len(samples) * i // shown] for i in range(shown))
    return TEMPLATES.get_template("report.html.jinja").render(
        title=title, counts=counts, problems=problems, videos=map(_video, chosen)
    )


def _video(path: Path) -> _Video:
    meta = path.parents[1] / "metas" / f"{path.stem}.txt"
    caption = meta.read_text(encoding="utf-8", errors="replace") if meta.is_file() else ""
    try:
        strip = _strip(path)
    except Exception as error:  # a page without a picture is still a report
        return _Video(path.stem, error=str(error) or repr(error))
    jpeg = io.BytesIO()
    strip.save(jpeg, "jpeg", quality=80)
    return _Video(path.stem, caption, base64.b64encode(jpeg.getvalue()).decode())


def _strip(video: Path) -> Image:
    """Return evenly spaced frames of a video, from the first to the last, next to each other."""
    from PIL import Image

    from video2world_preprocess.video.reader import frames_of, probe

    count = probe(video).frames
    places = [(count - 1) * i // (PICTURES - 1) for i in range(PICTURES)]
    pictures: dict[int, Image.Image] = {}
    wanted = sorted(set(places))
    for number, pixels in zip(wanted, frames_of(video, wanted=wanted.__contains__), strict=False):
        picture = Image.fromarray(pixels)
        height = max(1, round(picture.height * PICTURE_WIDTH / picture.width))
        # resized before the next frame is decoded, to save memory
        pictures[number] = picture.resize((PICTURE_WIDTH, height))
    height = max(picture.height for picture in pictures.values())
    strip = Image.new("RGB", (PICTURES * PICTURE_WIDTH, height))
    for column, place in enumerate(places):
        strip.paste(pictures.get(place, pictures[max(pictures)]), (column * PICTURE_WIDTH, 0))
    return strip
