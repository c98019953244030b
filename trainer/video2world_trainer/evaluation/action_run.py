"""Run the action gate on a checkpoint in a process of its own, which releases its memory."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from video2world_common.action_statistics import ACTIONS_FILE
from video2world_common.events import say
from video2world_common.files import read_json, write_json
from video2world_common.latent_folders import LATENTS
from video2world_common.markers import file_stamps
from video2world_trainer.checkpoint.run_config import RunConfig, actions_of
from video2world_trainer.checkpoint_runs import Checkpoint, run_worker
from video2world_trainer.training.clip_actions import ACTIONS

__all__ = ["measure_actions", "reads_actions"]

COMMAND = (sys.executable, "-m", "video2world_trainer.action_losses")
FILE = "actions.json"  # in the evaluation's folder


def reads_actions(model: Checkpoint) -> bool:
    """Whether a checkpoint is action-conditioned."""
    return actions_of(model.path, RunConfig.read(model.path.parent / "config.json")) is not None


def measure_actions(model: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Return the verdict of the action gate, measured unless it exists for the same inputs.

    Args:
        model: an action-conditioned checkpoint.
        args: the flags of the evaluation.

    Returns:
        As :func:`video2world_trainer.evaluation.action_gate.gate`, with ``motion``, ``losses`` and
        ``names`` of the clips. If the data set lacks what is needed, only ``followed`` (None) and
        ``text``.

    Raises:
        SystemExit: the process failed, with its exit code.
    """
    output = args.save_dir / FILE
    argv = [*COMMAND, "--dit_path", str(model.path), "--dataset_dir", str(args.dataset_dir)]
    argv += ["--clips", str(args.samples), "--seed", str(args.seed), "--output", str(output)]
    argv += ["--", *args.flags, *model.flags]
    wanted = _digest(argv, model.path, args.dataset_dir)
    found = read_json(output)
    if isinstance(found, dict) and found.get("wanted") == wanted:
        say(f"{model.label}: its actions are measured already")
        return found
    say(f"{model.label}: measuring whether it follows its actions")
    refusal = run_worker(argv, lambda kind, fields: None)
    if refusal is not None:
        text = f"Whether the model follows its actions could not be measured: {refusal}"
        return {"followed": None, "text": text}
    measured: dict[str, Any] = read_json(output) | {"wanted": wanted}
    write_json(output, measured)
    return measured


def _digest(argv: list[str], checkpoint: Path, dataset_dir: Path) -> str:
    """Identify everything that the verdict depends on."""
    val = dataset_dir / "val"
    read = [path for part in (LATENTS, ACTIONS) for path in sorted((val / part).glob("[!.]*"))]
    stamps = file_stamps([checkpoint, dataset_dir / ACTIONS_FILE, *read])
    return hashlib.sha256(json.dumps([argv[1:], stamps]).encode()).hexdigest()[:16]
