"""Give the tiny data set actions: statistics, and a file per window."""

import dataclasses
import json

import torch
from safetensors.torch import save_file

from video2world_common.action_statistics import ActionStatistics

ACTIONS = "model.action_conditioning=per_frame"


def statistics(names=("left", "right", "grip"), **changes):
    count = len(names)
    made = ActionStatistics(
        names=tuple(names),
        representation="absolute",
        source="test",
        fps=10.0,
        rows=30,
        mean=(0.5,) * count,
        std=(2.0,) * count,
        min=(-9.0,) * count,
        max=(9.0,) * count,
        offset=(0.5,) * count,
        scale=(0.5,) * count,
    )
    return dataclasses.replace(made, **changes)


def write_statistics(volume, made):
    path = volume / "datasets/d/actions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made.to_json()))
    return path


def write_actions(volume, stem, rows, split="train"):
    folder = volume / "datasets/d" / split / "actions"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"actions": rows.contiguous()}, folder / f"{stem}.safetensors")


def add_actions(volume, made=None, rows=8, split="train"):
    """Random actions for every window of a split, and the data set's statistics."""
    made = made or statistics()
    write_statistics(volume, made)
    generator = torch.Generator().manual_seed(7)
    for path in sorted((volume / "datasets/d" / split / "latents").glob("*.safetensors")):
        write_actions(
            volume, path.stem, torch.randn(rows, made.dimension, generator=generator), split
        )
    return made
