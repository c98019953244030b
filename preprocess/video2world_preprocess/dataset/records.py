"""Keep the per-source records of a dataset folder and the files they describe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from video2world_common.files import read_json

__all__ = ["SPLITS", "leftover_places"]

SPLITS = ("train", "val")
DERIVED = (("t5_xxl", ".pickle"), ("latents", ".safetensors"))  # later stages' files of a clip


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
