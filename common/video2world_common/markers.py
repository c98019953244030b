"""The record of a finished stage: what it is bound to on the volume, and whether that still holds.

Names, sizes and modification times are compared, never contents, so that a check costs one stat
call a file. ``python -m video2world_common.markers STAGE=HASH ...``, in the volume's root, prints
the verdict on each stage as a line of JSON.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from video2world_common.files import PARTIAL_PREFIX, read_json, write_json

__all__ = [
    "MADE_FOR",
    "NOT_DONE",
    "STATE_FOLDER",
    "Listing",
    "Listings",
    "Marker",
    "Provenance",
    "Verdict",
    "changes",
    "difference",
    "file_stamps",
    "list_files",
    "read_owner",
    "reader",
]

STATE_FOLDER = Path(".video2world")  # our own files on the volume, beside the guide's folders
MADE_FOR = ".made-for.json"  # in each folder that stages write: for whom, with which settings
NOT_DONE = "not done yet with these settings"
NAMED = 3  # so many changed files are named
_NOUNS = {
    ".pickle": "embedding",
    ".safetensors": "latents file",
    ".tar": "archive",
    ".txt": "caption",
} | dict.fromkeys((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"), "video")

# By name: "SIZE MTIME_NS", "SIZE" where the time does not matter, "" where existence suffices.
Listing = dict[str, str]
Listings = dict[str, Listing]  # by folder


def _stamp(file: Path | os.DirEntry[str]) -> str | None:
    try:
        status = file.stat()
    except OSError:
        return None
    if not _readable(status):
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"


def _readable(status: os.stat_result) -> bool:
    """Whether the file's mode lets this process read it; asking the system is one call more."""
    user = os.geteuid()
    if user in (0, status.st_uid):
        return user == 0 or bool(status.st_mode & stat.S_IRUSR)
    if status.st_mode & stat.S_IROTH:
        return True
    group = status.st_gid in (os.getegid(), *os.getgroups())
    return group and bool(status.st_mode & stat.S_IRGRP)


def _counts(name: str) -> bool:
    """Whether a file or folder of this name matters: our own and the system's hidden ones do not"""
    if name.startswith((PARTIAL_PREFIX, ".nfs")):
        return False
    return not name.startswith(".") or Path(name).suffix.lower() in _NOUNS


def list_files(folder: str | os.PathLike[str]) -> Listing:
    """List what is in ``folder``: files with size and time, subfolders by name."""
    found: Listing = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _counts(entry.name):
                    continue
                if entry.is_dir():
                    found[f"{entry.name}/"] = ""
                else:
                    found[entry.name] = _stamp(entry) or "broken link"
    except OSError:
        pass
    return found


def file_stamps(paths: Iterable[str | os.PathLike[str]]) -> dict[str, str | None]:
    """Size and time of each file; None where there is none."""
    return {str(path): _stamp(Path(path)) for path in paths}


def read_owner(folder: Path) -> dict[str, Any]:
    """Read for whom and with which settings ``folder`` was made; empty where that is unknown."""
    try:
        record = read_json(folder / MADE_FOR)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@dataclass
class Provenance:
    """What a stage was made from and what it left.

    ``inputs`` are folders of which every file counts, ``files`` single files or their absence,
    both as they were before the work; ``outputs`` are files that must still be there; ``owned``
    holds the owner record of each folder that the stage wrote. A change in ``noted``, folders as in
    ``inputs``, does not undo the work: it is only reported. ``failed`` are items to try again, as
    their failure was not their own.
    """

    inputs: Listings = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    outputs: Listings = field(default_factory=dict)
    owned: dict[str, dict[str, Any]] = field(default_factory=dict)
    noted: Listings = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, *folders: str | os.PathLike[str]) -> Provenance:
        """What is made from all that is in ``folders`` now."""
        listed = reader()
        return cls({str(folder): listed(str(folder)) for folder in folders})

    def left(self, paths: Iterable[str | os.PathLike[str]], *, timed: bool = False) -> Provenance:
        """Add ``paths``, files that were made, to the outputs; ``timed``: with their times."""
        for path in map(Path, paths):
            size, *time = (_stamp(path) or "").split() or [""]
            stamp = " ".join([size, *time]) if timed else size
            self.outputs.setdefault(str(path.parent), {})[path.name] = stamp
        return self


def _noun(name: str, count: int) -> str:
    noun = "folder" if name.endswith("/") else _NOUNS.get(Path(name).suffix.lower(), "file")
    return noun if count == 1 else f"{noun}s"


