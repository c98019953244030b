"""Videos in, captioned windows out: {train,val}/{videos,metas}, many videos at once.

Every source video has a small record in ``.sources/`` of what became of it. The records make the
work repeatable (what is whole is kept, what other settings made is removed, what the user put
there is left alone), let several pods share it, and are what the report is merged from.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from .cutting import cut
from .events import Progress
from .faults import Crashed, is_unexpected, nothing_left, reason_for
from .files import NAME_BYTES, PARTIAL_PREFIX, name_bytes, read_json, write_json, write_text
from .helpers import Helpers
from .marks import Listings
from .report import Problem, Report, write_report
from .shares import Share
from .stage import UserError
from .survey import Survey, survey
from .windows import Window, cut_points, parse_name, window_name

__all__ = [
    "SPLITS",
    "Captions",
    "OneCaption",
    "Rule",
    "Source",
    "Splitter",
    "Tally",
    "finish",
    "leftover_places",
    "rule_of",
    "split_all",
    "window_flags",
]

SPLITS = ("train", "val")
DERIVED = (("t5_xxl", ".pickle"), ("latents", ".safetensors"))  # later stages' files of a clip
MORE_MEMORY = "give the stage more memory (spec.stages.dataset.resources), or use fewer --workers"
WORKERS = int(os.environ.get("V2W_WORKERS") or len(os.sched_getaffinity(0)))


class Captions(Protocol):
    """What the windows of one source video show; equal captions have equal ``repr``."""

    missing: str  # why a window has no caption

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """The caption of ``window``, published as ``name``, or None."""


@dataclass(frozen=True)
class OneCaption:
    """One text for all windows of a video."""

    caption: str
    missing: str = ""

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """The text."""
        return self.caption


@dataclass(frozen=True)
class Rule:
    """How videos are cut."""

    window_seconds: float = 5.0
    min_last_seconds: float = 7.5
    min_frames: int = 94


@dataclass(frozen=True)
class Source:
    """A video to cut, before anything is known of its content.

    ``name`` begins the names of its clips; ``origin`` changes when its content does; a video that
    is ``passing`` is deleted once its windows are whole.
    """

    name: str
    kind: str
    path: Path
    split: str
    captions: Captions
    origin: str
    passing: bool = False

    def cut_by(self, rule: Rule) -> str:
        """Names all that decides the pictures of the clips."""
        return _digest([asdict(rule), self.split, self.origin])

    def told_by(self, rule: Rule) -> str:
        """Names all that decides the clips and their captions."""
        return _digest([self.cut_by(rule), repr(self.captions)])


@dataclass
class Tally:
    """What this run did, beside what the records hold of all runs."""

    new_windows: int = 0
    removed_windows: int = 0


def window_flags() -> argparse.ArgumentParser:
    """The flags of every command that cuts videos, to be a parent of its parser."""
    flags, rule = argparse.ArgumentParser(add_help=False), Rule()
    flags.add_argument(
        "--window-size",
        type=float,
        default=rule.window_seconds,
        metavar="SECONDS",
        help="length of a window (default: %(default)s)",
    )
    flags.add_argument(
        "--min-last-window",
        type=float,
        default=rule.min_last_seconds,
        metavar="SECONDS",
        help="a rest of at most this length is one last window (default: %(default)s)",
    )
    flags.add_argument(
        "--min_frames",
        type=int,
        default=rule.min_frames,
        metavar="N",
        help="shorter windows are merged or dropped; training on 93 frames needs "
        "94 with upstream's loader (default: %(default)s)",
    )
    flags.add_argument(
        "--workers",
        type=int,
        default=WORKERS,
        metavar="N",
        help="videos cut at the same time (default: V2W_WORKERS, else the CPUs, %(default)s)",
    )
    return flags


def rule_of(args: argparse.Namespace) -> Rule:
    """The rule that :func:`window_flags` ask for.

    Raises:
        UserError: one of them is out of range.
    """
    if not args.window_size > 0:
        raise UserError(f"--window-size {args.window_size}: give a length above 0 seconds")
    if not args.min_last_window >= 0:
        raise UserError(f"--min-last-window {args.min_last_window}: give 0 seconds or more")
    for flag, value in (("--min_frames", args.min_frames), ("--workers", args.workers)):
        if value < 1:
            raise UserError(f"{flag} {value}: give a number of 1 or more")
    return Rule(args.window_size, args.min_last_window, args.min_frames)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


# ---------------------------------------------------------------- files and records


def leftover_places(folder: Path) -> list[Path]:
    """Where a killed run leaves partial files."""
    kinds = [folder / split / kind for split in SPLITS for kind in ("videos", "metas")]
    return [folder, folder / ".sources", *kinds]


def _video(folder: Path, split: str, name: str) -> Path:
    return folder / split / "videos" / f"{name}.mp4"


def _meta(folder: Path, split: str, name: str) -> Path:
    return folder / split / "metas" / f"{name}.txt"


def _forget(folder: Path, split: str, name: str, kinds: Sequence[str]) -> None:
    """Remove a clip's files that later stages derived, so that they are made anew."""
    for subfolder, suffix in DERIVED:
        if subfolder in kinds:
            (folder / split / subfolder / f"{name}{suffix}").unlink(missing_ok=True)


