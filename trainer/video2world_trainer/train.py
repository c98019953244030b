"""The train stage: ``torchrun -m video2world_trainer.train -- experiment=NAME key=value ...``.

Every rank trains on its share of each batch; rank 0 writes. The run goes on from the checkpoint in
its job folder, if there is one, and is done when that stands at ``trainer.max_iter``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video2world_preprocess.events import emit, say
from video2world_preprocess.stage import (
    EXIT_FAILURE,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    Marker,
    UserError,
    explain,
)

from .checkpoint import CheckpointFolder
from .config import TrainConfig, read_config
from .data import Batch, LatentDataset, collate, generator_for, positions
from .distributed import World, join, require_data_parallel
from .model import VideoDiT
from .objective import collate_draws, draw, training_loss
from .optim import Ema, LinearSchedule, MasterAdamW
from .presets import PRESETS
from .weights import load_dit_weights

__all__ = ["NonFiniteError", "Run", "main", "train"]

STAGE = "train"
MAX_SKIPPED, SKIP_WINDOW = 3, 100  # so many skipped steps within so many iterations end the run


class NonFiniteError(Exception):
    """Loss or gradients keep being NaN or infinite; the message names the batches."""


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


@dataclass
class _Progress:
    """What a resumed run must know beside weights and moments; plain data, saved as it is."""

    iteration: int = 0
    consumed: int = 0  # samples taken by all ranks together: the data position
    updates: int = 0  # optimizer steps applied, skipped ones left out: the EMA's clock
    loss_sum: float = 0.0  # since the last report
    loss_count: int = 0
    skipped: list[int] = field(default_factory=list)  # iterations whose step was not applied


def _parse(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The overrides, and whether only to show the settings."""
    overrides, dry = [], False
    for text in argv:
        if text == "--dryrun":
            dry = True
        elif text in ("-h", "--help"):
            raise SystemExit(__doc__)
        elif text.startswith("--config="):
            pass  # upstream's configuration module; the settings are typed here
        elif text.startswith("-") and text != "--":
            raise UserError(f"{text} is not a flag: --config=..., --dryrun, then key=value")
        elif text != "--":
            overrides.append(text)
    return overrides, dry


def _network(config: TrainConfig, world: World) -> VideoDiT:
    """The network with its starting weights, on the rank's device."""
    chosen = PRESETS[config.size]
    dit = replace(
        chosen.dit, rope_ratio_t=config.rope_t, rope_ratio_h=config.rope_h,
        rope_ratio_w=config.rope_w,
    )  # fmt: skip
    path = Path(config.dit_path or _base_weights(config) or "")
    if path.name and not path.exists():
        remedy = (
            "python -m video2world_preprocess.download --model_types video2world "
            f"--model_sizes {config.size} --fps {_fps(config)} "
            f"--resolution {_resolution(config).removesuffix('p')} --checkpoint_dir checkpoints"
        )
        raise UserError(
            f"model.config.model_manager_config.dit_path={path} does not exist; "
            f"get the base weights with: {remedy}"
        )
    dtype = torch.float32 if world.device.type == "cpu" else getattr(torch, chosen.compute_dtype)
    net = VideoDiT(dit).to(device=world.device, dtype=dtype)
    if path.name:
        load_dit_weights(net, path)
    else:  # Tiny has no published weights
        net.cpu().init_weights(generator_for(config.seed, "weights", 0))
        net.to(world.device)
    net.recompute = config.size != "Tiny"
    return net


def _fps(config: TrainConfig) -> int:
    return 10 if config.num_frames == 61 else 16


def _resolution(config: TrainConfig) -> str:
    return "480p" if min(config.video_size) < 700 else "720p"


def _base_weights(config: TrainConfig) -> str | None:
    return PRESETS[config.size].base_weights(_resolution(config), _fps(config))


