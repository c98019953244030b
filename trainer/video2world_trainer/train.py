"""The train stage: ``torchrun -m video2world_trainer.train -- experiment=NAME key=value ...``.

Every rank trains on its share of each batch; rank 0 writes. The run goes on from the checkpoint in
its job folder, if there is one, and is done when that stands at ``trainer.max_iter``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from video2world_common.events import emit, say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from video2world_common.markers import Marker, Provenance
from video2world_common.stage_runner import explain_os_error
from video2world_trainer.distributed.process_group import World, join, peer_lost
from video2world_trainer.results.page import write_page
from video2world_trainer.training.config import TrainConfig, read_config, settings_text
from video2world_trainer.training.metrics_logger import REMEDY, Report
from video2world_trainer.training.trained_on import TrainedOn
from video2world_trainer.training.trainer import STAGE, NonFiniteError, Run
from video2world_trainer.training.watchdog import Watchdog

__all__ = ["main", "train"]

KNOBS = (
    "set model.config.keep_activations=attention (or nothing), lower dataloader_train.batch_size, "
    "raise model_parallel.context_parallel_size or model.config.fsdp_shard_size, or train LoRA"
)


class _StopRequest:
    """Remembers SIGTERM and SIGINT, while entered, until the iteration at work is done."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True


USAGE = """usage: torchrun ... -m video2world_trainer.train [FLAGS] -- [KEY=VALUE ...]

  --dryrun       print the settings and train nothing
  --config=FILE  accepted as the guide's commands have it; not read, as the settings are those below
"""