def _shown(name: str) -> str:
    """A file's name without what a terminal would obey or cannot print."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _matches(recorded: str, now: str) -> bool:
    """Whether a file is as recorded, as far as its record says."""
    return recorded in ("", now) or now.startswith(f"{recorded} ")


def _compare(recorded: Mapping[str, str], now: Mapping[str, str], *, complete: bool) -> Listings:
    """Names by what became of them; ``complete``: one that is not recorded counts as well."""
    found: Listings = {"new": {}, "changed": {}, "missing": {}}
    for name, stamp in recorded.items():
        if name not in now:
            found["missing"][name] = ""
        elif not _matches(stamp, now[name]):
            found["changed"][name] = ""
    if complete:
        found["new"] = dict.fromkeys(now.keys() - recorded.keys(), "")
    return found


def changes(recorded: Listings, now: Listings, *, complete: bool = True) -> str:
    """Say how folders differ from their record, such as ``1 new video: b.mp4``; or nothing."""
    groups: dict[tuple[str, str], list[str]] = {}
    for folder, listing in recorded.items():
        found = _compare(listing, now.get(folder, {}), complete=complete)
        for verb, changed in found.items():
            for name in sorted(changed):
                groups.setdefault((verb, _noun(name, 1)), []).append(name)
    said = []
    for (verb, _), names in groups.items():
        said.append(_listed(f"{len(names)} {verb} {_noun(names[0], len(names))}", names))
    return "; ".join(said)


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{what}: {', '.join(map(_shown, names[:NAMED]))}{more}"


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in which settings two runs differ."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)}, here {now.get(key)}" for key in sorted(keys))


Reader = Callable[[str], Listing]


def reader() -> Reader:
    """Return a :func:`list_files` that reads each folder once, for stages judged together.

    In a pod it reads the volume only: anyone who shares the volume can write records.
    """

    def read(folder: str) -> Listing:
        if os.environ.get("V2W_STAGE"):
            volume, real = os.path.realpath("."), os.path.realpath(folder)
            if os.path.commonpath((volume, real)) != volume:
                return {}
        return list_files(folder)

    return cache(read)


@dataclass(frozen=True)
class Verdict:
    """Whether a stage is done, and why it is or is not; ``note`` is what its user should know."""

    stage: str
    done: bool
    why: str
    note: str = ""


@dataclass(frozen=True)
class Marker:
    """The record that a stage's work, named by a hash of its settings, is done on this volume."""

    stage: str
    inputs_hash: str

    @property
    def path(self) -> Path:
        """Where the record lies, relative to the volume's root."""
        return STATE_FOLDER / "stages" / f"{self.stage}-{self.inputs_hash}.json"

    def read(self) -> dict[str, Any] | None:
        """The record, or None while the stage is not finished or what it is bound to changed."""
        record, why = self._checked(reader())
        return None if why else record

    def judge(self, listed: Reader | None = None) -> Verdict:
        """Compare the record with the volume, whose folders ``listed`` reads, as it is now."""
        listed = listed or reader()
        record, why = self._checked(listed)
        if why or record is None:
            return Verdict(self.stage, False, why)
        noted = changes(record["noted"], {folder: listed(folder) for folder in record["noted"]})
        note = noted and f"its data changed since: {noted}"
        why = f"finished {record['finished']} by {record['resource'] or 'hand'}"
        return Verdict(self.stage, True, why, note)

    def _checked(self, listed: Reader) -> tuple[dict[str, Any] | None, str]:
        """The record, and why it does not hold."""
        try:
            record = read_json(self.path)
            if record is None:
                return None, NOT_DONE
            return record, _broken(record, listed)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None, f"its record {self.path} is damaged or of an older version"

    def remove(self) -> None:
        """Forget that the stage is finished."""
        self.path.unlink(missing_ok=True)

    def write(self, made: Provenance, summary: Mapping[str, Any]) -> None:
        """Record that the stage is finished."""
        write_json(
            self.path,
            {
                "stage": self.stage,
                "inputsHash": self.inputs_hash,
                **asdict(made),
                "resource": os.environ.get("V2W_RESOURCE", ""),
                "summary": dict(summary),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )


def _broken(record: Mapping[str, Any], listed: Reader) -> str:
    """Say why ``record`` does not hold any longer; empty if it does."""
    if record["failed"]:
        return _listed(f"{len(record['failed'])} failed before", record["failed"])
    for folder, owner in record["owned"].items():
        now = read_owner(Path(folder))
        if now.get("work") != owner["work"]:
            other = difference(now.get("settings") or {}, owner["settings"])
            if other:
                return f"{folder} was made with other settings since ({other})"
            return f"{folder} was made again since"
    named, parts = record["files"], []
    for recorded, now, complete in (
        (record["inputs"], {folder: listed(folder) for folder in record["inputs"]}, True),
        (_by_folder(named), _by_folder(file_stamps(named)), True),
        (record["outputs"], {folder: listed(folder) for folder in record["outputs"]}, False),
    ):
        parts.append(changes(recorded, now, complete=complete))
    if not {"noted", "finished", "resource"} <= record.keys():
        raise KeyError("noted")
    return "; ".join(filter(None, parts))


def _by_folder(files: Mapping[str, str | None]) -> Listings:
    """Single files that are there, as listings."""
    found: Listings = {}
    for path in map(Path, files):
        listing = found.setdefault(str(path.parent), {})
        if (stamp := files[str(path)]) is not None:
            listing[path.name] = stamp
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the stages that are named as STAGE=HASH; returns the exit code."""
    listed = reader()
    for entry in sys.argv[1:] if argv is None else argv:
        stage, _, inputs_hash = entry.partition("=")
        print(json.dumps(asdict(Marker(stage, inputs_hash).judge(listed))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