def _remove(folder: Path, split: str, names: Iterable[str]) -> int:
    """Remove clips altogether; returns how many videos there were."""
    gone = 0
    for name in names:
        gone += _video(folder, split, name).is_file()
        _video(folder, split, name).unlink(missing_ok=True)
        _meta(folder, split, name).unlink(missing_ok=True)
        _forget(folder, split, name, ("t5_xxl", "latents"))
    return gone


@dataclass
class _Record:
    """What became of a source.

    ``clips`` are name, first frame, frame after the last, bytes (0 while not known), and whether
    the pictures were copied, not encoded anew.
    """

    cut_by: str = ""
    told_by: str = ""  # empty while the work is under way
    split: str = "train"
    fps: float = 0.0
    source_bytes: int = 0
    clips: list[tuple[str, int, int, int, bool]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)
    failed: bool = False  # for a reason that may not be the source's: the next run tries again

    @property
    def names(self) -> list[str]:
        return [clip[0] for clip in self.clips]


def _record_file(folder: Path, name: str) -> Path:
    return folder / ".sources" / f"{name}.json"


def _read_record(path: Path) -> _Record:
    """The record in ``path``; an empty one if there is none, or one that cannot be believed."""
    try:
        record = _Record(**(read_json(path) or {}))
        good = record.split in SPLITS and all(
            isinstance(name, str) and name and "/" not in name and "\0" not in name
            for name, *_ in record.clips
        )
    except (ValueError, TypeError):
        return _Record()
    return record if good else _Record()


def _is_whole(folder: Path, record: _Record) -> bool:
    """Whether all files are there as they were written."""
    try:
        return all(
            _video(folder, record.split, name).stat().st_size == size
            and _meta(folder, record.split, name).is_file()
            for name, _, _, size, _ in record.clips
        )
    except OSError:
        return False


# ---------------------------------------------------------------- one source


def _plan(
    source: Source, rule: Rule, record: _Record
) -> tuple[list[tuple[str, Window, str]], Survey | None]:
    """The clips to make, with their captions; what is left out goes into ``record``."""

    def drop(kind: str, item: str, reason: str) -> None:
        record.dropped.append(vars(Problem(kind, item, reason)))

    label = source.name if source.kind == "episode" else source.path.name
    try:
        known = survey(source.path)
    except UserError as error:
        drop(source.kind, label, str(error))
        return [], None
    info = known.info
    record.fps, record.source_bytes = float(info.fps), source.path.stat().st_size
    windows, remarks = cut_points(
        info.frames,
        info.fps,
        window_seconds=rule.window_seconds,
        min_last_seconds=rule.min_last_seconds,
        min_frames=rule.min_frames,
    )
    if not windows:
        drop(
            source.kind,
            label,
            f"{source.path}: {info.frames} frames are shorter than one window "
            f"(--min_frames {rule.min_frames})",
        )
    if (reason := _too_long([window_name(source.name, window) for window in windows])) is not None:
        drop(source.kind, label, reason)
        return [], known
    record.notes += [vars(Problem(source.kind, label, r)) for r in (*remarks, *known.remarks)]
    for subfolder, suffix in DERIVED:
        if any(name_bytes(window_name(source.name, w) + suffix) > NAME_BYTES for w in windows):
            reason = (
                f"its name is too long for {suffix} files: the stage that writes {subfolder}/ will "
                "leave some of its windows out; shorten it"
            )
            record.notes.append(vars(Problem(source.kind, label, reason)))
    clips = []
    for window in windows:
        name = window_name(source.name, window)
        text = source.captions.text(name, window, info.fps)
        if text is None:
            drop("window", name, source.captions.missing)
        elif reason := known.fault(window.start, window.stop):
            drop("window", name, reason)
        else:
            clips.append((name, window, text))
    return clips, known


