"""The inference stage: every sample from every checkpoint asked for, shared between pods.

``python -m video2world_trainer.sweep ... -- FLAGS`` makes each checkpoint's samples with one
``python -m video2world_trainer.inference FLAGS`` of its own, so that nothing of one checkpoint
stays in memory for the next. A sample that was finished with the same settings is not made again.
At the end the results page is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_common.events import emit, say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from video2world_common.files import cut_name
from video2world_common.markers import Marker, Provenance, file_stamps
from video2world_common.sharding import shard_flags, shard_of
from video2world_common.stage_runner import run_stage
from video2world_trainer.checkpoint.folder import CheckpointFolder, held
from video2world_trainer.generation.batch_file import read_batch
from video2world_trainer.results.page import write_page

__all__ = ["main", "parser"]

INFERENCE = (sys.executable, "-m", "video2world_trainer.inference")
FIELD = "spec.inference.checkpoints"
OURS = ("--dit_path", "--batch_input_json", "--input_path", "--save_path", "--prompt")
GRACE = 30  # seconds that an inference gets to end after SIGTERM


def parser() -> argparse.ArgumentParser:
    """The flags; what stands behind ``--`` goes to every inference."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_trainer.sweep",
        description=__doc__,
        parents=[shard_flags()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("--run_folder", type=Path, required=True, help="the run's checkpoints folder")
    add(
        "--checkpoints",
        nargs="+",
        default=["latest"],
        metavar="NAME",
        help="latest, all, an iteration's number, or a weights file (default: latest)",
    )
    add(
        "--batch_input_json",
        type=Path,
        required=True,
        help='[{"input_video", "prompt", "output_video"}, ...]',
    )
    add(
        "--by_checkpoint",
        action="store_true",
        help="put samples into a folder for each checkpoint beside output_video, such as "
        "iter_000000500/; without it there can be one checkpoint only",
    )
    add(
        "--pass_over_missing",
        action="store_true",
        help="a checkpoint that has been deleted is told of, not an error",
    )
    add(
        "--lora_alpha",
        type=float,
        help="of LoRA adapters in weights files that do not say it; the run's own do",
    )
    add("flags", nargs="*", help="flags of video2world_trainer.inference, after --")
    return flags


@dataclass(frozen=True)
class _Checkpoint:
    """``label`` names its folder under the results."""

    label: str
    path: Path
    iteration: int | None


@dataclass(frozen=True)
class _Item:
    """One sample from one checkpoint; ``wanted`` stands for all that decides its content."""

    checkpoint: _Checkpoint
    entry: dict[str, Any]
    wanted: str

    @property
    def output(self) -> Path:
        return Path(self.entry["output_video"])

    @property
    def outputs(self) -> tuple[Path, Path]:
        """The video and its description."""
        return self.output, self.output.with_suffix(".json")

    @property
    def _marker(self) -> Marker:
        return Marker("sample", _digest(str(self.output)))

    @property
    def done(self) -> bool:
        """Whether the video is there and was made with these very settings."""
        record = self._marker.read()
        return record is not None and record["summary"].get("wanted") == self.wanted

    def finish(self) -> None:
        """Remember that the sample is whole."""
        self._marker.write(Provenance().left(self.outputs, timed=True), {"wanted": self.wanted})


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _checkpoints(args: argparse.Namespace) -> list[_Checkpoint]:
    """The checkpoints that are meant, each once.

    Raises:
        UserError: there is no such checkpoint.
    """
    folder = CheckpointFolder(args.run_folder)
    there = sorted(i for i in folder.iterations() if folder.path("model", i).is_file())
    found: dict[str, _Checkpoint] = {}
    for name in args.checkpoints:
        for one in _meant(name, folder, there, passing=args.pass_over_missing):
            found.setdefault(one.label, one)
    if len(found) > 1 and not args.by_checkpoint:
        raise UserError("--checkpoints: several need --by_checkpoint, as they share file names")
    return list(found.values())


def _meant(
    name: str, folder: CheckpointFolder, there: list[int], *, passing: bool
) -> list[_Checkpoint]:
    if name == "all":
        if not there:
            raise UserError(f"{FIELD}: all: there is no checkpoint in {folder.folder}")
        return [_of_run(folder, iteration) for iteration in there]
    if name == "latest":
        newest = folder.newest_whole(("model",))
        if newest is None:
            raise UserError(f"{FIELD}: latest: there is no checkpoint in {folder.folder}")
        return [_of_run(folder, newest)]
    if re.fullmatch("[0-9]+", name):
        if int(name) not in there and not passing:
            listed = ", ".join(map(str, there)) or "none"
            raise UserError(
                f"{FIELD}: {name}: there is no checkpoint of this iteration in {folder.folder} "
                f"(there is {listed}); name another, or raise spec.training.checkpoint.keep"
            )
        return [_of_run(folder, int(name))]
    path = Path(name)
    if not path.exists():
        raise UserError(f"{FIELD}: {name}: there is no such file on the volume")
    return [_Checkpoint(f"{cut_name(path.stem, 80)}-{_digest(name)[:8]}", path, None)]


def _of_run(folder: CheckpointFolder, iteration: int) -> _Checkpoint:
    path = folder.path("model", iteration)
    return _Checkpoint(path.stem, path, iteration)


def _items(args: argparse.Namespace, checkpoints: Sequence[_Checkpoint]) -> list[_Item]:
    entries = read_batch(args.batch_input_json)
    for number, entry in enumerate(entries):
        if not entry.get("output_video"):
            raise UserError(f"{args.batch_input_json}: entry {number}: output_video is missing")
    items = []
    for checkpoint in checkpoints:
        for entry in entries:
            output = Path(entry["output_video"])
            if args.by_checkpoint:
                output = output.parent / checkpoint.label / output.name
            made = entry | {"output_video": str(output)}
            flags = [*args.flags, *_lora_flags(args, checkpoint)]
            read = file_stamps(_files_read(checkpoint, entry))
            facts = (made, flags, str(checkpoint.path), list(read.values()))
            items.append(_Item(checkpoint, made, _digest(*facts)))
    return items


def _lora_flags(args: argparse.Namespace, checkpoint: _Checkpoint) -> list[str]:
    """What an inference needs to know of a weights file's adapters."""
    if args.lora_alpha is None or checkpoint.iteration is not None:
        return []
    return ["--lora_alpha", f"{args.lora_alpha:g}"]


def _files_read(checkpoint: _Checkpoint, entry: dict[str, str]) -> list[Path]:
    """What a sample is made of: checkpoint, input, and the input's caption, where it has one."""
    source = Path(entry["input_video"])
    return [checkpoint.path, source, source.parent.parent / "metas" / f"{source.stem}.txt"]


class _Sweep:
    """One pod's part of the work, and what it tells of the whole."""

    def __init__(self, args: argparse.Namespace, checkpoints: Sequence[_Checkpoint]) -> None:
        self.args = args
        self.items = _items(args, checkpoints)
        self.mine = shard_of(args).of(self.items)
        self.passing: bool = args.pass_over_missing
        self.stage = os.environ.get("V2W_STAGE", "inference")
        self.refused: list[str] = []
        self.missing: set[str] = set()

    def tell(self, checkpoint: _Checkpoint) -> None:
        """How many samples of a checkpoint there are, whoever made them."""
        of_it = [item for item in self.items if item.checkpoint == checkpoint]
        fields: dict[str, Any] = {"checkpoint": checkpoint.label}
        if checkpoint.iteration is not None:
            fields["iteration"] = checkpoint.iteration
        if checkpoint.label in self.missing:
            fields["message"] = "the checkpoint was deleted before its samples were made"
        done = sum(item.done for item in of_it)
        emit("samples", self.stage, done=done, total=len(of_it), **fields)

    def run(self) -> None:
        """Make what is not made yet of this pod's share; user errors are collected."""
        for checkpoint in dict.fromkeys(item.checkpoint for item in self.items):
            self.tell(checkpoint)
        for checkpoint in dict.fromkeys(item.checkpoint for item in self.mine):
            todo = [i for i in self.mine if i.checkpoint == checkpoint and not i.done]
            if not todo:
                say(f"{checkpoint.label}: nothing to do, this share's samples are made")
                continue
            with held(checkpoint.path) as there:
                if there:
                    self._infer(checkpoint, todo)
                elif self.passing:
                    self.missing.add(checkpoint.label)
                    say(
                        f"{checkpoint.label} was deleted before its samples were made: raise "
                        "spec.training.checkpoint.keep to have them"
                    )
                    self.tell(checkpoint)
                else:
                    raise UserError(f"{FIELD}: {checkpoint.path} was deleted meanwhile")

    def _infer(self, checkpoint: _Checkpoint, todo: Sequence[_Item]) -> None:
        say(f"{checkpoint.label}: {len(todo)} samples")
        hidden = ("V2W_INPUTS_HASH", "V2W_LATER_STAGES")  # of the stage, which is this process
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as batch:
            json.dump([item.entry for item in todo], batch)
            batch.flush()
            argv = [
                *INFERENCE,
                "--dit_path",
                str(checkpoint.path),
                "--batch_input_json",
                batch.name,
            ]
            argv += [*self.args.flags, *_lora_flags(self.args, checkpoint)]
            child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
            try:
                refusal = self._follow(child, checkpoint, {str(i.output): i for i in todo})
                code = child.wait()
            finally:
                if child.poll() is None:
                    child.terminate()
                    try:
                        child.wait(GRACE)
                    except subprocess.TimeoutExpired:
                        child.kill()
        if code == EXIT_USER_ERROR:
            self.refused.append(f"{checkpoint.label}: {refusal or 'see the log'}")
        elif code:
            raise SystemExit(code if code > 0 else EXIT_FAILURE)

    def _follow(
        self, child: subprocess.Popen[bytes], checkpoint: _Checkpoint, todo: dict[str, _Item]
    ) -> str:
        """Pass on what an inference prints, under this stage's name; why it refused, if it did."""
        refusal = ""
        assert child.stdout is not None
        for raw in child.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            event = _event(line)
            match event.pop("event", None):
                case None:
                    say(line)
                case "sample":
                    if (item := todo.get(str(event.get("path")))) is not None:
                        item.finish()
                    event.pop("stage", None)
                    emit("sample", self.stage, checkpoint=checkpoint.label, **event)
                    self.tell(checkpoint)
                case "failed":
                    refusal = str(event.get("message", ""))
                case "finished" | "skipped":
                    pass
                case str(kind):
                    event.pop("stage", None)
                    emit(kind, self.stage, **event)
        return refusal


def _event(line: str) -> dict[str, Any]:
    if not line.startswith('{"event"'):
        return {}
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    for flag in OURS:
        if any(one.partition("=")[0] == flag for one in args.flags):
            raise UserError(f"{flag} after --: it is set for each checkpoint; leave it out")
    checkpoints = _checkpoints(args)
    if args.lora_alpha is not None and all(one.iteration is not None for one in checkpoints):
        say("note: --lora_alpha has no effect: it is for weights files, and the run's own say it")
    sweep = _Sweep(args, checkpoints)
    read = {path for item in sweep.items for path in _files_read(item.checkpoint, item.entry)}
    made = Provenance(files=file_stamps(sorted(read)))
    results = _results(sweep.items, by_checkpoint=args.by_checkpoint)
    try:
        sweep.run()
    finally:
        write_page(results, args.run_folder.parent)
    if sweep.refused:
        raise UserError("; ".join(sweep.refused))
    wanted = [item for item in sweep.items if item.checkpoint.label not in sweep.missing]
    if not all(item.done for item in wanted):
        return None
    summary = {"samples": len(wanted), "checkpoints": len({i.checkpoint.label for i in wanted})}
    return made.left((path for item in wanted for path in item.outputs), timed=True), summary


def _results(items: Sequence[_Item], *, by_checkpoint: bool) -> Path:
    """The resource's folder of results, in which the page lies."""
    folder = items[0].output.parent
    return folder.parent if by_checkpoint else folder


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="inference")


if __name__ == "__main__":
    raise SystemExit(main())
