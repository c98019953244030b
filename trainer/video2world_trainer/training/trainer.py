"""Train on one rank: set up the run, loop over iterations, report, save, resume."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.parallelize import apply_fsdp, build_mesh
from video2world_trainer.distributed.process_group import World
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.attention_choice import choose_attention
from video2world_trainer.training.batch_feed import BatchFeed
from video2world_trainer.training.checkpointer import Checkpointer
from video2world_trainer.training.config import TrainConfig, settings_without_effect
from video2world_trainer.training.dataset import Batch
from video2world_trainer.training.divergence import REMEDY, Divergence
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.global_batch import GlobalBatch
from video2world_trainer.training.loss import training_loss
from video2world_trainer.training.metrics_logger import MetricsLogger
from video2world_trainer.training.network import build_network
from video2world_trainer.training.network_setup import NetworkSetup
from video2world_trainer.training.optimizer import MasterAdamW
from video2world_trainer.training.phases import phase_at, phases_of
from video2world_trainer.training.progress import Progress
from video2world_trainer.training.run_actions import actions_of_run
from video2world_trainer.training.save_schedule import SaveSchedule
from video2world_trainer.training.step import TrainStep
from video2world_trainer.training.step_results import StepResults
from video2world_trainer.training.validation import Validator
from video2world_trainer.training.validation_schedule import ValidationSchedule

__all__ = ["Trainer"]


class Trainer:
    """A training run on one rank.

    Args:
        config: the run's settings.
        world: all ranks.

    Raises:
        UserError: settings, data, weights and ranks do not fit together.
    """

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        self.phases = phases_of(config)
        preset = PRESETS[config.size]
        self.mesh = build_mesh(
            world,
            context=config.context_parallel_size,
            shard_size=config.shard_size,
            frames=config.latent_shape[1],
            heads=preset.dit.num_heads,
        )
        on_gpu = world.device.type == "cuda"
        dtype = getattr(torch, preset.compute_dtype) if on_gpu else torch.float32
        self._clips = GlobalBatch.of(config, self.mesh.data_size).clips  # per iteration
        attention = {  # of every phase, so that what cannot run is refused now
            one: choose_attention(config, one.token_grid, world.device, dtype)
            for one in self.phases
        }
        actions = actions_of_run(config, world)
        self.feed = BatchFeed(config, self.mesh, self.phases, actions)
        self.net = build_network(config, world, actions)
        apply_fsdp(self.net, self.mesh)
        beta1, beta2 = config.betas
        self.optimizer = MasterAdamW(
            self.net.named_parameters(),
            weight_decay=config.weight_decay,
            betas=(beta1, beta2),
            eps=config.eps,
        )
        ema = Ema(self.net.named_parameters(), config.ema_rate) if config.ema else None
        self.setup = NetworkSetup(config, self.mesh, self.net, self.optimizer, attention)
        fsdp_averages = self.mesh.shard_mesh is not None
        self._train_step = TrainStep(
            self.net,
            self.optimizer,
            ema,
            dtype=dtype,
            clip=config.clip_norm,
            loss=self._loss,
            norm=self.mesh.norm,
            mean=world.average,
            reduce=(lambda _: None) if fsdp_averages else world.average_gradients,
        )
        self.progress = Progress()
        self.divergence = Divergence()
        self.checkpointer = Checkpointer(config, self.mesh, self.net, self.optimizer, ema, actions)
        self._results = StepResults(self.progress, world, lambda: self.checkpointer.last_saved)
        validator = None
        if self.feed.held_out is not None:
            loss = partial(self._loss, dtype=dtype)
            validator = Validator(config, self.mesh, self.net, ema, self.feed, self.setup, loss)
        self.validation = ValidationSchedule(config, world, self.progress, validator)
        self.saves = SaveSchedule(config, world, self.progress, self.phases)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.config.learning_rate * self.config.schedule.factor(self.progress.iteration)

    @property
    def finished(self) -> bool:
        """Whether training has reached its end, or no longer improves, and is validated there."""
        ended = self.progress.iteration >= self.config.max_iter or self.validation.stopped
        return bool(ended) and not self.validation.due

    def train(self, stop_requested: Callable[[], bool], heartbeat: Callable[[str], None]) -> bool:
        """Train until the run is finished or a stop is requested on any rank.

        Args:
            stop_requested: checked after every iteration; if true, a checkpoint is saved.
            heartbeat: called after every iteration and checkpoint with what comes next.

        Returns:
            Whether the run is finished.

        Raises:
            UserError: training has diverged, and ``trainer.stop_when_diverged`` is set.
            NonFiniteError: too many steps were skipped.
            OSError: a checkpoint could not be written.
        """
        config, progress = self.config, self.progress
        metrics = MetricsLogger(
            config,
            self.mesh,
            self.net,
            {phase: one.density for phase, one in self.setup.choices.items()},
            iteration=progress.iteration,
            at_risk=self.checkpointer.gpu_seconds_at_risk,
        )
        validate = partial(self.validation.run, metrics.log_validation, stop_requested, heartbeat)
        if self.validation.due and not validate():  # the initial weights
            return False
        while not self.finished:
            self.step(heartbeat)
            iteration = progress.iteration
            heartbeat(f"training iteration {iteration + 1}")
            self.checkpointer.check()
            stopping = self.world.any(stop_requested())
            if self.validation.due and not stopping:
                self._results.read_all()  # so that the time is the validation's own
                stopping = not validate()
            last = iteration == self.setup.phase.end or self.finished
            if iteration % config.logging_iter == 0 or last:
                self._report(metrics)
                if config.stop_when_diverged and self.divergence.since is not None:
                    kept = self.checkpointer.withdraw_after(self.divergence.since)
                    raise UserError(f"{self.divergence.warning()} {kept} {REMEDY}")
            if self.saves.is_due() or self.finished or stopping:
                self.save()  # after the report, so that a resumed run reports the same means
                heartbeat(f"training iteration {iteration + 1}")
            if stopping and not self.finished:
                self.checkpointer.wait()
                return False
        return True

    def step(self, heartbeat: Callable[[str], None] = lambda _: None) -> None:
        """Train one iteration.

        Args:
            heartbeat: called before every micro-batch but the first with what comes next.

        Raises:
            UserError: a file of the batch is damaged.
            NonFiniteError: too many steps were skipped.
        """
        progress, phase = self.progress, phase_at(self.phases, self.progress.iteration)
        if self.setup.enter(phase) and self.world.is_main_rank:
            say(f"phase {phase.label}, up to iteration {phase.end}")
        if phase.start and progress.iteration == phase.start:
            # the EMA restarts: weights of another frame size would make it worse
            self._train_step.updates.zero_()
            progress.updates = 0
        count = self.config.micro_batches
        batches: list[Batch] = []
        losses: list[Tensor] = []
        powers: list[Tensor] = []
        for number in range(1, count + 1):
            if number > 1:
                heartbeat(f"training iteration {progress.iteration + 1}, micro-batch {number}")
            batch = self.feed.next(phase, progress.consumed)
            if not self.divergence.nothing:
                powers.append(batch.latents.float().square().mean())
            batches.append(batch.batch)
            losses.append(
                self._train_step.backward(
                    batch.latents,
                    batch.text,
                    batch.noise,
                    batch.actions,
                    number=number,
                    count=count,
                )
            )
        if powers:
            self._measure_zero_loss(torch.stack(powers).mean())
        loss = losses[0] if count == 1 else torch.stack(losses).sum()
        result = self._train_step.apply(loss, self.learning_rate)
        progress.iteration += 1
        progress.consumed += self._clips
        self._results.add(result, batches)

    def save(self) -> None:
        """Write a checkpoint, in the background if the settings say so.

        Raises:
            OSError: this or the previous checkpoint could not be written.
        """
        self._results.read_all()
        self.progress.divergence = self.divergence.state()
        blocked = self.checkpointer.save(
            self.progress, learning_rate=self.learning_rate, healthy=self.divergence.healthy
        )
        self.saves.saved(blocked, self.checkpointer.writing)

    def resume(self) -> bool:
        """Resume from the newest complete checkpoint; return whether there is one.

        Raises:
            UserError: the folder belongs to another run, or no checkpoint is usable.
        """
        if not self.checkpointer.restore(self.progress):
            return False
        self.setup.enter(phase_at(self.phases, self.progress.iteration))
        state = self.progress.divergence or {"healthy": self.progress.iteration}
        self.divergence = Divergence.restored(state)
        self._train_step.updates.fill_(self.progress.updates)
        self.saves.resume()
        return True

    def close(self) -> None:
        """Stop reading ahead and wait for the last checkpoint.

        Raises:
            OSError: it could not be written.
        """
        self.feed.close()
        self.checkpointer.wait()

    def _loss(self, net: Any, latents: Tensor, text: Tensor, noise: Any, **kwargs: Any) -> Tensor:
        frames = self.config.latent_shape[1]
        own, weight = self.mesh.frames(frames), self.mesh.weight(frames)
        loss = training_loss(
            net,
            latents,
            text,
            noise,
            first_frame=own.start,
            scale=self.config.loss_scale,
            edm=self.config.loss_weight == "edm",
            **kwargs,
        )
        return loss if weight == 1 else loss * weight

    def _measure_zero_loss(self, power: Tensor) -> None:
        """Measure the loss of predicting zero, given the mean square of this rank's latents."""
        mean = float(self.world.average(power))
        if math.isfinite(mean):
            self.divergence.nothing = self.config.loss_scale * (1 + mean)

    def _report(self, metrics: MetricsLogger) -> None:
        """Report the mean loss since the last report, and check it for divergence."""
        self._results.read_all()
        progress = self.progress
        loss = progress.loss_sum / progress.loss_count if progress.loss_count else None
        clips = progress.loss_count * self._clips
        was_sound = self.divergence.since is None
        self.divergence.report(progress.iteration, loss, clips, last=self.finished)
        progress.loss_sum, progress.loss_count = 0.0, 0
        metrics.log(
            progress,
            self.divergence,
            loss=loss,
            learning_rate=self.learning_rate,
            gradient_norm=self._results.gradient_norm,
            checkpoint=self.checkpointer.last_saved,
            newly_diverged=was_sound,
            interval=self.saves.interval,
        )