def _too_long(names: Sequence[str]) -> str | None:
    """Say that the files of a video's windows cannot have their ``names``; None if they can."""
    longest = max(names, key=name_bytes, default="")
    excess = name_bytes(f"{longest}.mp4") - NAME_BYTES
    if excess <= 0:
        return None
    return (
        f"its name is too long for those of its windows ({longest}.mp4); shorten it by at least "
        f"{excess} bytes"
    )


def _split(folder: Path, source: Source, rule: Rule) -> Tally:
    """Publish the windows of ``source``; what was left out is in its record.

    Raises:
        OSError: the disk is full, or the like; finished clips stay, and the next run goes on.
    """
    path, tally = _record_file(folder, source.name), Tally()
    before = _read_record(path)
    record = _Record(cut_by=source.cut_by(rule), split=source.split)
    planned, surveyed = _plan(source, rule, record)
    names = {name for name, *_ in planned}
    stale = before.names if before.cut_by != record.cut_by else set(before.names) - names
    tally.removed_windows = _remove(folder, before.split, stale)
    known = {clip[0]: clip for clip in before.clips if before.cut_by == record.cut_by}
    # On record before anything is made: a run killed halfway leaves nothing unowned. A file that
    # is there under such a record is whole, whatever its size.
    record.clips = [known.get(n, (n, w.start, w.stop, 0, False)) for n, w, _ in planned]
    write_json(path, vars(record))

    missing, copied = {}, {clip[0]: clip[4] for clip in record.clips}
    for (name, window, _), (*_, size, _) in zip(planned, record.clips, strict=True):
        target = _video(folder, source.split, name)
        if not target.is_file() or size not in (0, target.stat().st_size):
            missing[target] = (name, window)
            _forget(folder, source.split, name, ("latents",))
    try:
        parts = [(w.start, w.stop, target) for target, (_, w) in missing.items()]
        for target, as_it_was in cut(source.path, parts, known=surveyed):
            copied[missing.pop(target)[0]] = as_it_was
            tally.new_windows += 1
    except UserError as error:
        for name, _ in sorted(missing.values(), key=lambda item: item[1].start):
            record.dropped.append(vars(Problem("window", name, str(error))))
    lost = {name for name, _ in missing.values()}
    _remove(folder, source.split, lost)
    record.clips = []
    for name, window, caption in planned:
        if name not in lost:
            _caption(folder, source.split, name, caption)
            size = _video(folder, source.split, name).stat().st_size
            record.clips.append((name, window.start, window.stop, size, copied[name]))
    record.told_by = source.told_by(rule)
    write_json(path, vars(record))
    if source.passing:
        source.path.unlink(missing_ok=True)
    return tally


def _caption(folder: Path, split: str, name: str, caption: str) -> None:
    meta = _meta(folder, split, name)
    try:
        same = meta.read_text(encoding="utf-8") == caption
    except (FileNotFoundError, UnicodeDecodeError):
        same = False
    if not same:
        _forget(folder, split, name, ("t5_xxl",))
        write_text(meta, caption)


# ---------------------------------------------------------------- all sources


def _guarded_split(folder: Path, rule: Rule, source: Source) -> Tally:
    """Publish ``source``; whatever is wrong with it ends in its record.

    Raises:
        OSError: the disk is full, or the like; finished clips stay, and the next run goes on.
    """
    try:
        return _split(folder, source, rule)
    except Exception as error:
        return _fail(folder, rule, source, reason_for(error, folder))


def _was_under_way(folder: Path, rule: Rule, source: Source) -> bool:
    """Whether an earlier run ended while it worked on ``source``; else record that one does now."""
    path = _record_file(folder, source.name)
    before, cut_by = _read_record(path), source.cut_by(rule)
    if not before.cut_by:
        write_json(path, vars(_Record(cut_by, split=source.split)))
    return before.cut_by == cut_by and not before.told_by


