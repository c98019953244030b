"""Collect what is known of the data set before it is downloaded, from the Hub or the volume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.lerobot_cameras import cameras_of, choose_camera
from video2world_operator.api.dataset_spec import AgiBotDataset, LeRobotDataset
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.preflight.facts import Access, AgiBotFacts, LeRobotFacts
from video2world_operator.preflight.hub_files import Listing, NotThere, Repository

__all__ = ["dataset_facts"]

LARGEST_INFO = 16 << 20  # bytes
INFO = "meta/info.json"


def dataset_facts(
    resource: Video2WorldPostTrain, access: Mapping[str, Access], volume: Path | None
) -> AgiBotFacts | LeRobotFacts | None:
    """Observe the data set; None if nothing is known of it, as of other sources.

    Args:
        access: the Hub's answers by repository: it is asked only where access is allowed.
        volume: folder of the volume, if it is on this machine.
    """
    dataset = resource.spec.dataset
    if dataset.lerobot and dataset.lerobot.path:
        return _on_volume(dataset.lerobot, volume)
    if access.get(f"datasets/{dataset.repository}") is not Access.ALLOWED:
        return None
    try:
        if dataset.lerobot:
            return _lerobot(dataset.lerobot)
        return _agibot(dataset.agibot) if dataset.agibot else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # not reachable any more, or an answer that is not the Hub's


# ---------------------------------------------------------------------- AgiBotWorld


def _agibot(agibot: AgiBotDataset) -> AgiBotFacts:
    repository = Repository(agibot.repository, agibot.revision or "")
    try:
        repository.check_revision()
    except NotThere:
        return AgiBotFacts(revision=False)
    archives: dict[int, Mapping[str, int]] = {}
    for task in agibot.task_ids:
        try:
            found = repository.files(f"observations/{task}").sizes
        except NotThere:
            found = {}
        archives[task] = {path: size for path, size in found.items() if ".tar" in path}
    return AgiBotFacts(archives=archives)


# ---------------------------------------------------------------------- LeRobot


def _lerobot(lerobot: LeRobotDataset) -> LeRobotFacts:
    repository = Repository(lerobot.repo_id or "", lerobot.revision or "")
    try:
        repository.check_revision()
    except NotThere:
        return LeRobotFacts(revision=False)
    root = f"{lerobot.subfolder.rstrip('/')}/" if lerobot.subfolder else ""
    try:
        info = repository.read_json(root + INFO)
    except NotThere:
        return LeRobotFacts()
    try:
        camera = choose_camera(cameras_of(info["features"]), lerobot.camera)
    except (UserError, AttributeError, LookupError, TypeError):  # info.json can hold anything
        return LeRobotFacts(info=info)
    return LeRobotFacts(info=info, bytes=_camera_bytes(repository, root, info, camera))


def _camera_bytes(
    repository: Repository, root: str, info: Mapping[str, Any], camera: str
) -> float | None:
    """Return the size of the files of a camera, of all episodes; None if it is not known."""
    is_image = info["features"][camera]["dtype"] == "image"
    by_file = f"{root}data" if is_image else f"{root}videos/{camera}"
    by_episode = f"{root}data/chunk-000" if is_image else f"{root}videos/chunk-000/{camera}"
    if "episode_" in str(info.get("data_path" if is_image else "video_path")):  # v2.0 and v2.1
        found = _files(repository, by_episode, recursive=False)
        if found is None or not found.sizes:
            return None
        mean = sum(found.sizes.values()) / len(found.sizes)
        return mean * max(int(info["total_episodes"]), len(found.sizes))
    found = _files(repository, by_file, recursive=True)
    return sum(found.sizes.values()) if found is not None and found.complete else None


def _files(repository: Repository, folder: str, *, recursive: bool) -> Listing | None:
    try:
        return repository.files(folder, recursive=recursive)
    except NotThere:
        return None


def _on_volume(lerobot: LeRobotDataset, volume: Path | None) -> LeRobotFacts | None:
    if volume is None:
        return None
    root = volume / (lerobot.path or "") / (lerobot.subfolder or "")
    path = root / INFO
    try:
        if not path.is_file():
            return LeRobotFacts()
        if path.stat().st_size > LARGEST_INFO:
            return None
        return LeRobotFacts(info=json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError):
        return None