def log_setup(trainer: Trainer, *, resumed: bool) -> None:
    """Log what is trained and how, with the reasons of automatic choices."""
    config, mesh, world, setup = trainer.config, trainer.mesh, trainer.world, trainer.setup
    count = sum(one.numel() for one in trainer.optimizer.parameters.values())
    iteration = trainer.progress.iteration
    start = f"resuming from iteration {iteration}" if resumed else "from the start"
    say(
        f"{config.size}, {count:,} trained parameters, {world.size} ranks on "
        f"{world.device.type}, {start} to {config.max_iter}"
    )
    for phase in trainer.phases if config.phases else ():
        say(f"phase {phase.label}: iterations {phase.start + 1} to {phase.end}")
    say(setup.attention.description)
    for key, why in settings_without_effect(config):
        say(f"note: {key} has no effect: {why}")
    if config.offload and not setup.compiled:
        say("note: model.config.offload_block_inputs has no effect: blocks are not compiled here")
    shards = 1 if mesh.shard_mesh is None else mesh.shard_mesh.size(-1)
    saved = ", ".join(
        f"{keep} ({count} of {len(setup.recompute_policies)})"
        for keep, count in Counter(setup.recompute_policies).items()
    )
    compiled = ", compiled" if setup.compiled else ""
    say(
        f"data parallel {mesh.data_size}, context parallel {mesh.context_size}, FSDP over "
        f"{shards}; blocks save {saved}{compiled}"
    )
    if config.micro_batches > 1:
        say(GlobalBatch.of(config, mesh.data_size).text)
