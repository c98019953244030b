"""A training run on one rank: what it is made of, one step of it, its checkpoints."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video2world_common.events import emit, say
from video2world_common.exit_codes import UserError
from video2world_preprocess.vae.vae import load_vae
from video2world_trainer.checkpoint.async_saver import Saver
from video2world_trainer.checkpoint.dcp import Staging, read_shards
from video2world_trainer.checkpoint.export import merged_entries, model_entries
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.run_config import RunConfig
from video2world_trainer.distributed.activation_checkpoint import (
    LEVELS,
    Keep,
    block_bytes,
    prepare_blocks,
)
from video2world_trainer.distributed.parallelize import lay_out, shard, share_frames
from video2world_trainer.distributed.process_group import World
from video2world_trainer.model.attention_backends import select_for
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import AdapterFacts, inject
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.model.state_dict import load_dit_weights
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.dataset import Batch, LatentDataset, VideoDataset, generator_for
from video2world_trainer.training.divergence import Divergence
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.loss import training_loss
from video2world_trainer.training.lr_schedule import LinearSchedule
from video2world_trainer.training.optimizer import MasterAdamW
from video2world_trainer.training.prefetcher import Feed
from video2world_trainer.training.step import Outcome, TrainStep

__all__ = ["NonFiniteError", "Progress", "Run"]

STAGE = "train"
MAX_SKIPPED, SKIP_WINDOW = 3, 100  # so many skipped steps within so many iterations end the run
WORKSPACE = 30  # what one block's backward pass takes, in tensors of tokens x width (measured 26)


class NonFiniteError(Exception):
    """Loss or gradients keep being NaN or infinite; the message names the batches."""


@dataclass
class Progress:
    """What a resumed run must know beside weights and moments; plain data, saved as it is."""

    iteration: int = 0
    consumed: int = 0  # samples taken by all ranks together: the data position
    updates: int = 0  # optimizer steps applied, skipped ones left out: the EMA's clock
    loss_sum: float = 0.0  # since the last report
    loss_count: int = 0
    skipped: list[int] = field(default_factory=list)  # iterations whose step was not applied
    divergence: dict[str, Any] = field(default_factory=dict)  # see divergence.py


@dataclass(frozen=True)
class _Pending:
    """A step whose outcome the host has not looked at yet."""

    iteration: int
    batch: Batch
    numbers: Tensor  # loss, norm, skipped; on the host once ``ready``
    ready: torch.cuda.Event | None


def _fps(config: TrainConfig) -> int:
    return 10 if config.num_frames == 61 else 16


def _resolution(config: TrainConfig) -> str:
    return "480p" if min(config.video_size) < 700 else "720p"


def _base_weights(config: TrainConfig) -> str | None:
    return PRESETS[config.size].base_weights(_resolution(config), _fps(config))


def _description(config: TrainConfig) -> dict[str, Any]:
    """model/config.json: what inference must know, and in ``run`` what makes a run the same."""
    known = {
        "size": config.size,
        "architecture": config.architecture,
        "geometry": config.geometry,
        "num_frames": config.num_frames,
        "video_size": list(config.video_size),
        "text_length": config.text_length,
        "rope_ratio_t": config.rope_t,
        "rope_ratio_h": config.rope_h,
        "rope_ratio_w": config.rope_w,
    }
    if config.architecture == "lora":
        known |= {
            "lora_rank": config.lora_rank,
            "lora_alpha": config.lora_alpha,
            "lora_targets": config.lora_targets,
        }
    if config.encode:
        known["encode"] = True
    run = known | {"dataset_dir": config.dataset_dir, "ema": config.ema, "seed": config.seed}
    return known | {"fps": _fps(config), "run": run}


def _network(config: TrainConfig, world: World) -> VideoDiT:
    """The network with its starting weights and adapters, on the rank's device."""
    chosen = PRESETS[config.size]
    dit = replace(
        chosen.dit,
        rope_ratio_t=config.rope_t,
        rope_ratio_h=config.rope_h,
        rope_ratio_w=config.rope_w,
    )
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
    with world.device:
        net = VideoDiT(dit).to(dtype)
    if path.name:
        recorded = RunConfig.read(path.parent / "config.json").adapters
        given = AdapterFacts(config.dit_lora_alpha or None)
        load_dit_weights(net, path, adapters=given, recorded=recorded)
    else:  # Tiny has no published weights
        net.cpu().init_weights(generator_for(config.seed, "weights", 0))
        net.to(world.device)
    if config.architecture == "lora":
        inject(
            net,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets.split(","),
            generator=generator_for(config.seed, "adapters", 0),
        )
    return net