def _fail(folder: Path, rule: Rule, source: Source, reason: str) -> Tally:
    """Record why the work on ``source`` ended early; its windows that are finished are kept."""
    before, tally = _read_record(_record_file(folder, source.name)), Tally()
    record = _Record(source.cut_by(rule), source.told_by(rule), source.split)
    record.failed = is_unexpected(reason)
    if before.cut_by == record.cut_by:
        record.fps, record.source_bytes = before.fps, before.source_bytes
        for name, start, stop, _, copied in before.clips:
            if _is_finished(folder, source, name, before.fps):
                size = _video(folder, source.split, name).stat().st_size
                record.clips.append((name, start, stop, size, copied))
    tally.removed_windows = _remove(folder, before.split, set(before.names) - set(record.names))
    if record.clips:
        reason += f"; {len(record.clips)} of its {len(before.clips)} windows were finished"
    label = source.name if source.kind == "episode" else source.path.name
    record.dropped = [vars(Problem(source.kind, label, reason))]
    write_json(_record_file(folder, source.name), vars(record))
    if source.passing:
        source.path.unlink(missing_ok=True)
    return tally


def _is_finished(folder: Path, source: Source, name: str, fps: float) -> bool:
    """Whether the clip ``name`` is there; it gets its caption then."""
    parsed = parse_name(name)
    if parsed is None or not fps or not _video(folder, source.split, name).is_file():
        return False
    try:
        text = source.captions.text(name, parsed[1], Fraction(fps).limit_denominator(100_000))
    except Exception:
        return False
    if text is not None:
        _caption(folder, source.split, name, text)
    return text is not None


def _start(folder: Path, rule: Rule, device: str) -> Callable[[Source], Tally]:
    """Return what a helper process does with each source."""
    return functools.partial(_guarded_split, folder, rule)


class Splitter:
    """Publishes sources into ``folder``, ``workers`` at a time; a context manager."""

    def __init__(self, folder: Path, rule: Rule, workers: int) -> None:
        self.folder, self.rule, self.tally = folder, rule, Tally()
        self._workers = workers
        # bounds the videos that lie on the disk: those being cut, and the next
        self._room = threading.Semaphore(workers + 2)
        self._lock = threading.Lock()
        self._submitted: set[str] = set()
        self._futures: list[tuple[Source, Future[Tally]]] = []
        self._error: BaseException | None = None
        self._helpers: Helpers | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Splitter:
        for split in SPLITS:
            for kind in ("videos", "metas"):
                (self.folder / split / kind).mkdir(parents=True, exist_ok=True)
        if self._workers > 1:
            self._start_helpers()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def _start_helpers(self) -> None:
        load = functools.partial(_start, self.folder, self.rule)
        self._helpers = self._stack.enter_context(Helpers(load, ["cpu"] * self._workers))

    def is_done(self, source: Source) -> bool:
        """Whether all that would be made of ``source`` is there."""
        record = _read_record(_record_file(self.folder, source.name))
        return record.told_by == source.told_by(self.rule) and _is_whole(self.folder, record)

    def needs(self, source: Source) -> bool:
        """Whether ``source`` is not done, or failed in an earlier run for another reason than it.

        In this run it fails once: :meth:`is_done` says that nothing more is to be expected.
        """
        failed = _read_record(_record_file(self.folder, source.name)).failed
        return source.name not in self._submitted and (failed or not self.is_done(source))

    def lacks(self, source: Source | None) -> bool:
        """Whether there is something to make of ``source`` that is not under way."""
        return source is not None and self.needs(source)

    def admit(self) -> None:
        """Wait until there is room for another video; to be followed by submit or dismiss."""
        self._room.acquire()

    def dismiss(self) -> None:
        """The video that was admitted does not come."""
        self._room.release()

    def submit(self, source: Source | None) -> None:
        """Publish ``source``, which was admitted, soon. Any thread may call.

        Raises:
            OSError: an earlier one could not be written.
        """
        with self._lock:
            if source is None or source.name in self._submitted:
                self._room.release()
                return
            self._submitted.add(source.name)
            if self._helpers is None and _was_under_way(self.folder, self.rule, source):
                self._start_helpers()  # an earlier run may have ended by it: it shall not end this
            if self._helpers is not None:
                if self._error is not None:
                    raise self._error  # no use in going on after a failure
                future = self._helpers.submit(source)
                future.add_done_callback(self._note_end)
                self._futures.append((source, future))
                return
            try:
                self._add(_guarded_split(self.folder, self.rule, source))
            finally:
                self._room.release()

    def _note_end(self, future: Future[Tally]) -> None:
        self._room.release()
        error = future.exception()
        if error is not None and not isinstance(error, Crashed):
            self._error = error

    def wait(self) -> None:
        """Until all that was submitted is published.

        Raises:
            OSError: one could not be written; finished clips stay.
        """
        for source, future in self._futures:
            try:
                self._add(future.result())
            except Crashed as crash:
                reason = f"{reason_for(crash, self.folder)}; {MORE_MEMORY}"
                self._add(_fail(self.folder, self.rule, source, reason))

    def _add(self, tally: Tally) -> None:
        self.tally.new_windows += tally.new_windows
        self.tally.removed_windows += tally.removed_windows


