"""What a stage did with each item: in the log, in ``report.json``, and on a page to look at."""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video2world_common.events import emit, say
from video2world_common.files import write_json, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Problem", "Report", "printable", "write_report"]

SHOWN = 20  # problems printed one by one; a large task's log stays readable, the file has all


def printable(text: str) -> str:
    """Return ``text`` with what a log cannot show in one line of UTF-8 written as escapes."""
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text
    )


@dataclass(frozen=True)
class Problem:
    """One thing that was left out: its ``kind`` (episode, window, ...), its name, and why."""

    kind: str
    item: str
    reason: str


@dataclass
class Report:
    """Counts of a stage, with every dropped item and every remark worth knowing."""

    stage: str
    counts: dict[str, Any] = field(default_factory=dict)
    dropped: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def drop(self, kind: str, item: str, reason: str) -> None:
        """Count ``item`` as left out and name it in the log."""
        self.dropped.append(Problem(kind, printable(item), printable(reason)))
        item, reason = self.dropped[-1].item, self.dropped[-1].reason
        if len(self.dropped) <= SHOWN:
            say(f"{self.stage}: dropped {kind} {item}: {reason}")
        elif len(self.dropped) == SHOWN + 1:
            say(f"{self.stage}: more items are dropped; see report.json for all of them")

    def note(self, kind: str, item: str, reason: str) -> None:
        """Remember something done to ``item`` that its owner may want to know."""
        self.notes.append(Problem(kind, printable(item), printable(reason)))

    @property
    def dropped_by_kind(self) -> dict[str, int]:
        """How many items of each kind were left out."""
        kinds = sorted({problem.kind for problem in self.dropped})
        return {kind: sum(p.kind == kind for p in self.dropped) for kind in kinds}

    def summary(self) -> dict[str, Any]:
        """The counts, flat enough for an event line."""
        return {**self.counts, "dropped": self.dropped_by_kind, "notes": len(self.notes)}

    def as_json(self) -> dict[str, Any]:
        """Everything, for ``report.json``."""
        return {
            "counts": self.counts,
            "dropped": [vars(problem) for problem in self.dropped],
            "dropped_by_kind": self.dropped_by_kind,
            "notes": [vars(problem) for problem in self.notes],
        }

    def show(self) -> None:
        """Print the counts for people, and as one event line."""
        for name, value in self.counts.items():
            say(f"  {name.replace('_', ' ')}: {value}")
        for kind, count in self.dropped_by_kind.items():
            say(f"  dropped ({kind}): {count}")
        for problem in self.notes[:SHOWN]:
            say(f"  note: {problem.kind} {problem.item}: {problem.reason}")
        emit("report", self.stage, **self.summary())


SAMPLES, PICTURES, PICTURE_WIDTH = 8, 4, 240  # videos on a page, pictures of each, pixels
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 66em; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ padding: .15em .8em .15em 0; text-align: left }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums }}
figure {{ margin: 1em 0 }} img {{ width: 100%; border-radius: 4px }} p.caption {{ color: #555 }}
</style>
<h1>{title}</h1>
<table>{counts}</table>
{problems}
{samples}
</html>
"""


def write_report(folder: Path, report: Report, samples: Sequence[Path] = (), **more: Any) -> None:
    """Write ``report.json`` (with ``more``) and ``report.html`` for the report's stage.

    The files of the dataset stage are called so, those of another stage ``report-<stage>``. The
    page shows a few of the videos ``samples`` with their captions, evenly chosen.
    """
    stem = "report" if report.stage == "dataset" else f"report-{report.stage}"
    write_json(folder / f"{stem}.json", {"stage": report.stage, **more, **report.as_json()})
    shown = min(SAMPLES, len(samples))
    chosen = [samples[len(samples) * i // shown] for i in range(shown)]
    counts = "".join(
        f'<tr><th>{html.escape(name.replace("_", " "))}<td class="n">{_shown(value)}'
        for name, value in report.counts.items()
    )
    page = PAGE.format(
        title=html.escape(f"{folder.name}: {report.stage}"),
        counts=counts,
        problems=_table("Left out", report.dropped) + _table("Remarks", report.notes),
        samples="".join(map(_figure, dict.fromkeys(chosen))),
    )
    write_text(folder / f"{stem}.html", page)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else html.escape(str(value))


def _table(title: str, problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(p.kind)}<td>{html.escape(p.item)}<td>{html.escape(p.reason)}"
        for p in problems
    )
    return f"<h2>{title} ({len(problems)})</h2><table>{rows}</table>"


def _figure(video: Path) -> str:
    """A strip of pictures of a window, from its first frame to its last."""
    meta = video.parents[1] / "metas" / f"{video.stem}.txt"
    caption = meta.read_text(encoding="utf-8", errors="replace") if meta.is_file() else ""
    try:
        strip = _strip(video)
    except Exception as error:  # a page without a picture is still a report
        return f"<p>{html.escape(video.stem)}: {html.escape(str(error) or repr(error))}"
    jpeg = io.BytesIO()
    strip.save(jpeg, "jpeg", quality=80)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>'
        f"<code>{html.escape(video.stem)}</code>"
        f'<p class="caption">{html.escape(caption)}</figcaption></figure>'
    )


def _strip(video: Path) -> Image:
    """Pictures of a video side by side; each is made small before the next frame is decoded."""
    from PIL import Image

    from video2world_preprocess.video.reader import frames_of, probe

    count = probe(video).frames
    places = [(count - 1) * i // (PICTURES - 1) for i in range(PICTURES)]
    pictures: dict[int, Image.Image] = {}
    wanted = sorted(set(places))
    for number, pixels in zip(wanted, frames_of(video, wanted=wanted.__contains__), strict=False):
        picture = Image.fromarray(pixels)
        height = max(1, round(picture.height * PICTURE_WIDTH / picture.width))
        pictures[number] = picture.resize((PICTURE_WIDTH, height))
    height = max(picture.height for picture in pictures.values())
    strip = Image.new("RGB", (PICTURES * PICTURE_WIDTH, height))
    for column, place in enumerate(places):
        strip.paste(pictures.get(place, pictures[max(pictures)]), (column * PICTURE_WIDTH, 0))
    return strip
