"""Run the inference command on checkpoints, one process each, keeping what exists already."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_common.events import say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from video2world_common.files import cut_name
from video2world_common.markers import Marker, Provenance, file_stamps
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.validation_record import best_checkpoint

__all__ = [
    "Checkpoint",
    "SampleTask",
    "alpha_flags",
    "checkpoint_flags",
    "infer",
    "refuse_reserved_flags",
    "run_worker",
    "sample_task",
    "select_checkpoints",
]

INFERENCE = (sys.executable, "-m", "video2world_trainer.inference")
RESERVED_FLAGS = (
    *("--dit_path", "--batch_input_json", "--input_path", "--input_video", "--save_path"),
    *("--prompt", "--action_path", "--input_annotation"),
)
SPEED_FLAGS = ("--num_gpus=", "--offload")  # change no sample: those that exist are kept
GRACE_SECONDS = 30  # for an inference process to exit after SIGTERM


@dataclass(frozen=True)
class Checkpoint:
    """Weights to generate from.

    ``label`` is the name of their folder of results, ``flags`` are further flags of the inference
    command that they need.
    """

    label: str
    path: Path
    iteration: int | None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleTask:
    """A sample to generate from a checkpoint; ``digest`` identifies its inputs and settings."""

    checkpoint: Checkpoint
    entry: dict[str, Any]
    digest: str

    @property
    def output(self) -> Path:
        """The video."""
        return Path(self.entry["output_video"])

    @property
    def outputs(self) -> tuple[Path, Path]:
        """The video and its JSON description."""
        return self.output, self.output.with_suffix(".json")

    @property
    def files_read(self) -> list[Path]:
        """The files that the sample depends on: checkpoint, input, its caption and its actions."""
        source = Path(self.entry["input_video"])
        window = source.parent.parent
        files = [self.checkpoint.path, source, window / "metas" / f"{source.stem}.txt"]
        own = window / "actions" / f"{source.stem}.safetensors"
        if self.entry.get("actions"):
            files.append(Path(self.entry["actions"]))
        if own.is_file():  # named only then, so that samples from before there were any are kept
            files.append(own)
        return files

    @property
    def _marker(self) -> Marker:
        return Marker("sample", _digest(str(self.output)))

    @property
    def done(self) -> bool:
        """Whether the video exists and was generated from the same inputs and settings."""
        record = self._marker.read()
        return record is not None and record["summary"].get("wanted") == self.digest

    def finish(self) -> None:
        """Record that the sample is complete."""
        self._marker.write(Provenance().left(self.outputs, timed=True), {"wanted": self.digest})


def sample_task(checkpoint: Checkpoint, entry: dict[str, Any], flags: Sequence[str]) -> SampleTask:
    """Return the task of one entry of a batch file, generated with ``flags``."""
    unread = SampleTask(checkpoint, entry, "")
    read = file_stamps(unread.files_read)
    asked = [one for one in flags if not one.startswith(SPEED_FLAGS)] + [*checkpoint.flags]
    inputs = (entry, asked, str(checkpoint.path), list(read.values()))
    return SampleTask(checkpoint, entry, _digest(*inputs))


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


# --------------------------------------------------------------------- which checkpoints


def checkpoint_flags() -> argparse.ArgumentParser:
    """Return a parent parser: a run's checkpoints, and flags of the inference command."""
    flags = argparse.ArgumentParser(add_help=False)
    add = flags.add_argument
    add("--run_folder", type=Path, required=True, help="the run's checkpoints folder")
    add(
        "--checkpoints",
        nargs="+",
        default=["latest"],
        metavar="NAME",
        help="latest, best (by validation loss), all, an iteration's number, or a weights file "
        "(default: latest)",
    )
    add(
        "--lora_alpha",
        type=float,
        help="alpha of LoRA adapters in weights files that do not record it (a run's own do)",
    )
    add("flags", nargs="*", help="flags of video2world_trainer.inference, after --")
    return flags


def alpha_flags(alpha: float | None) -> tuple[str, ...]:
    """Return the flags of weights files that do not record the alpha of their LoRA adapters."""
    return () if alpha is None else ("--lora_alpha", f"{alpha:g}")


def select_checkpoints(
    names: Sequence[str],
    run_folder: Path,
    field: str,
    *,
    allow_missing: bool = False,
    file_flags: tuple[str, ...] = (),
) -> list[Checkpoint]:
    """Return the selected checkpoints without duplicates.

    Args:
        names: each latest, best, all, the number of an iteration, or a weights file.
        run_folder: the run's checkpoints folder.
        field: the field of the spec that names them, for messages.
        allow_missing: accept iterations of which there is no checkpoint.
        file_flags: flags for weights files, whose training is not recorded.

    Raises:
        UserError: a checkpoint does not exist.
    """
    folder = CheckpointFolder(run_folder)
    existing = sorted(i for i in folder.iterations() if folder.path("model", i).is_file())
    found: dict[str, Checkpoint] = {}
    for name in names:
        for one in _selected(name, folder, existing, field, file_flags, allow_missing):
            found.setdefault(one.label, one)
    return list(found.values())


