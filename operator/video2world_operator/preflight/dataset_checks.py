"""Check the data set before it is downloaded: revision, tasks, camera, episodes, window length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.lerobot_cameras import cameras_of, choose_camera
from video2world_operator.api.dataset_spec import AgiBotDataset, LeRobotDataset
from video2world_operator.api.errors import nearest
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.action_checks import check_actions
from video2world_operator.preflight.check import Check, Verdict
from video2world_operator.preflight.facts import AgiBotFacts, LeRobotFacts
from video2world_operator.preflight.requirements import ARCHIVES

__all__ = ["BETA_DEFECTS", "check_dataset", "dataset_disk"]

Facts = AgiBotFacts | LeRobotFacts | None
GB = 1e9
# Bytes of windows per byte of the source: 0.6 in benchmarks/results/lerobot.json, but more if the
# source was compressed harder than x264 does at crf 18.
WINDOWS = 3

# Tasks of AgiBotWorld-Beta with known defects, as listed by the converter agibot2lerobot of
# https://github.com/Tavish9/any4lerobot
BETA_DEFECTS: Mapping[str, frozenset[int]] = {
    "some of its videos are corrupt": frozenset((380, 384, 428, 460, 505, 510, 711)),
    "in some episodes, actions are longer than the recording": frozenset(
        (352, 354, 359, 361, 368, 376, 377, 410, 414, 421)
    ),
}


def dataset_disk(resource: Video2WorldPostTrain, facts: Facts) -> float:
    """Return the bytes that the data set needs in addition to the estimate made without facts."""
    dataset = resource.spec.dataset
    if isinstance(facts, AgiBotFacts) and dataset.agibot and dataset.agibot.keep_archives:
        known = [sum(sizes.values()) for sizes in facts.archives.values() if sizes]
        return sum(known) - ARCHIVES * len(known)
    if isinstance(facts, LeRobotFacts) and dataset.lerobot and facts.bytes is not None:
        return WINDOWS * _wanted_bytes(dataset.lerobot, facts)
    return 0.0


def check_dataset(plan: Plan, facts: Facts) -> Iterator[Check]:
    """Check what is known of the data set."""
    dataset, frames = plan.resource.spec.dataset, plan.resource.spec.num_frames + 1
    if dataset.agibot:
        if isinstance(facts, AgiBotFacts):
            yield from _agibot(dataset.agibot, facts)
        if dataset.agibot.release == "Beta":
            yield from _defects(dataset.agibot)
    if dataset.lerobot and isinstance(facts, LeRobotFacts):
        yield from _lerobot(dataset.lerobot, facts, frames)
        if isinstance(facts.info, dict) and isinstance(facts.info.get("features"), dict):
            yield from check_actions(plan.resource.spec, facts.info["features"])


def _check(text: str, remedy: str = "", verdict: Verdict = Verdict.FAIL) -> Check:
    return Check("dataset", verdict, text, remedy)


def _no_revision(repository: str, revision: str | None, field: str) -> Check:
    text = f"{repository} has no revision {revision or 'main'}"
    return _check(text, f"correct {field}.revision, or remove it")


# ---------------------------------------------------------------------- AgiBotWorld


def _agibot(agibot: AgiBotDataset, facts: AgiBotFacts) -> Iterator[Check]:
    repository, field = agibot.repository, "spec.dataset.agibot"
    if not facts.revision:
        yield _no_revision(repository, agibot.revision, field)
        return
    for task, sizes in facts.archives.items():
        if not sizes:
            yield _check(f"{repository} has no archives of task {task}", f"correct {field}.taskIDs")
            continue
        part = "all of them are kept" if agibot.keep_archives else "of which videos are downloaded"
        count = f"{len(sizes)} archive{'s' if len(sizes) > 1 else ''}"
        text = f"task {task}: {count}, {sum(sizes.values()) / GB:.1f} GB, {part}"
        yield _check(text, verdict=Verdict.OK)


def _defects(agibot: AgiBotDataset) -> Iterator[Check]:
    for what, tasks in BETA_DEFECTS.items():
        if named := sorted(tasks & set(agibot.task_ids)):
            text = f"task {', '.join(map(str, named))} of AgiBotWorld-Beta: {what}"
            remedy = "none is needed: report.html of the dataset names what is left out"
            yield _check(text, remedy, Verdict.WARN)


# ---------------------------------------------------------------------- LeRobot


def _lerobot(lerobot: LeRobotDataset, facts: LeRobotFacts, frames: int) -> Iterator[Check]:
    field, place = "spec.dataset.lerobot", lerobot.repo_id or lerobot.path or ""
    if not facts.revision:
        yield _no_revision(place, lerobot.revision, field)
        return
    if facts.info is None:
        inside = f" in {lerobot.subfolder}" if lerobot.subfolder else ""
        text = f"{place} has no meta/info.json{inside}, so it is no LeRobotDataset"
        yield _check(text, f"set {field}.subfolder to the folder that holds meta/")
        return
    features = facts.info.get("features") if isinstance(facts.info, dict) else None
    if not isinstance(features, dict):
        yield _check(f"{place}: meta/info.json lists no features", verdict=Verdict.UNKNOWN)
        return
    cameras = cameras_of(features)
    try:
        camera = choose_camera(cameras, lerobot.camera)
    except UserError as error:
        colors = [name for name, one in cameras.items() if not one.depth]
        short = [name.rpartition(".")[2] for name in colors]
        near = nearest(lerobot.camera, {*colors, *short}) if lerobot.camera else ""
        remedy = near if near.startswith("did") else f"set {field}.camera to one of them"
        text = str(error).replace("--camera", "camera", 1)
        yield _check(f"{place}: {text}", remedy)
        return
    yield _check(_summary(lerobot, facts, camera), verdict=Verdict.OK)
    yield from _episodes(lerobot, facts.info)
    yield from _windows(lerobot, facts.info, frames)


def _summary(lerobot: LeRobotDataset, facts: LeRobotFacts, camera: str) -> str:
    numbers = {"total_episodes": "episodes", "fps": "fps"}
    known = {what: _number(facts.info, name) for name, what in numbers.items()}
    parts = [f"{lerobot.repo_id or lerobot.path}: a LeRobotDataset, camera {camera}"]
    parts += [f"{number:g} {what}" for what, number in known.items() if number]
    if facts.bytes is not None:
        parts.append(f"about {_wanted_bytes(lerobot, facts) / GB:.1f} GB are downloaded")
    return ", ".join(parts)


def _wanted_bytes(lerobot: LeRobotDataset, facts: LeRobotFacts) -> float:
    """Return the bytes of the wanted episodes, as if all were equally long."""
    total = _number(facts.info, "total_episodes")
    if not lerobot.episodes or not total:
        return facts.bytes or 0.0
    wanted = [*lerobot.episodes, *lerobot.validation_episodes]
    count = sum(last - first + 1 for first, last in map(_range, wanted))
    return (facts.bytes or 0.0) * min(count / total, 1.0)


def _range(entry: str | int) -> tuple[int, int]:
    first, _, last = str(entry).partition("-")
    return int(first), int(last or first)


def _episodes(lerobot: LeRobotDataset, info: Mapping[str, Any]) -> Iterator[Check]:
    total = _number(info, "total_episodes")
    fields: Mapping[str, Sequence[str | int]] = {
        "episodes": lerobot.episodes,
        "validationEpisodes": lerobot.validation_episodes,
    }
    for name, entries in fields.items():
        beyond = [str(entry) for entry in entries if total and _range(entry)[1] >= total]
        if beyond:
            text = f"meta/info.json counts {total:.0f} episodes, from 0, and {name} has "
            text += ", ".join(beyond[:5]) + (" and more" if len(beyond) > 5 else "")
            remedy = f"correct spec.dataset.lerobot.{name}, unless the dataset has gaps"
            yield _check(text, remedy, Verdict.WARN)


def _windows(lerobot: LeRobotDataset, info: Mapping[str, Any], frames: int) -> Iterator[Check]:
    """Check that a window has enough frames for a clip of the model."""
    fps = _number(info, "fps")
    if not fps or lerobot.window_seconds * fps >= frames:
        return
    enough = ceil(10 * frames / fps) / 10
    text = f"{lerobot.window_seconds:g} s at {fps:g} fps are {lerobot.window_seconds * fps:.0f} "
    text += f"frames, and a clip of the model needs {frames}: windows are joined, or dropped"
    yield _check(
        text, f"set spec.dataset.lerobot.windowSeconds to {enough:g} or more", Verdict.WARN
    )


def _number(info: Mapping[str, Any], name: str) -> float | None:
    value = info.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < 1e12 else None