class Run:
    """A training run on one rank: network, optimizer, data, and how far they are."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        preset, latent_frames = PRESETS[config.size], config.latent_shape[1]
        self.layout = layout = lay_out(
            world,
            context=config.context_parallel_size,
            shard_size=config.shard_size,
            frames=latent_frames,
            heads=preset.dit.num_heads,
        )
        on_gpu = world.device.type == "cuda"
        self.dtype = getattr(torch, preset.compute_dtype) if on_gpu else torch.float32
        self.attention = select_for(config.attention, world.device, self.dtype)
        self.folder = CheckpointFolder(config.checkpoint_folder)
        kind = VideoDataset if config.encode else LatentDataset
        self.dataset = kind(
            Path(config.dataset_dir),
            shape=config.latent_shape,
            geometry=config.geometry,
            text_length=config.text_length,
            cache=config.cache,
            frames=layout.frames(latent_frames),
        )
        self.vae = None
        if config.encode:
            path = config.vae_path or f"{preset.base_folder}/tokenizer"
            self.vae = load_vae(path, world.device)
        self.dataset.require(layout.data_size)
        self.net = net = _network(config, world)
        share_frames(net, self.attention.attend, self.attention.to_caption, layout, latent_frames)
        self.compiled = config.compile and on_gpu and config.size != "Tiny"
        shard(net, layout)
        beta1, beta2 = config.betas
        self.optimizer = MasterAdamW(
            net.named_parameters(),
            weight_decay=config.weight_decay,
            betas=(beta1, beta2),
            eps=config.eps,
        )
        self.ema = Ema(net.named_parameters(), config.ema_rate) if config.ema else None
        self.keep = self._level()
        prepare_blocks(
            net,
            keep=self.keep,
            compiled=self.compiled,
            offload=config.offload and self.compiled,
        )
        self.step_on = TrainStep(
            net,
            self.optimizer,
            self.ema,
            dtype=self.dtype,
            clip=config.clip_norm,
            loss=self._loss,
            norm=layout.norm,
            mean=world.average,
            reduce=world.average_gradients if layout.shard_mesh is None else lambda _: None,
        )
        self.schedule = LinearSchedule(
            config.warm_up_steps, config.cycle_length, config.f_max, config.f_min, config.f_start
        )
        self.progress = Progress()
        self.divergence = Divergence()
        self.norm: float | None = None  # of the newest gradients that were looked at
        self._pending: deque[_Pending] = deque()
        # the host stays one step ahead of a GPU, and looks at what a step gave after the next
        self._lag = 1 if on_gpu else 0
        self._feed: Feed | None = None
        self.saver = Saver(
            self.folder,
            world,
            Staging(layout.host_mesh),
            keep=config.keep,
            asynchronous=config.asynchronous,
        )
        self.saver.reserve(self._state())

    def _level(self) -> Keep:
        """How much blocks keep: as asked for, or the most that fits beside everything else."""
        config = self.config
        if config.keep_activations != "auto":
            return next(one for one in LEVELS if one == config.keep_activations)
        if self.world.device.type != "cuda" or config.size == "Tiny":
            return "all"
        dit = self.net.config
        tokens = config.batch_size * self.tokens_per_clip // self.layout.context_size
        free = torch.cuda.mem_get_info(self.world.device)[0]
        gradients = sum(one.numel() * one.element_size() for one in self.optimizer.gradients_like())
        workspace = WORKSPACE * tokens * dit.model_channels * 2
        room = free - gradients - workspace - free // 20
        for keep in LEVELS[1:-1]:
            if block_bytes(dit, tokens, keep) * dit.num_blocks <= room:
                return keep
        return "attention"

    @property
    def tokens_per_clip(self) -> int:
        """Tokens of one clip."""
        _, frames, height, width = self.config.latent_shape
        return frames * (height // 2) * (width // 2)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.config.learning_rate * self.schedule.factor(self.progress.iteration)

    def _loss(self, net: Any, latents: Tensor, text: Tensor, randomness: Any, **kw: Any) -> Tensor:
        frames = self.config.latent_shape[1]
        own, weight = self.layout.frames(frames), self.layout.weight(frames)
        loss = training_loss(
            net,
            latents,
            text,
            randomness,
            first_frame=own.start,
            scale=self.config.loss_scale,
            edm=self.config.loss_weight == "edm",
            **kw,
        )
        return loss if weight == 1 else loss * weight

    def step(self) -> None:
        """Train one iteration.

        Raises:
            NonFiniteError: too many steps had to be skipped.
        """
        config, progress = self.config, self.progress
        if self._feed is None:
            self._feed = Feed(
                self.dataset,
                self.layout,
                consumed=progress.consumed,
                batch_size=config.batch_size,
                shape=config.latent_shape,
                law=config.noise_law,
                seed=config.seed,
                encode=self.vae.encode_latents if self.vae is not None else None,
            )
        item = next(self._feed)
        if not self.divergence.nothing:
            self._measure(item.latents)
        outcome = self.step_on(item.latents, item.text, item.randomness, self.learning_rate)
        progress.iteration += 1
        progress.consumed += self.layout.data_size * config.batch_size
        self._pending.append(self._seen_later(outcome, item.batch))
        self.settle(self._lag)

    def _measure(self, latents: Tensor) -> None:
        """Note the loss of a network that predicts nothing: of noise and latents themselves."""
        power = float(self.world.average(latents.float().square().mean()))
        if math.isfinite(power):
            self.divergence.nothing = self.config.loss_scale * (1 + power)

    def withdraw(self) -> int | None:
        """Delete the checkpoints of a diverged network; returns the newest that is left."""
        self.saver.wait()
        since = self.divergence.since
        assert since is not None
        return self.world.leader_does(lambda: self.folder.withdraw(since))

    def _seen_later(self, outcome: Outcome, batch: Batch) -> _Pending:
        numbers = torch.stack([outcome.loss, outcome.norm, outcome.skipped])
        ready = None
        if numbers.is_cuda:
            host = torch.empty(3, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        return _Pending(self.progress.iteration, batch, numbers, ready)

    def settle(self, left: int = 0) -> None:
        """Look at what the steps gave, all but the newest ``left``.

        Raises:
            NonFiniteError: too many steps had to be skipped.
        """
        while len(self._pending) > left:
            one = self._pending.popleft()
            if one.ready is not None:
                one.ready.synchronize()
            loss, self.norm, skipped = one.numbers.tolist()
            if skipped:
                self._skipped(one)
            else:
                self.progress.updates += 1
                self.progress.loss_sum += loss
                self.progress.loss_count += 1

    def _skipped(self, one: _Pending) -> None:
        """Count a step that was not applied; end the run when there are too many."""
        finite = one.batch.latents.isfinite().flatten(1).all(1).tolist()
        mine = [
            name if good else f"{name} (its latents are not finite)"
            for name, good in zip(one.batch.names, finite, strict=True)
        ]
        named = dict.fromkeys(name for names in self.world.gather(mine) for name in names)
        names = "; ".join(named)
        recent = [n for n in self.progress.skipped if n > one.iteration - 1 - SKIP_WINDOW]
        self.progress.skipped = [*recent, one.iteration - 1]
        if self.world.leads:
            say(
                f"iteration {one.iteration}: loss or gradients are not finite, step skipped: "
                f"{names}"
            )
            emit("skipped_step", STAGE, iteration=one.iteration, batch=names)
        if len(self.progress.skipped) >= MAX_SKIPPED:
            raise NonFiniteError(
                f"loss or gradients were not finite {MAX_SKIPPED} times within {SKIP_WINDOW} "
                f"iterations, last at iteration {one.iteration} with: {names}. Delete the latents "
                "named here and run the latents stage again, or lower optimizer.lr; the last good "
                f"checkpoint is iteration {self.saver.saved}"
            )

    def _state(self) -> dict[str, Tensor]:
        """Everything large that makes the run, where it lies."""
        frozen = {
            f"frozen.{name}": one.detach()
            for name, one in self.net.named_parameters()
            if not one.requires_grad
        }
        return self.optimizer.state() | (self.ema.state() if self.ema else {}) | frozen

    def save(self) -> None:
        """Write a checkpoint; in the background, if the settings say so.

        Raises:
            OSError: it, or the one before, could not be written.
        """
        self.settle()
        progress, rate = self.progress, self.learning_rate
        progress.divergence = self.divergence.state()
        scheduler = {
            "last_epoch": progress.iteration,
            "_step_count": progress.iteration + 1,
            "base_lrs": [self.config.learning_rate],
            "_last_lr": [rate],
        }
        trainer = {
            "grad_scaler": {},
            "iteration": progress.iteration,
            "progress": dict(vars(progress)),
            "world_size": self.world.size,
        }
        optim = {
            "param_groups": [self.optimizer.settings()],
            "shards": self.folder.shards(progress.iteration).name,
        }
        model = model_entries(
            self.net,
            average=self.ema is not None,
            iteration=progress.iteration,
            samples=progress.consumed,
        )
        self.saver.save(
            progress.iteration,
            self._state(),
            model,
            merged_entries(self.net, model),
            {"optim": optim, "scheduler": scheduler, "trainer": trainer},
            self.divergence.healthy,
        )

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
        optim = self.folder.load("optim", iteration)
        trainer = self.folder.load("trainer", iteration)
        if "shards" not in optim or "progress" not in trainer:
            raise UserError(
                f"{self.folder.path('optim', iteration)} was not written by this trainer, so its "
                "training cannot be continued; start a run with another job.name from it with "
                "model.config.model_manager_config.dit_path="
                f"{self.folder.path('model', iteration)}"
            )
        group = None if self.world.size == 1 else self.saver.group
        read_shards(self.folder.shards(iteration), self._state(), group)
        self.optimizer.restored()
        self.progress = Progress(**trainer["progress"])
        self.divergence = Divergence.restored(self.progress.divergence or {"healthy": iteration})
        self.step_on.updates.fill_(self.progress.updates)
        self.saver.saved = iteration
        return True

    def close(self) -> None:
        """Stop reading ahead and wait for what is being written.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        if self._feed is not None:
            self._feed.close()
        self.saver.wait()
