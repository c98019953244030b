"""Cut the episodes of one file of a LeRobotDataset, which is decoded once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from video2world_common.exit_codes import UserError
from video2world_preprocess.dataset.clips import Outline, Publication, Tally, record_failure
from video2world_preprocess.dataset.lerobot_frames import Placement, Span, spans_of
from video2world_preprocess.dataset.lerobot_images import ImageRows, image_spans
from video2world_preprocess.dataset.parquet_columns import check_content
from video2world_preprocess.dataset.source import CutSettings, Source
from video2world_preprocess.item_faults import reason_for
from video2world_preprocess.video.decode import opened
from video2world_preprocess.video.frame_survey import Survey, survey
from video2world_preprocess.video.one_pass import (
    Damaged,
    FrameSource,
    Timeline,
    VideoFrames,
    cut_once,
    timeline,
)

__all__ = ["Job", "process_job"]

DEFAULT_FPS = Fraction(30)


@dataclass(frozen=True)
class Job:
    """Episodes to cut from the file ``path``.

    Attributes:
        camera: the column of the pictures; empty for a video.
        fps: frames per second, as the metadata say.
        placements: all episodes of the file.
        sources: the episodes to cut, by number.
        root: the dataset's folder, if it has separate picture files.
    """

    path: Path
    camera: str
    fps: Fraction | None
    placements: tuple[Placement, ...]
    sources: Mapping[int, Source]
    root: Path | None = None


class _File:
    """The frames of a job's file, and which of them belong to which episode."""

    def __init__(self, job: Job) -> None:
        check_content(job.path)
        self.job, self.remarks = job, list[str]()
        self._stack = contextlib.ExitStack()
        self._frames: FrameSource | None = None
        self._timeline: Timeline | None = None
        self._survey: Survey | None = None
        self.spans: Mapping[int, Span]
        if job.camera:
            self.fps = job.fps or DEFAULT_FPS
            self.count, self.spans = image_spans(job.path, job.placements, self.fps)
        else:
            known = self._timeline = timeline(job.path)
            self.fps, self.count = known.info.fps, known.info.frames
            resampled = any(source.actions for source in job.sources.values())
            self.spans = spans_of(job.placements, self.count, self.fps, other_rate=resampled)
            if job.fps and abs(job.fps - self.fps) > self.fps / 100:
                self.remarks.append(
                    f"meta/info.json says {float(job.fps):g} frames/s, but the video has "
                    f"{float(self.fps):g}, which are used"
                )
            if known.times:
                self.remarks.append(
                    f"its frame rate varies; {float(self.fps):g} frames/s are assumed"
                )

    @property
    def frames(self) -> FrameSource:
        """The frames from the current position on."""
        if self._frames is None:
            job = self.job
            if self._timeline is None:
                self._frames = ImageRows(job.path, job.camera, job.root, self.fps)
            else:
                container, stream = self._stack.enter_context(opened(job.path))
                self._frames = VideoFrames(self._timeline, container, stream)
        return self._frames

    def restart(self) -> None:
        """Forget the position, after an error."""
        self._stack.close()
        self._frames = None

    def survey(self) -> Survey:
        """Return what is damaged in the video, found out once."""
        self._survey = self._survey or survey(self.job.path)
        return self._survey


@contextlib.contextmanager
def _file(job: Job) -> Iterator[_File]:
    file = _File(job)
    try:
        yield file
    finally:
        file.restart()


def process_job(folder: Path, settings: CutSettings, job: Job) -> Tally:
    """Publish the clips of all episodes of ``job``; put any error of an episode on its record.

    Raises:
        OSError: the volume failed, for example because it is full. Finished clips are kept.
    """
    tally = Tally()
    left = dict(job.sources)
    try:
        with _file(job) as file:
            file_bytes = job.path.stat().st_size
            for number in sorted(left, key=lambda n: (file.spans[n].start, n)):
                span, source = file.spans[number], left[number]
                publication = Publication(folder, settings, source)
                if span.fault:
                    publication.drop_source(span.fault)
                else:
                    length = span.stop - span.start
                    share = file_bytes * length // max(file.count, 1)
                    remarks = (*span.remarks, *file.remarks)
                    file.remarks = []  # once is enough
                    publication.plan(Outline(length, file.fps, share, remarks))
                    _cut(file, publication, span.start)
                tally.add(publication.finish())
                del left[number]
    except Exception as error:
        reason = reason_for(error, folder)
        for number, source in left.items():
            if isinstance(error, UserError) or len(job.sources) == 1:
                tally.add(record_failure(folder, settings, source, reason))
            else:  # it may be the fault of one of them
                tally.add(process_job(folder, settings, replace(job, sources={number: source})))
    return tally


def _cut(file: _File, publication: Publication, offset: int) -> None:
    """Make the clips of an episode whose first frame is number ``offset`` of the file."""
    parts = [(start + offset, stop + offset, target) for start, stop, target in publication.parts]
    # a bad picture affects its window only; what depends on a bad frame, a survey finds out
    for some in [[part] for part in parts] if file.job.camera else [parts]:
        try:
            for target in cut_once(file.frames, some):
                publication.complete(target, False)
        except Damaged:
            file.restart()
            publication.cut(file.job.path, file.survey(), offset)
        except UserError as error:
            publication.fail(str(error), [target for *_, target in some])