def split_all(
    folder: Path, sources: Sequence[Source], rule: Rule, workers: int, share: Share, report: Report
) -> tuple[Listings, dict[str, Any]] | None:
    """Publish this share of ``sources``, which are all there is.

    Returns what :func:`finish` does, or None while other shares are not done.

    Raises:
        UserError: nothing is left to train on.
        OSError: the disk is full, or the like; finished clips stay, and the next run goes on.
    """
    mine = share.of(sources)
    with Splitter(folder, rule, min(workers, max(len(mine), 1))) as splitter:
        progress = Progress(report.stage, len(mine), "videos")
        for source in mine:
            if splitter.needs(source):
                splitter.admit()
                splitter.submit(source)
            progress.advance()
        splitter.wait()
        if not all(splitter.is_done(source) for source in sources):
            return None
    return finish(folder, [source.name for source in sources], report, splitter.tally)


def finish(
    folder: Path, names: Iterable[str], report: Report, tally: Tally
) -> tuple[Listings, dict[str, Any]]:
    """Merge the records of the sources ``names`` into the report; remove all other sources' clips.

    Returns the files that are there now (see :attr:`.marks.Provenance.outputs`) and the report's
    summary.

    Raises:
        UserError: nothing is left to train on.
    """
    wanted, records = set(names), {}
    for path in sorted((folder / ".sources").glob("*.json")):
        if path.name.startswith(PARTIAL_PREFIX):
            continue
        record = _read_record(path)
        if path.stem in wanted:
            records[path.stem] = record
        else:
            tally.removed_windows += _remove(folder, record.split, record.names)
            path.unlink()
    clips = [(r, clip) for r in records.values() for clip in r.clips]
    frames = sum(clip[2] - clip[1] for _, clip in clips)
    for record in records.values():
        for problem in record.dropped:
            report.drop(**problem)
        for problem in record.notes:
            report.note(**problem)
    report.counts |= {
        "episodes": sum(bool(record.clips) for record in records.values()),
        "windows": len(clips),
        "new_windows": tally.new_windows,
        "train_windows": sum(record.split == "train" for record, _ in clips),
        "val_windows": sum(record.split == "val" for record, _ in clips),
        "copied_windows": sum(clip[4] for _, clip in clips),
        "removed_windows": tally.removed_windows,
        "frames": frames,
        "seconds": round(sum((c[2] - c[1]) / r.fps for r, c in clips), 3),
        "bytes_in": sum(record.source_bytes for record in records.values()),
        "bytes_kept": sum(clip[3] for _, clip in clips),
    }
    files = {s: sorted(c[0] for r, c in clips if r.split == s) for s in SPLITS}
    samples = [_video(folder, split, name) for split in SPLITS for name in files[split]]
    write_report(folder, report, samples, files=files)
    report.show()
    if not report.counts["train_windows"]:
        words = (
            f"{folder}: no window is left to train on ({len(report.dropped)} items dropped, "
            f"{report.counts['val_windows']} windows for validation); see {folder}/report.json for "
            "the reasons"
        )
        raise nothing_left(words, report)
    made: Listings = {str(folder): {"report.json": ""}}
    for record, (name, _, _, size, _) in clips:
        for path, stamp in (
            (_video(folder, record.split, name), str(size)),
            (_meta(folder, record.split, name), ""),  # a caption edited here is the user's
        ):
            made.setdefault(str(path.parent), {})[path.name] = stamp
    return made, report.summary()