def _selected(
    name: str,
    folder: CheckpointFolder,
    existing: list[int],
    field: str,
    file_flags: tuple[str, ...],
    allow_missing: bool,
) -> list[Checkpoint]:
    """Return the checkpoints that one name selects."""
    if name == "all":
        if not existing:
            raise UserError(f"{field}: all: there is no checkpoint in {folder.folder}")
        return [_of_run(folder, iteration) for iteration in existing]
    if name == "latest":
        newest = folder.latest_complete(("model",))
        if newest is None:
            raise UserError(f"{field}: latest: there is no checkpoint in {folder.folder}")
        return [_of_run(folder, newest)]
    if name == "best":
        return [_of_run(folder, best_checkpoint(folder))]
    if re.fullmatch("[0-9]+", name):
        if int(name) not in existing and not allow_missing:
            listed = ", ".join(map(str, existing)) or "none"
            raise UserError(
                f"{field}: {name}: there is no checkpoint of this iteration in {folder.folder} "
                f"(there is {listed}); name another, or raise spec.training.checkpoint.keep"
            )
        return [_of_run(folder, int(name))]
    path = Path(name)
    if not path.exists():
        raise UserError(f"{field}: {name}: there is no such file on the volume")
    label = f"{cut_name(path.stem, 80)}-{_digest(name)[:8]}"
    return [Checkpoint(label, path, None, file_flags)]


def _of_run(folder: CheckpointFolder, iteration: int) -> Checkpoint:
    path = folder.path("model", iteration)
    return Checkpoint(path.stem, path, iteration)


# --------------------------------------------------------------------- the process


def refuse_reserved_flags(flags: Sequence[str]) -> None:
    """Check the flags that users pass on to the inference command.

    Raises:
        UserError: a flag is one that :func:`infer` sets.
    """
    for flag in RESERVED_FLAGS:
        if any(one.partition("=")[0] == flag for one in flags):
            raise UserError(f"{flag} after --: it is set for each checkpoint; leave it out")


def infer(
    checkpoint: Checkpoint,
    todo: Sequence[SampleTask],
    flags: Sequence[str],
    on_event: Callable[[str, dict[str, Any]], None],
) -> str | None:
    """Generate samples of one checkpoint in a process of its own, which releases its memory.

    Each finished sample is recorded before ``on_event`` is called with it.

    Args:
        checkpoint: the weights.
        todo: the samples to generate.
        flags: flags of the inference command, for all checkpoints.
        on_event: called with the kind and the fields of events about progress and samples.

    Returns:
        Why the command refused some samples; None if it did not.

    Raises:
        SystemExit: the process failed otherwise, with its exit code.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as batch:
        json.dump([task.entry for task in todo], batch)
        batch.flush()
        argv = [*INFERENCE, "--dit_path", str(checkpoint.path), "--batch_input_json", batch.name]
        argv += [*flags, *checkpoint.flags]
        tasks = {str(one.output): one for one in todo}

        def finish(kind: str, event: dict[str, Any]) -> None:
            if kind == "sample" and (task := tasks.get(str(event.get("path")))) is not None:
                task.finish()
            on_event(kind, event)

        return run_worker(argv, finish)


def run_worker(argv: Sequence[str], on_event: Callable[[str, dict[str, Any]], None]) -> str | None:
    """Run a worker as a part of this stage; it ends with this process.

    Args:
        argv: the command.
        on_event: called with the kind and the fields of its events but the last.

    Returns:
        Why the command refused its input; None if it did not.

    Raises:
        SystemExit: it failed otherwise, with its exit code.
    """
    # variables of the stage, which is this process and not its children
    hidden = ("V2W_INPUTS_HASH", "V2W_LATER_STAGES")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
    try:
        refusal = _follow(child, on_event)
        code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
    if code == EXIT_USER_ERROR:
        return refusal or "see the log"
    if code:
        raise SystemExit(code if code > 0 else EXIT_FAILURE)
    return None


def _follow(child: subprocess.Popen[bytes], on_event: Callable[[str, dict[str, Any]], None]) -> str:
    """Forward the output of a worker; return the message of its failure, if any."""
    refusal = ""
    assert child.stdout is not None
    for raw in child.stdout:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        event = _event(line)
        event.pop("stage", None)
        match event.pop("event", None):
            case None:
                say(line)
            case "failed":
                refusal = str(event.get("message", ""))
            case "finished" | "skipped":
                pass
            case str(kind):
                on_event(kind, event)
    return refusal


def _event(line: str) -> dict[str, Any]:
    if not line.startswith('{"event"'):
        return {}
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