def _description(config: TrainConfig) -> dict[str, Any]:
    """model/config.json: what inference must know, and in ``run`` what makes a run the same."""
    known = {
        "size": config.size, "architecture": config.architecture, "geometry": config.geometry,
        "num_frames": config.num_frames, "video_size": list(config.video_size),
        "text_length": config.text_length, "rope_ratio_t": config.rope_t,
        "rope_ratio_h": config.rope_h, "rope_ratio_w": config.rope_w,
    }  # fmt: skip
    if config.architecture == "lora":
        known |= {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha}
    run = known | {"dataset_dir": config.dataset_dir, "ema": config.ema, "seed": config.seed}
    return known | {"fps": _fps(config), "run": run}


class Run:
    """A training run on one rank: network, optimizer, data, and how far they are."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        require_data_parallel(config.context_parallel_size)
        if config.architecture == "lora":
            raise UserError(
                "model.config.train_architecture=lora: this version trains all weights only; "
                "set it to base"
            )
        if config.attention not in ("minimal_a2a", "torch"):
            raise UserError(
                f"model.config.pipe_config.net.atten_backend={config.attention}: this version has "
                "PyTorch's attention only; leave it out"
            )
        self.config, self.world = config, world
        self.folder = CheckpointFolder(config.checkpoint_folder)
        self.dataset = LatentDataset(
            Path(config.dataset_dir), shape=config.latent_shape, geometry=config.geometry,
            text_length=config.text_length, cache=config.cache,
        )  # fmt: skip
        self.dataset.require(world.size)
        self.net = _network(config, world)
        self.dtype = next(self.net.parameters()).dtype
        self.optimizer = MasterAdamW(self.net.named_parameters(), weight_decay=config.weight_decay)
        self.ema = Ema(self.net.named_parameters()) if config.ema else None
        self.schedule = LinearSchedule(
            config.warm_up_steps, config.cycle_length, config.f_max, config.f_min, config.f_start
        )
        self.progress = _Progress()
        self.saved = 0  # iteration of the newest checkpoint

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.config.learning_rate * self.schedule.factor(self.progress.iteration)

    def step(self, *, stop: bool) -> bool:
        """Train one iteration; answers whether any rank wants to stop after it.

        Raises:
            NonFiniteError: too many steps had to be skipped.
        """
        config, world, progress = self.config, self.world, self.progress
        places = positions(progress.consumed, world.rank, config.batch_size)
        batch = collate([self.dataset.sample(place, config.seed) for place in places])
        given = PRESETS[config.size].conditional_frames
        randomness = collate_draws(
            [
                draw(
                    config.latent_shape,
                    generator_for(config.seed, "noise", place),
                    conditional_frames=given,
                )
                for place in places
            ]
        )
        self.optimizer.zero_grad()
        loss = training_loss(
            self.net, batch.latents.to(world.device), batch.text.to(world.device), randomness,
            dtype=self.dtype,
        )  # fmt: skip
        loss.backward()
        parameters = list(self.optimizer.parameters.values())
        world.average_gradients(parameters)
        # one exchange for the loss and for the wish to stop: all ranks see the same of both
        shared = torch.stack([loss.detach(), loss.new_tensor(float(stop))]).double()
        mean_loss, stopping = world.average(shared).tolist()

        if math.isfinite(mean_loss) and _all_finite([p.grad for p in parameters]):
            self.optimizer.step(self.learning_rate)
            if self.ema is not None:
                self.ema.update(progress.updates)
            progress.updates += 1
            progress.loss_sum += mean_loss
            progress.loss_count += 1
        else:
            self._skip(batch)
        progress.iteration += 1
        progress.consumed += world.size * config.batch_size
        self.net.accum_iteration += 1
        self.net.accum_video_sample_counter += world.size * config.batch_size
        return stopping > 0

    def _skip(self, batch: Batch) -> None:
        """Count a step that is not applied; end the run when there are too many."""
        now = self.progress.iteration
        finite = batch.latents.isfinite().flatten(1).all(1).tolist()
        mine = [
            name if good else f"{name} (its latents are not finite)"
            for name, good in zip(batch.names, finite, strict=True)
        ]
        names = "; ".join(name for names in self.world.gather(mine) for name in names)
        recent = [one for one in self.progress.skipped if one > now - SKIP_WINDOW]
        self.progress.skipped = [*recent, now]
        if self.world.leads:
            say(f"iteration {now + 1}: loss or gradients are not finite, step skipped: {names}")
            emit("skipped_step", STAGE, iteration=now + 1, batch=names)
        if len(self.progress.skipped) >= MAX_SKIPPED:
            raise NonFiniteError(
                f"loss or gradients were not finite {MAX_SKIPPED} times within {SKIP_WINDOW} "
                f"iterations, last at iteration {now + 1} with: {names}. Delete the latents named "
                "here and run the latents stage again, or lower optimizer.lr; the last good "
                f"checkpoint is iteration {self.saved}"
            )

    def save(self) -> None:
        """Write a checkpoint; rank 0 does it, the others go on to the next exchange."""
        if self.world.leads:
            path = self.folder.save(
                self.progress.iteration, self._contents(), keep=self.config.keep
            )
            emit("checkpoint", STAGE, iteration=self.progress.iteration, path=str(path))
        self.saved = self.progress.iteration

    def _contents(self) -> dict[str, dict[str, Any]]:
        model: dict[str, Tensor] = {}
        for name, tensor in self.net.state_dict().items():
            rounds = tensor.is_floating_point() and not name.startswith("accum_")
            tensor = tensor.to(torch.bfloat16) if rounds else tensor
            model[f"net.{name}"] = tensor.detach().cpu()
        if self.ema is not None:
            for name, parameter in self.net.named_parameters():
                average = self.ema.average.get(name, parameter)
                model[f"net_ema.{name}"] = average.detach().float().cpu()
        optim = self.optimizer.state_dict()
        # the model file is bfloat16: what is float32 here and not trained would lose digits in it
        optim["frozen"] = {
            name: one.detach().cpu() for name, one in self.net.named_parameters()
            if not one.requires_grad and one.dtype == torch.float32
        }  # fmt: skip
        rate = self.learning_rate
        scheduler = {
            "last_epoch": self.progress.iteration, "_step_count": self.progress.iteration + 1,
            "base_lrs": [self.config.learning_rate], "_last_lr": [rate],
        }  # fmt: skip
        trainer = {
            "grad_scaler": {}, "iteration": self.progress.iteration,
            "progress": dict(vars(self.progress)), "world_size": self.world.size,
        }  # fmt: skip
        return {"model": model, "optim": optim, "scheduler": scheduler, "trainer": trainer}

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint of the job folder, if there is one.

        All noise and data order follow from the seed and the data position, so that position and
        the tensors restore every rank, also at another number of ranks.

        Raises:
            UserError: the folder is another run's, or damaged beyond use.
        """

        def find() -> int | None:
            self.folder.claim(_description(self.config))
            self.folder.sweep()
            return self.folder.newest_whole()

        iteration = self.world.leader_does(find)
        if iteration is None:
            return False
        model = self.folder.load("model", iteration)
        optim = self.folder.load("optim", iteration)
        trainer = self.folder.load("trainer", iteration)
        if "masters" not in optim or "progress" not in trainer:
            raise UserError(
                f"{self.folder.path('optim', iteration)} was not written by this trainer, so its "
                "training cannot be continued; start a run with another job.name from it with "
                "model.config.model_manager_config.dit_path="
                f"{self.folder.path('model', iteration)}"
            )
        with torch.no_grad():
            frozen = optim.get("frozen", {})
            for name, tensor in self.net.state_dict().items():
                # rotary tables are made anew: in the file they are rounded to bfloat16
                if not name.startswith("pos_embedder."):
                    tensor.copy_(frozen.get(name, model[f"net.{name}"]))
        self.optimizer.load_state_dict(optim)
        if self.ema is not None:
            self.ema.load({k.removeprefix("net_ema."): v for k, v in model.items()
                           if k.startswith("net_ema.")})  # fmt: skip
        self.progress = _Progress(**trainer["progress"])
        self.saved = iteration
        return True


