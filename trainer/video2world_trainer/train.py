"""The train stage: ``torchrun -m video2world_trainer.train -- experiment=NAME key=value ...``.

All ranks train on their share of each batch, and the main rank writes. A run resumes from the
newest checkpoint in its job folder, and is finished when that is at ``trainer.max_iter``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from video2world_common.events import emit, say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from video2world_common.markers import Marker, Provenance
from video2world_common.stage_runner import explain_os_error
from video2world_trainer.distributed.process_group import World, join, peer_lost
from video2world_trainer.results.page import write_page
from video2world_trainer.training.config import TrainConfig, as_overrides
from video2world_trainer.training.config_help import settings_text
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.divergence import REMEDY
from video2world_trainer.training.progress import STAGE
from video2world_trainer.training.step_results import NonFiniteError
from video2world_trainer.training.trained_on import TrainingDataRecord
from video2world_trainer.training.trainer import Trainer, log_setup
from video2world_trainer.training.watchdog import Watchdog

__all__ = ["main", "parse_arguments", "train"]

MEMORY_REMEDIES = (
    "set model.config.keep_activations=attention (or nothing), lower dataloader_train.batch_size, "
    "raise model_parallel.context_parallel_size or model.config.fsdp_shard_size, or train LoRA"
)
USAGE = """usage: torchrun ... -m video2world_trainer.train [FLAGS] -- [KEY=VALUE ...]

  --dryrun       print the settings without training
  --config=FILE  accepted for compatibility with the guide's commands, but not read: all settings
                 are listed below
"""


class _StopRequest:
    """Record SIGTERM and SIGINT within a ``with`` block, so that an iteration can complete."""

    def __init__(self) -> None:
        self.requested = False
        self._handlers: dict[int, Any] = {}  # as signal.signal returns them

    def __enter__(self) -> _StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def parse_arguments(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Split arguments into overrides and whether this is a dry run.

    Raises:
        UserError: an unknown flag.
    """
    overrides, dry_run, arguments = [], False, iter(argv)
    for text in arguments:
        if text == "--dryrun":
            dry_run = True
        elif text == "--config" or text.startswith("--config="):
            name = next(arguments, "") if text == "--config" else text.partition("=")[2]
            if os.environ.get("RANK", "0") == "0":
                note = f"note: --config {name} is not read: settings are typed here, see --help"
                print(note, file=sys.stderr)  # stdout has JSON with --dryrun
        elif text.startswith("-") and text != "--":
            raise UserError(
                f"{text} is not a flag: --config=..., --dryrun or --help, then key=value"
            )
        elif text != "--":
            overrides.append(text)
    return overrides, dry_run


def train(config: TrainConfig, world: World, stop: _StopRequest, watchdog: Watchdog) -> int:
    """Train until the run is finished or a stop is requested; return the exit code."""
    started = time.monotonic()
    trainer = Trainer(config, world)
    try:
        resumed = trainer.resume()
        iteration = trainer.progress.iteration
        if world.is_main_rank:
            for dataset in trainer.feed.datasets:
                dataset.report()
            log_setup(trainer, resumed=resumed)
            if resumed:
                emit("resumed", STAGE, iteration=iteration)
            _compare_data(trainer)
            if trainer.finished:
                why = trainer.validation.stopped
                say(
                    f"nothing to do: already trained to iteration {iteration}"
                    + (f", where training ended early: {why}" if why else "")
                )
        finished = trainer.finished or trainer.train(lambda: stop.requested, watchdog.beat)
        if not finished:
            if world.is_main_rank:
                iteration = trainer.progress.iteration
                say(f"stop requested: saved iteration {iteration}; run the same command to resume")
                emit("preempted", STAGE, iteration=iteration)
            return EXIT_PREEMPTED
        trainer.checkpointer.wait()
        if world.is_main_rank:
            _finish(trainer, time.monotonic() - started)
        return 0
    finally:
        trainer.close()


def _compare_data(trainer: Trainer) -> None:
    """Report how the data differ from what the run was trained on, and record the new data."""
    data = TrainingDataRecord(trainer.checkpointer.folder.folder, trainer.feed.datasets)
    iteration = trainer.progress.iteration
    changed = data.changed() if iteration else ""
    if not trainer.finished:
        if changed:
            say(f"the data changed since iteration {iteration} was trained: {changed}")
        data.record()
    elif changed:
        say(
            f"WARNING: trained already, on other data: {changed}; to train on these raise "
            "spec.training.iterations, or set another spec.training.jobName"
        )


def _finish(trainer: Trainer, seconds: float) -> None:
    """Write the results page and the stage's marker, and report that the stage is finished."""
    config, folder = trainer.config, trainer.checkpointer.folder
    checkpoint = folder.path("model", trainer.checkpointer.last_saved)
    summary = {
        "iteration": trainer.progress.iteration,
        "path": str(checkpoint),
        "seconds": round(seconds, 1),
    }
    if stopped := trainer.validation.stopped:
        summary["stopped"] = stopped
    if warning := trainer.divergence.warning():
        say(f"warning: {warning} {REMEDY}")
        summary["warning"] = warning
    write_page(Path("results", config.name), config.job_folder)
    if inputs_hash := os.environ.get("V2W_INPUTS_HASH"):
        stage = os.environ.get("V2W_STAGE", STAGE)
        latest = folder.folder / "latest_checkpoint.txt"
        # bound to its checkpoint; changed data do not make the stage run again, but are reported
        record = TrainingDataRecord(folder.folder, trainer.feed.datasets).recorded
        provenance = Provenance(noted=record)
        provenance.left([checkpoint], timed=True)
        provenance.outputs[str(latest.parent)] = {latest.name: ""}  # a longer run changes it
        Marker(stage, inputs_hash).write(provenance, summary)
    emit("finished", STAGE, **summary)


def _fail(reason: str, message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    emit("failed", STAGE, reason=reason, message=message)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see :mod:`video2world_common.exit_codes`)."""
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(f"{__doc__}\n{USAGE}\n{settings_text()}")
        return 0
    try:
        overrides, dry_run = parse_arguments(argv)
        config = read_config(overrides)
        if dry_run:
            say(json.dumps(as_overrides(config), indent=2))
            return 0
        with _StopRequest() as stop:
            world = join(config.timeout)
            with Watchdog(config.timeout, world.rank) as watchdog:
                code = train(config, world, stop, watchdog)
            world.leave()
        return code
    except UserError as error:
        return _fail("UserError", str(error), EXIT_USER_ERROR)
    except NonFiniteError as error:
        return _fail("NonFinite", str(error), EXIT_FAILURE)
    except torch.OutOfMemoryError as error:
        message = f"out of GPU memory: {MEMORY_REMEDIES} ({error})"
        return _fail("OutOfMemory", message, EXIT_FAILURE)
    except OSError as error:
        return _fail("IOError", explain_os_error(error), EXIT_FAILURE)
    except RuntimeError as error:
        if not peer_lost(error):
            raise
        first_line = str(error).splitlines()[0]
        message = f"another rank was lost ({first_line}); its log has the reason"
        return _fail("Communication", message, EXIT_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