def _parse(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The overrides, and whether only to show the settings."""
    overrides, dry, words = [], False, iter(argv)
    for text in words:
        if text == "--dryrun":
            dry = True
        elif text == "--config" or text.startswith("--config="):
            name = next(words, "") if text == "--config" else text.partition("=")[2]
            if os.environ.get("RANK", "0") == "0":
                note = f"note: --config {name} is not read: settings are typed here, see --help"
                print(note, file=sys.stderr)  # stdout is JSON with --dryrun
        elif text.startswith("-") and text != "--":
            raise UserError(
                f"{text} is not a flag: --config=..., --dryrun or --help, then key=value"
            )
        elif text != "--":
            overrides.append(text)
    return overrides, dry


def train(config: TrainConfig, world: World, stop: _StopRequest, watchdog: Watchdog) -> int:
    """Train to ``max_iter`` or to a request to stop; returns the command's exit code."""
    started = time.monotonic()
    run = Run(config, world)
    try:
        return _train(run, stop, watchdog, started)
    finally:
        run.close()


def _train(run: Run, stop: _StopRequest, watchdog: Watchdog, started: float) -> int:
    config, world = run.config, run.world
    resumed = run.resume()
    progress = run.progress
    if world.leads:
        run.dataset.report()
        _announce(run, resumed)
        if resumed:
            emit("resumed", STAGE, iteration=progress.iteration)
        _compare_data(run)
    if progress.iteration >= config.max_iter:
        if world.leads:
            say(f"nothing to do: trained to iteration {progress.iteration} already")
        return _finish(run, started)

    report = Report(run)
    while progress.iteration < config.max_iter:
        run.step()
        iteration = progress.iteration
        watchdog.beat(f"training iteration {iteration + 1}")
        run.saver.check()
        stopping = world.any(stop.requested)
        last = iteration == config.max_iter
        if iteration % config.logging_iter == 0 or last:
            report()
            if config.stop_when_diverged and run.divergence.since is not None:
                raise UserError(_given_up(run))
        if iteration % config.save_iter == 0 or last or stopping:
            run.save()  # after the report, so that a resumed run reports the same means
            watchdog.beat(f"training iteration {iteration + 1}")
        if stopping and not last:
            run.saver.wait()
            if world.leads:
                say(f"asked to stop: saved iteration {iteration}; run it again to go on")
                emit("preempted", STAGE, iteration=iteration)
            return EXIT_PREEMPTED
    return _finish(run, started)


def _compare_data(run: Run) -> None:
    """Say how the data differ from what the run was trained on; record what it is trained on."""
    data = TrainedOn(run.folder.folder, run.dataset)
    changed = data.changed() if run.progress.iteration else ""
    if run.progress.iteration < run.config.max_iter:
        if changed:
            say(f"the data changed since iteration {run.progress.iteration} was trained: {changed}")
        data.record()
    elif changed:
        say(
            f"WARNING: trained already, on other data: {changed}; to train on these raise "
            "spec.training.iterations, or give another spec.training.jobName"
        )


def _given_up(run: Run) -> str:
    """Why a diverged run ends, after its useless checkpoints are deleted."""
    warning, left = run.divergence.warning(), run.withdraw()
    kept, path = "No checkpoint was saved before that: another run begins anew.", ""
    if left is not None:
        path = str(run.folder.path("model", left))
        kept = f"The checkpoint of iteration {left} is kept ({path}), those after it are deleted."
    if run.world.leads:
        emit("withdrawn", STAGE, iteration=left or 0, path=path)
    return f"{warning} {kept} {REMEDY}"


def _announce(run: Run, resumed: bool) -> None:
    """What is trained, on what, and how; the choices with their reasons, once."""
    config, layout, world = run.config, run.layout, run.world
    count = sum(one.numel() for one in run.optimizer.parameters.values())
    begin = f"going on from iteration {run.progress.iteration}" if resumed else "from the start"
    say(
        f"{config.size}, {count:,} trained parameters, {world.size} ranks on "
        f"{world.device.type}, {begin} to {config.max_iter}"
    )
    say(f"attention {run.attention.name} ({run.attention.reason})")
    for key, why in config.without_effect():
        say(f"note: {key} has no effect: {why}")
    if config.offload and not run.compiled:
        say("note: model.config.offload_block_inputs has no effect: blocks are not compiled here")
    shards = 1 if layout.shard_mesh is None else layout.shard_mesh.size(-1)
    say(
        f"data parallel {layout.data_size}, context parallel {layout.context_size}, FSDP over "
        f"{shards}; blocks keep {run.keep}{', compiled' if run.compiled else ''}"
    )


def _finish(run: Run, started: float) -> int:
    run.saver.wait()
    if run.world.leads:
        latest = run.folder.folder / "latest_checkpoint.txt"
        summary = {
            "iteration": run.progress.iteration,
            "path": str(run.folder.path("model", run.saver.saved)),
            "seconds": round(time.monotonic() - started, 1),
        }
        if warning := run.divergence.warning():
            say(f"warning: {warning} {REMEDY}")
            summary["warning"] = warning
        write_page(Path("results", run.config.name), run.config.job_folder)
        if inputs_hash := os.environ.get("V2W_INPUTS_HASH"):
            stage = os.environ.get("V2W_STAGE", STAGE)
            # bound to its own checkpoint; changed data do not undo it, but are reported
            made = Provenance(noted=TrainedOn(run.folder.folder, run.dataset).recorded)
            made.left([run.folder.path("model", run.saver.saved)], timed=True)
            made.outputs[str(latest.parent)] = {latest.name: ""}  # it moves on in a longer run
            Marker(stage, inputs_hash).write(made, summary)
        emit("finished", STAGE, **summary)
    return 0


def _failed(reason: str, message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    emit("failed", STAGE, reason=reason, message=message)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see :mod:`video2world_common.stage_runner`)."""
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(f"{__doc__}\n{USAGE}\n{settings_text()}")
        return 0
    try:
        overrides, dry = _parse(argv)
        config = read_config(overrides)
        if dry:
            say(json.dumps(config.as_overrides(), indent=2))
            return 0
        with _StopRequest() as stop:
            world = join(config.timeout)
            with Watchdog(config.timeout, world.rank) as watchdog:
                code = train(config, world, stop, watchdog)
            world.leave()
        return code
    except UserError as error:
        return _failed("UserError", str(error), EXIT_USER_ERROR)
    except NonFiniteError as error:
        return _failed("NonFinite", str(error), EXIT_FAILURE)
    except torch.OutOfMemoryError as error:
        return _failed("OutOfMemory", f"the GPU's memory is full: {KNOBS} ({error})", EXIT_FAILURE)
    except OSError as error:
        return _failed("IOError", explain_os_error(error), EXIT_FAILURE)
    except RuntimeError as error:
        if not peer_lost(error):
            raise
        lost = f"another rank is gone ({str(error).splitlines()[0]}); its own log says why"
        return _failed("Communication", lost, EXIT_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