@torch.no_grad()
def _all_finite(gradients: Sequence[Tensor | None]) -> bool:
    present = [one for one in gradients if one is not None]
    return bool(torch.stack(torch._foreach_norm(present)).isfinite().all())


def train(config: TrainConfig, world: World, stop: _StopRequest) -> int:
    """Train to ``max_iter`` or to a request to stop; returns the command's exit code."""
    started = time.monotonic()
    run = Run(config, world)
    resumed = run.resume()
    progress = run.progress
    if world.leads:
        run.dataset.report()
        count = sum(one.numel() for one in run.optimizer.parameters.values())
        begin = f"going on from iteration {progress.iteration}" if resumed else "from the start"
        say(f"{config.size}, {count:,} trained parameters, {world.size} ranks on "
            f"{world.device.type}, {begin} to {config.max_iter}")  # fmt: skip
    if progress.iteration >= config.max_iter:
        if world.leads:
            say(f"nothing to do: trained to iteration {progress.iteration} already")
        return _finish(run, world, started)

    since, counted = time.monotonic(), progress.iteration
    while progress.iteration < config.max_iter:
        stopping = run.step(stop=stop.requested)
        iteration = progress.iteration
        last = iteration == config.max_iter
        if iteration % config.logging_iter == 0 or last:
            seconds = (time.monotonic() - since) / (iteration - counted)
            since, counted = time.monotonic(), iteration
            _report(run, seconds)
        if iteration % config.save_iter == 0 or last or stopping:
            run.save()  # after the report, so that a resumed run reports the same means
        if stopping and not last:
            if world.leads:
                say(f"asked to stop: saved iteration {iteration}; run it again to go on")
                emit("preempted", STAGE, iteration=iteration)
            return EXIT_PREEMPTED
    return _finish(run, world, started)


