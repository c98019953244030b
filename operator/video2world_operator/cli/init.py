"""Write a commented resource file from the answers to five questions, or from flags (v2w init)."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from video2world_operator.cli.common import UsageError

__all__ = ["DATA", "SIZES", "init"]

SIZES = ("Tiny", "2B", "14B")


@dataclass(frozen=True)
class _Data:
    """A kind of dataset: what its location is, and the field that takes it."""

    text: str
    asks: str
    field: str


DATA: Mapping[str, _Data] = {
    "lerobot": _Data(
        "a LeRobotDataset on the Hugging Face Hub", "its repository, such as my-team/cups", "repoID"
    ),
    "videos": _Data(
        "a folder of videos, each with a .txt caption",
        "the folder, relative to the volume, such as my-videos",
        "path",
    ),
    "agibot": _Data("tasks of AgiBotWorld", "their numbers, such as 327 or 327,352", "taskIDs"),
    "prepared": _Data(
        "a folder in the layout of NVIDIA's guide",
        "the folder, relative to the volume, such as datasets/mine",
        "path",
    ),
}
_NO_STRINGS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")  # in YAML 1.1
_HELD_OUT = "validationPercent: 5     # held out of training, to measure whether it helped"
_SIZE_NOTES = {
    "Tiny": "trains on two CPU cores in minutes: is the data right? Then 2B",
    "2B": "Tiny | 2B | 14B",
    "14B": "Tiny | 2B | 14B; needs several GPUs: see v2w preflight",
}
_TEMPLATE = """\
# Made by v2w init. docs/reference/fields.md lists all fields, as does `kubectl explain v2w.spec`.
#   v2w preflight -f {file}     disk, memory, GPUs and licences; how long it will take
#   v2w run -f {file}           on this machine
#   kubectl apply -f {file}     on a cluster with the operator
apiVersion: video2world.dev/v1alpha1
kind: Video2WorldPostTrain
metadata:
  name: {name}
spec:
  model:
    size: {size:<21}# {size_note}
  dataset:
    {kind}:
{source}
  training:
    iterations: {iterations}
    checkpoint:
      everyIterations: {every:<8}# what a restart repeats at most
    # nodes: 2                 # pods of the training group
    # gpusPerNode: 8
    # validation:              # the loss on held-out clips, during training
    #   everyIterations: 500
{evaluation}\
  # credentials:               # of a private or gated repository, on a cluster:
  #   huggingFaceTokenSecret:  #   kubectl create secret generic huggingface \\
  #     name: huggingface      #     --from-literal=token=hf_...
"""
_EVALUATION = """\
  evaluation:                  # held-out clips: post-trained against the base model
    samples: 16
"""


def init(args: argparse.Namespace) -> int:
    """Ask what the flags leave open, and write the file.

    Raises:
        UsageError: an answer is not valid, there is no terminal to ask on, or the file exists.
    """
    from video2world_operator.api.errors import InvalidResource
    from video2world_operator.api.validation import load_resource

    kinds = ", ".join(f"{name} ({one.text})" for name, one in DATA.items())
    kind = args.data or _ask(f"Data: {kinds}", "lerobot", "--data")
    if kind not in DATA:
        raise UsageError(f"--data {kind}: choose one of {', '.join(DATA)}")
    location = args.location or _ask(f"Where: {DATA[kind].asks}", "", "--location")
    camera = args.camera
    if kind == "lerobot" and camera is None:
        camera = _ask("Camera, such as top (empty: the only one)", "", "--camera", optional=True)
    size = args.size or _ask(f"Model: {' | '.join(SIZES)}", "2B", "--size")
    iterations = args.iterations or _ask("Iterations", "1000", "--iterations")
    name = args.name or _name_of(kind, location)
    path = args.output or Path(f"{name}.yaml")
    text = _text(path, name, kind, location, camera or "", size, str(iterations))
    try:
        load_resource(text)
    except InvalidResource as error:
        lines = "\n  ".join(map(str, error.problems))
        raise UsageError(f"this would not be a valid resource:\n  {lines}") from None
    try:
        with path.open("w" if args.force else "x") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists: choose another --output, or --force") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    print(f"{path} is written. Next: v2w preflight -f {path}, then v2w run -f {path}")
    return 0


def _ask(question: str, default: str, flag: str, *, optional: bool = False) -> str:
    """Return the answer; without a terminal, the default.

    Raises:
        UsageError: there is neither an answer nor a default.
    """
    if not sys.stdin.isatty():
        if not (default or optional):
            raise UsageError(f"{flag} is missing, and there is no terminal to ask on")
        return default
    while True:
        try:
            answer = input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
        except EOFError:
            raise UsageError(f"no answer: name it with {flag}") from None
        if answer or optional:
            return answer


def _name_of(kind: str, location: str) -> str:
    """Return a name for the resource: the last part of the location, as Kubernetes allows it."""
    last = "agibot" if kind == "agibot" else PurePosixPath(location).name
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:40].strip("-") or kind


def _text(
    path: Path, name: str, kind: str, location: str, camera: str, size: str, iterations: str
) -> str:
    value = _string(location)
    if kind == "agibot" and re.fullmatch(r"\d+(\s*,\s*\d+)*", location):
        value = f"[{location}]"
    source = [f"{DATA[kind].field}: {value}"]
    if camera:
        source.append(f"camera: {_string(camera)}")
    if kind != "prepared":
        source.append(_HELD_OUT)
    every = min(500, int(iterations)) if iterations.isdecimal() else 500
    return _TEMPLATE.format(
        file=path,
        name=_string(name),
        size=size if size in SIZES else _string(size),
        size_note=_SIZE_NOTES.get(size, ""),
        kind=kind,
        source="\n".join(f"      {line}" for line in source),
        iterations=iterations if iterations.isdecimal() else _string(iterations),
        every=max(every, 1),
        evaluation="" if kind == "prepared" else _EVALUATION,
    )


def _string(text: str) -> str:
    """Return ``text`` as a string in YAML, quoted unless it is plainly one."""
    is_word = re.fullmatch(r"[A-Za-z][\w./-]*", text) and text.lower() not in _NO_STRINGS
    return text if is_word else json.dumps(text)
