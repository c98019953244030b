"""Check the actions to read before the dataset is downloaded: columns, names, dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from video2world_common.lerobot_columns import columns_of
from video2world_common.per_clip_actions import DIMENSION
from video2world_operator.api.dataset_spec import ActionsSpec
from video2world_operator.api.errors import nearest
from video2world_operator.api.spec import Spec
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.check import Check, Verdict

__all__ = ["check_actions", "check_proprioception", "check_sequences"]

_FIELD = "spec.dataset.actions"
_LISTED = 64  # values that a message names
_POSE = "x, y, z, roll, pitch, yaw or qx, qy, qz, qw, and gripper"


def check_actions(spec: Spec, features: Mapping[str, Any]) -> Iterator[Check]:
    """Check the actions of a LeRobotDataset with these ``features`` (of ``meta/info.json``)."""
    actions = spec.dataset.actions
    if actions is None:
        return
    known = columns_of(features)
    missing = [column for column in actions.columns if column not in known]
    if missing:
        sizes = [f"{column} ({len(labels)})" for column, labels in known.items()]
        listed = ", ".join(sizes[:_LISTED])
        near = nearest(missing[0], known)
        remedy = near if near.startswith("did") else f"set {_FIELD}.columns to some of them"
        text = f"meta/info.json has no column of numbers {missing[0]}; it has {listed or 'none'}"
        yield _check(text, remedy)
        return
    labels = [(column, label) for column in actions.columns for label in known[column]]
    unknown = [name for name in actions.names if not _matches(name, labels)]
    if unknown:
        every = ", ".join(label for _, label in labels[:_LISTED])
        every += ", ..." if len(labels) > _LISTED else ""
        text = f"{' and '.join(actions.columns)} has no value {unknown[0]}; it has {every}"
        near = nearest(unknown[0], {label for _, label in labels})
        yield _check(text, near if near.startswith("did") else f"correct {_FIELD}.names")
        return
    count = len(actions.names or labels)
    problem = _dimension(spec, actions, count)
    yield problem or _check(
        f"{count} numbers of {' and '.join(actions.columns)}"
        + (", as relative poses" if actions.representation == "RelativePose" else ""),
        verdict=Verdict.OK,
    )


def check_proprioception(spec: Spec, volume: Path | None) -> Iterator[Check]:
    """Say where the actions of AgiBotWorld have to be; ``volume`` is None if it is not here."""
    agibot = spec.dataset.agibot
    if agibot is None or spec.dataset.actions is None:
        return
    folder = f"{(agibot.path or f'datasets/{agibot.prefix}').rstrip('/')}/proprio_stats"
    root = None if volume is None else volume / (spec.storage.sub_path or "")
    missing = [n for n in agibot.task_ids if not (root and (root / folder / str(n)).is_dir())]
    if missing:
        tasks = ", ".join(map(str, missing))
        where = "cannot be seen from here" if root is None else "is not there"
        yield _check(
            f"archives with actions are not downloaded, and {folder} of task {tasks} {where}",
            f"unpack the proprio_stats of these tasks to {folder}/TASK/EPISODE/proprio_stats.h5",
            Verdict.UNKNOWN if root is None else Verdict.WARN,
        )


def check_sequences(plan: Plan, volume: Path | None) -> Iterator[Check]:
    """Check that the samples' sequences are on ``volume`` (None: not here)."""
    spec = plan.resource.spec
    if volume is None:
        return
    root = volume / (spec.storage.sub_path or "")
    for number, sample in enumerate(spec.inference.samples):
        # those of the dataset's windows are written later
        if not sample.actions or sample.actions.startswith(("val/", "train/")):
            continue
        if not (root / sample.actions).is_file():
            field = f"spec.inference.samples[{number}].actions"
            yield _check(f"{sample.actions} is not on the volume", f"put it there, or fix {field}")


def _matches(name: str, labels: Sequence[tuple[str, str]]) -> bool:
    return any(name in (label, f"{column}.{label}") for column, label in labels)


def _dimension(spec: Spec, actions: ActionsSpec, count: int) -> Check | None:
    """Return what is wrong with the number of values, if anything."""
    if actions.representation == "RelativePose":
        if count in (7, 8):
            return None
        text = f"RelativePose takes 7 or 8 numbers ({_POSE}), and {count} are selected"
        return _check(text, f"choose them with {_FIELD}.names, or use representation: Absolute")
    if spec.per_clip and count != DIMENSION:
        text = f"PerClip takes {DIMENSION} numbers per action, and {count} are selected"
        return _check(
            text, f"choose them with {_FIELD}.names, use RelativePose, or variant: PerFrame"
        )
    return None


def _check(text: str, remedy: str = "", verdict: Verdict = Verdict.FAIL) -> Check:
    return Check("actions", verdict, text, remedy)
