"""Feed a run with batches: those of each phase from its own data set, in one order."""

from __future__ import annotations

from pathlib import Path

from video2world_preprocess.vae.vae import load_vae
from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.dataset import LatentDataset, VideoDataset
from video2world_trainer.training.phases import Phase
from video2world_trainer.training.prefetcher import PrefetchedBatch, Prefetcher

__all__ = ["BatchFeed"]


class BatchFeed:
    """The data sets of all phases, and the batches of the running one.

    A batch depends on the seed, the phase and the data position only. The position counts through
    all phases, so that a phase continues the epoch that the one before has begun.

    Args:
        config: the run's settings.
        mesh: determines this rank's samples and latent frames.
        phases: the run's phases.

    Raises:
        UserError: a data set has no window to train on, or too few.
    """

    def __init__(self, config: TrainConfig, mesh: ParallelMesh, phases: tuple[Phase, ...]) -> None:
        self._config, self._mesh = config, mesh
        self._by_size: dict[tuple[int, int], LatentDataset] = {}
        for phase in phases:
            if phase.video_size not in self._by_size:
                dataset = self._by_size[phase.video_size] = _build_dataset(config, mesh, phase)
                dataset.require(mesh.data_size)
        self._vae = None
        if config.encode:
            path = config.vae_path or f"{PRESETS[config.size].base_folder}/tokenizer"
            self._vae = load_vae(path, mesh.world.device)
        self._phase: Phase | None = None
        self._batches: Prefetcher | None = None  # starts with the first batch, after resuming

    @property
    def datasets(self) -> list[LatentDataset]:
        """The data sets, one for each frame size."""
        return list(self._by_size.values())

    def next(self, phase: Phase, consumed: int) -> PrefetchedBatch:
        """Return the next batch of ``phase``.

        Args:
            phase: the running phase.
            consumed: samples that all ranks together have consumed before.

        Raises:
            UserError: one of its files is damaged.
        """
        if self._batches is None or phase != self._phase:
            self.close()
            self._phase, self._batches = phase, self._start(phase, consumed)
        return next(self._batches)

    def _start(self, phase: Phase, consumed: int) -> Prefetcher:
        config = self._config
        return Prefetcher(
            self._by_size[phase.video_size],
            self._mesh,
            consumed=consumed,
            batch_size=config.batch_size,
            shape=phase.latent_shape,
            distribution=config.noise_distribution,
            seed=config.seed,
            encode=self._vae.encode_latents if self._vae is not None else None,
        )

    def close(self) -> None:
        """Stop reading ahead."""
        if self._batches is not None:
            self._batches.close()


def _build_dataset(config: TrainConfig, mesh: ParallelMesh, phase: Phase) -> LatentDataset:
    dataset = VideoDataset if config.encode else LatentDataset
    return dataset(
        Path(config.dataset_dir),
        shape=phase.latent_shape,
        geometry=config.geometry,
        text_length=config.text_length,
        cache=config.cache,
        frames=mesh.frames(phase.latent_shape[1]),
        latents=phase.latents,
    )
