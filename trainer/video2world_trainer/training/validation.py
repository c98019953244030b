"""Measure the loss on held-out clips at noise that is the same each time.

A training loss mostly reflects the noise levels that happened to be drawn. Here each of n clips is
measured at K levels sigma = F^-1((j + (c + 0.5) / n) / K), for clip c and j < K, with F the
training's own distribution of noise levels: n K equally probable levels, stratified for each clip.
Noise depends on the clip's name and j only, so curves of two runs over the same data compare.
Captions are never dropped, and the number of conditional frames is fixed. A run with several frame
sizes is measured at the last one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.validation_record import ValidationResult
from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.training.batch_feed import BatchFeed
from video2world_trainer.training.clip_losses import ClipLosses, Evaluation, evaluations
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.network_setup import NetworkSetup
from video2world_trainer.training.validation_config import DEFAULT_CLIPS

__all__ = ["Interrupted", "Validator", "choose_clips"]


class Interrupted(Exception):
    """A stop was requested during the measurement."""


def choose_clips(counts: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Choose clips from windows with ``counts`` clips each: evenly over windows, then within them.

    Returns:
        Pairs of window and clip, ``wanted`` of them or all, in order.
    """
    quotas = [0] * len(counts)
    remaining = min(wanted, sum(counts))
    while remaining:
        open_windows = [w for w, count in enumerate(counts) if quotas[w] < count]
        step = max(len(open_windows) / remaining, 1.0)
        chosen = [open_windows[int((n + 0.5) * step)] for n in range(int(len(open_windows) / step))]
        for window in chosen[:remaining]:
            quotas[window] += 1
        remaining -= len(chosen[:remaining])
    return [
        (window, clip * counts[window] // quota)
        for window, quota in enumerate(quotas)
        for clip in range(quota)
    ]


class Validator:
    """Measure the loss of the network as it is, without changing anything that training depends on.

    All ranks share the evaluations; the result is the same on every rank, and for every number of
    ranks within the rounding of the network's arithmetic.

    Args:
        config: the run's settings.
        mesh: all ranks; those that share a clip in training share it here.
        net: the network.
        ema: the moving average of its weights; None for none.
        feed: the held-out windows, at the frame size of the last phase.
        setup: sets the network up for that size.
        loss: computes the loss of a batch on this rank, weighted as in training; called as
            ``loss(net, latents, text, noise)``, and with ``actions`` if there are any.

    Raises:
        UserError: there are fewer held-out clips than requested.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: ParallelMesh,
        net: VideoDiT,
        ema: Ema | None,
        feed: BatchFeed,
        setup: NetworkSetup,
        loss: Callable[..., Tensor],
    ) -> None:
        self._config, self._mesh, self._net = config, mesh, net
        self._ema = ema if config.validation_weights == "ema" else None
        assert feed.held_out is not None
        self._setup, self._dataset = setup, feed.held_out
        dataset = feed.held_out
        counts = dataset.clip_counts
        if config.validation_clips > sum(counts):
            raise UserError(
                f"trainer.validation_clips={config.validation_clips}: the {len(counts)} held-out "
                f"windows in {dataset.folder} have {sum(counts)} clips; set at most that, or hold "
                "out more (spec.training.validation.clips)"
            )
        clips = choose_clips(counts, config.validation_clips or DEFAULT_CLIPS)
        self.clips = len(clips)
        self._evaluations = evaluations(clips, config.validation_levels)
        self._losses = ClipLosses(
            dataset,
            config.latent_shape,
            config.noise_distribution,
            loss,
            mesh.world.device,
            frames=mesh.frames(config.latent_shape[1]),
            encode=feed.encode,
        )
        self.draws = self._identify(clips)

    def _identify(self, clips: Sequence[tuple[int, int]]) -> str:
        """Return a digest of everything besides the weights that the losses depend on."""
        config = self._config
        names = [(self._dataset.stems[window], clip) for window, clip in clips]
        facts = [
            names,
            config.latent_shape,
            config.validation_levels,
            config.validation_weights,
            self._losses.conditional,
            (config.high_sigma_ratio, config.adjust_noise),
            (config.loss_scale, config.loss_weight),
        ]
        if config.action_conditioning != "none":
            facts.append(config.action_conditioning)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def measure(self, iteration: int, keep_on: Callable[[], bool]) -> ValidationResult:
        """Measure the loss; a collective call.

        Args:
            iteration: iterations done.
            keep_on: called on every rank after each evaluation.

        Raises:
            Interrupted: ``keep_on`` returned False.
            UserError: a held-out file is damaged.
        """
        count, mesh = len(self._evaluations), self._mesh
        per_rank = math.ceil(count / mesh.data_size)
        losses = torch.zeros(count, dtype=torch.float64, device=mesh.world.device)
        with self._evaluating():
            for number in range(per_rank):
                place = mesh.data_rank * per_rank + number
                # every rank runs as many passes, as FSDP's collectives require
                loss = self._evaluate(self._evaluations[min(place, count - 1)])
                if place < count:
                    losses[place] = loss
                if not keep_on():
                    raise Interrupted
        return self._result(iteration, mesh.world.sum(losses).tolist())

    def _result(self, iteration: int, losses: Sequence[float]) -> ValidationResult:
        def mean(first: float, last: float) -> float | None:
            """Average over the levels with a share from ``first`` up to ``last``."""
            found = [
                loss
                for loss, one in zip(losses, self._evaluations, strict=True)
                if first <= one.share < last
            ]
            value = math.fsum(found) / len(found)
            return value if math.isfinite(value) else None

        return ValidationResult(
            iteration=iteration,
            loss=mean(0, 1),
            low=mean(0, 1 / 3),
            middle=mean(1 / 3, 2 / 3),
            high=mean(2 / 3, 1),
            clips=self.clips,
            levels=self._config.validation_levels,
            weights=self._config.validation_weights,
            draws=self.draws,
        )

    def _evaluate(self, one: Evaluation) -> float:
        """Return this rank's part of the loss of one evaluation; the sum over ranks is its loss."""
        return float(self._losses(self._net, one)) / self._mesh.context_size

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switch to evaluation; weights, random states and the training mode are restored."""
        device, training = self._mesh.world.device, self._net.training
        devices = [device] if device.type == "cuda" else []
        average = self._ema.in_use() if self._ema is not None else contextlib.nullcontext()
        size = self._setup.evaluating_last_phase()
        with torch.random.fork_rng(devices), average, size, torch.no_grad():
            self._net.eval()
            try:
                yield
            finally:
                self._net.train(training)
                if isinstance(self._net, FSDPModule):
                    self._net.reshard()  # FSDP keeps the root's parameters for a backward pass
