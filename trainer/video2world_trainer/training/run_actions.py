"""Determine the actions of a run: those of its data set, normalised as its weights expect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from video2world_common.action_statistics import ACTIONS_FILE, ActionStatistics
from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.per_clip_actions import DIMENSION
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.checkpoint.run_config import RunConfig, actions_of
from video2world_trainer.distributed.process_group import World
from video2world_trainer.model.action_conditioning import ActionKind
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.network import initial_weights_path

__all__ = ["actions_of_run"]

_KEY = "model.action_conditioning"
_REPRESENTATIONS = {"absolute": "Absolute", "relative_pose": "RelativePose"}


def actions_of_run(config: TrainConfig, world: World) -> RecordedActions | None:
    """Return the actions that a run reads; None if it reads none.

    Names and statistics are those of the data set. A run that resumes, or starts from
    action-conditioned weights, keeps the normalisation that they were trained with, and says so if
    it differs: another one would change the meaning of what they have learnt.

    Raises:
        UserError: the data set has no actions, or others than the weights were trained with.
    """
    source, run = _trained_with(config)
    known = actions_of(source, run)
    if config.action_conditioning == "none":
        if known is not None:
            raise UserError(
                f"{_KEY}=none: {source} was trained with actions; set {_KEY}={known.kind} "
                "(spec.training.conditioning.actions), or start from other weights under another "
                "job.name"
            )
        return None
    kind = cast(ActionKind, config.action_conditioning)
    path = _data_folder(config) / ACTIONS_FILE
    found = ActionStatistics.read(path)
    if known is None:
        if kind == "per_clip" and config.size != "Tiny":
            _require_published(found, path)
        return RecordedActions(kind, found)
    if known.kind != kind:
        raise UserError(
            f"{_KEY}={kind}: {source} was trained with {known.kind}; set {_KEY}={known.kind}, or "
            "start from other weights under another job.name"
        )
    is_published = run.actions is None
    _require_same(found, path, known.statistics, source, by_name=not is_published)
    offset, scale = known.statistics.offset, known.statistics.scale
    if (found.offset, found.scale) != (offset, scale) and world.is_main_rank:
        say(
            f"note: actions are normalised as {source} was trained, not by the statistics in "
            f"{path}, which differ"
        )
    if is_published:  # the names and ranges of its data are not published
        return RecordedActions(kind, replace(found, offset=offset, scale=scale))
    return known


def _trained_with(config: TrainConfig) -> tuple[Path, RunConfig]:
    """Return what the run resumes or starts from, and the record of it."""
    own = CheckpointFolder(config.checkpoint_folder)
    if own.iterations() and own.config_path.is_file():
        return own.config_path, RunConfig.read(own.config_path)
    start = initial_weights_path(config)
    if start is None:
        return own.config_path, RunConfig()
    return start, RunConfig.read(start.parent / "config.json")


def _data_folder(config: TrainConfig) -> Path:
    """Return the data set's folder, which contains that of the training split."""
    split = Path(config.dataset_dir)
    return split if (split / "train").is_dir() else split.parent


def _require_published(found: ActionStatistics, path: Path) -> None:
    if found.dimension != DIMENSION:
        raise UserError(
            f"{path}: {found.dimension} numbers per action; {_KEY}=per_clip reads "
            f"{DIMENSION} (pose and gripper); set {_KEY}=per_frame for any number"
        )


def _require_same(
    found: ActionStatistics, path: Path, known: ActionStatistics, source: Path, *, by_name: bool
) -> None:
    """Check that the data set has the actions that weights were trained with.

    Args:
        found: the data set's, read from ``path``.
        path: the data set's file.
        known: those of the weights.
        source: the weights' file or record.
        by_name: compare names too.

    Raises:
        UserError: their dimension, names or representation differ.
    """
    remedy = (
        "prepare the data set with the same actions (spec.dataset.actions), or start from weights "
        "without actions under another job.name"
    )
    if found.dimension != known.dimension:
        raise UserError(
            f"{path}: {found.dimension} numbers per action ({', '.join(found.names)}), but "
            f"{source} was trained with {known.dimension} ({', '.join(known.names)}); {remedy}"
        )
    if found.representation != known.representation:
        raise UserError(
            f"{path}: actions are {_REPRESENTATIONS[found.representation]}, but {source} was "
            f"trained with {_REPRESENTATIONS[known.representation]}; {remedy}"
        )
    if by_name and found.names != known.names:
        raise UserError(
            f"{path}: actions are {', '.join(found.names)}, but {source} was trained with "
            f"{', '.join(known.names)}; {remedy}"
        )