def _report(run: Run, seconds: float) -> None:
    """One line for people, one for machines; the loss is the mean since the last report."""
    progress, config = run.progress, run.config
    loss = progress.loss_sum / progress.loss_count if progress.loss_count else None
    progress.loss_sum, progress.loss_count = 0.0, 0
    if not run.world.leads:
        return
    eta = (config.max_iter - progress.iteration) * seconds
    say(f"iteration {progress.iteration}/{config.max_iter}  "
        f"loss {'-' if loss is None else f'{loss:.4f}'}  lr {run.learning_rate:.3e}  "
        f"{seconds:.3f} s/iteration  {eta:.0f} s left")  # fmt: skip
    emit("progress", STAGE, iteration=progress.iteration, iterations=config.max_iter, loss=loss,
         seconds_per_iteration=round(seconds, 4), eta_seconds=round(eta, 1),
         checkpoint=run.saved)  # fmt: skip


def _finish(run: Run, world: World, started: float) -> int:
    if world.leads:
        latest = run.folder.folder / "latest_checkpoint.txt"
        summary = {
            "iteration": run.progress.iteration,
            "path": str(run.folder.path("model", run.saved)),
            "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        if inputs_hash := os.environ.get("V2W_INPUTS_HASH"):
            stage = os.environ.get("V2W_STAGE", STAGE)
            Marker(stage, inputs_hash).write([str(latest)], summary)
        emit("finished", STAGE, **summary)
    return 0


def _failed(reason: str, message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    emit("failed", STAGE, reason=reason, message=message)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see :mod:`video2world_preprocess.stage`)."""
    try:
        overrides, dry = _parse(sys.argv[1:] if argv is None else argv)
        config = read_config(overrides)
        if dry:
            say(json.dumps(config.as_overrides(), indent=2))
            return 0
        with _StopRequest() as stop:
            world = join()
            code = train(config, world, stop)
            world.leave()
        return code
    except UserError as error:
        return _failed("UserError", str(error), EXIT_USER_ERROR)
    except NonFiniteError as error:
        return _failed("NonFinite", str(error), EXIT_FAILURE)
    except torch.OutOfMemoryError as error:
        hint = "lower dataloader_train.batch_size or the video size, or use larger GPUs"
        return _failed("OutOfMemory", f"the GPU's memory is full: {hint} ({error})", EXIT_FAILURE)
    except OSError as error:
        return _failed("IOError", explain(error), EXIT_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
