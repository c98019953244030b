"""Check the rules between fields of spec.dataset, each of which is a rule in cel_rules.py too."""

from __future__ import annotations

from collections.abc import Iterator

from video2world_operator.api.constants import CAPTIONS_MISSING, CAPTIONS_PREPARED
from video2world_operator.api.dataset_spec import SOURCES, DatasetSpec, LeRobotDataset
from video2world_operator.api.errors import Problem

__all__ = ["dataset_problems"]


def dataset_problems(dataset: DatasetSpec) -> Iterator[Problem]:
    """Report what contradicts the source of the videos."""
    sources = [name for name in SOURCES if getattr(dataset, name)]
    if len(sources) != 1:
        found = " and ".join(sources) if sources else "none"
        yield Problem("spec.dataset", f"{found} set; set exactly one of {', '.join(SOURCES)}")
    if dataset.captions and dataset.prepared:
        yield Problem("spec.dataset.captions", CAPTIONS_PREPARED)
    if dataset.lerobot:
        yield from _lerobot(dataset.lerobot)
        if dataset.lerobot.caption == "Endpoint" and not dataset.captions:
            yield Problem("spec.dataset.lerobot.caption", CAPTIONS_MISSING)


def _lerobot(lerobot: LeRobotDataset) -> Iterator[Problem]:
    field = "spec.dataset.lerobot"
    if (lerobot.repo_id is None) == (lerobot.path is None):
        found = "none of them is set" if lerobot.path is None else "both are set"
        yield Problem(field, f"set exactly one of repoID and path; {found}")
    elif lerobot.revision and lerobot.path:
        yield Problem(
            f"{field}.revision",
            "it is that of a repository on the Hub; set repoID instead of path, or remove it",
        )
    if lerobot.caption == "File" and not lerobot.caption_file:
        yield Problem(
            f"{field}.captionFile",
            "missing; set the file with the captions on the volume, or use caption: Task",
        )
    if lerobot.caption != "File" and lerobot.caption_file:
        yield Problem(
            f"{field}.captionFile",
            f"not used with caption: {lerobot.caption}; set caption: File, or remove it",
        )
    ranges = {"episodes": lerobot.episodes, "validationEpisodes": lerobot.validation_episodes}
    for name, entries in ranges.items():
        for number, entry in enumerate(entries):
            first, _, last = str(entry).partition("-")
            if last and int(first) > int(last):
                yield Problem(
                    f"{field}.{name}[{number}]",
                    f"{entry!r} ends before it begins; write {last}-{first}",
                )
