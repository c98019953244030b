"""Record finished stages on the volume, and check whether a record is still valid.

A record lists the files that a stage read and wrote. Names, sizes and modification times are
compared, never contents, so a check costs one stat call per file. ``python -m
video2world_common.markers STAGE=HASH ...``, in the volume's root, prints the verdict on each stage
as a line of JSON.
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

STATE_FOLDER = Path(".video2world")  # our own files on the volume, alongside the guide's folders
MADE_FOR = ".made-for.json"  # in each folder that stages write: its resource and settings
NOT_DONE = "not done yet with these settings"
NAMED = 3  # changed files to name
_NOUNS = {
    ".pickle": "embedding",
    ".safetensors": "latents file",
    ".tar": "archive",
    ".txt": "caption",
} | dict.fromkeys((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"), "video")

# By name: "SIZE MTIME_NS", "SIZE" if the time does not matter, "" if existence suffices.
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
    """Return whether the mode lets this process read the file, without another system call."""
    user = os.geteuid()
    if user in (0, status.st_uid):
        return user == 0 or bool(status.st_mode & stat.S_IRUSR)
    if status.st_mode & stat.S_IROTH:
        return True
    group = status.st_gid in (os.getegid(), *os.getgroups())
    return group and bool(status.st_mode & stat.S_IRGRP)


def _counts(name: str) -> bool:
    """Return whether a file counts: hidden files of ours and of the system do not."""
    if name.startswith((PARTIAL_PREFIX, ".nfs")):
        return False
    return not name.startswith(".") or Path(name).suffix.lower() in _NOUNS


def list_files(folder: str | os.PathLike[str]) -> Listing:
    """List ``folder``: files with size and time, subfolders by name."""
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
    """Return size and time of each file; None if it does not exist."""
    return {str(path): _stamp(Path(path)) for path in paths}


def read_owner(folder: Path) -> dict[str, Any]:
    """Read the owner record of ``folder`` (resource and settings); empty if there is none."""
    try:
        record = read_json(folder / MADE_FOR)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@dataclass
class Provenance:
    """Files that a stage read and wrote.

    ``inputs`` are folders of which every file counts, ``files`` single files or their absence, both
    from before the work; ``outputs`` are files that must still exist; ``owned`` has the owner
    record of each folder that the stage wrote. ``noted`` are folders as in ``inputs``, but a change
    is only reported and does not invalidate the work. ``failed`` are items to try again, because
    their failure had another cause.
    """

    inputs: Listings = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    outputs: Listings = field(default_factory=dict)
    owned: dict[str, dict[str, Any]] = field(default_factory=dict)
    noted: Listings = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, *folders: str | os.PathLike[str]) -> Provenance:
        """Return the provenance of work whose inputs are all current files in ``folders``."""
        listed = reader()
        return cls({str(folder): listed(str(folder)) for folder in folders})

    def left(self, paths: Iterable[str | os.PathLike[str]], *, timed: bool = False) -> Provenance:
        """Add files that were written to the outputs; if ``timed``, with their times."""
        for path in map(Path, paths):
            size, *time = (_stamp(path) or "").split() or [""]
            stamp = " ".join([size, *time]) if timed else size
            self.outputs.setdefault(str(path.parent), {})[path.name] = stamp
        return self


def _noun(name: str, folder: str) -> str:
    if name.endswith("/"):
        return "folder"
    noun = _NOUNS.get(Path(name).suffix.lower(), "file")
    return "actions file" if noun == "latents file" and Path(folder).name == "actions" else noun


def _shown(name: str) -> str:
    """Replace characters of a file name that a terminal interprets or cannot print."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _matches(recorded: str, now: str) -> bool:
    """Return whether a file matches its record, as far as that goes."""
    return recorded in ("", now) or now.startswith(f"{recorded} ")


def _compare(recorded: Mapping[str, str], now: Mapping[str, str], *, complete: bool) -> Listings:
    """Group names by change; if ``complete``, files that are not recorded are new."""
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
    """Describe how folders differ from their record, such as ``1 new video: b.mp4``."""
    groups: dict[tuple[str, str], list[str]] = {}
    for folder, listing in recorded.items():
        found = _compare(listing, now.get(folder, {}), complete=complete)
        for verb, changed in found.items():
            for name in sorted(changed):
                groups.setdefault((verb, _noun(name, folder)), []).append(name)
    parts = []
    for (verb, noun), names in groups.items():
        plural = "s" if len(names) > 1 else ""
        parts.append(_listed(f"{len(names)} {verb} {noun}{plural}", names))
    return "; ".join(parts)


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{what}: {', '.join(map(_shown, names[:NAMED]))}{more}"


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the settings in which two runs differ."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)}, here {now.get(key)}" for key in sorted(keys))


Reader = Callable[[str], Listing]


def reader() -> Reader:
    """Return a :func:`list_files` that reads each folder once, to check several stages.

    In a pod it reads the volume only, because any user of the volume can write records.
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
    """Whether a stage is complete, and why or why not; ``note`` is information for the user.

    ``result`` are the fields of the event with its result, for stages that have one (evaluation).
    """

    stage: str
    done: bool
    why: str
    note: str = ""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Marker:
    """Record on the volume that a stage, with a hash of its settings, is complete."""

    stage: str
    inputs_hash: str

    @property
    def path(self) -> Path:
        """Path of the record, relative to the volume's root."""
        return STATE_FOLDER / "stages" / f"{self.stage}-{self.inputs_hash}.json"

    def read(self) -> dict[str, Any] | None:
        """Return the record; None if the stage is not complete or its files changed."""
        record, why = self._checked(reader())
        return None if why else record

    def judge(self, listed: Reader | None = None) -> Verdict:
        """Compare the record with the current files, whose folders ``listed`` reads."""
        listed = listed or reader()
        record, why = self._checked(listed)
        if why or record is None:
            return Verdict(self.stage, False, why)
        noted = changes(record["noted"], {folder: listed(folder) for folder in record["noted"]})
        note = noted and f"its data changed since: {noted}"
        why = f"finished {record['finished']} by {record['resource'] or 'hand'}"
        result = record["summary"].get(self.stage)
        return Verdict(self.stage, True, why, note, result if isinstance(result, dict) else {})

    def _checked(self, listed: Reader) -> tuple[dict[str, Any] | None, str]:
        """Return the record, and why it is not valid."""
        try:
            record = read_json(self.path)
            if record is None:
                return None, NOT_DONE
            return record, _broken(record, listed)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None, f"its record {self.path} is damaged"

    def remove(self) -> None:
        """Delete the record."""
        self.path.unlink(missing_ok=True)

    def write(self, made: Provenance, summary: Mapping[str, Any]) -> None:
        """Write the record of a finished stage."""
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
    """Explain why ``record`` is no longer valid; empty if it is."""
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
    """Convert existing single files to listings."""
    found: Listings = {}
    for path in map(Path, files):
        listing = found.setdefault(str(path.parent), {})
        if (stamp := files[str(path)]) is not None:
            listing[path.name] = stamp
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict on each stage, named as STAGE=HASH, and return the exit code."""
    listed = reader()
    for entry in sys.argv[1:] if argv is None else argv:
        stage, _, inputs_hash = entry.partition("=")
        print(json.dumps(asdict(Marker(stage, inputs_hash).judge(listed))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
