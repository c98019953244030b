"""Feed a run with batches, those of each phase from its own data set, and with held-out clips."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from video2world_common.action_statistics import ACTIONS_FILE, ActionStatistics
from video2world_common.exit_codes import UserError
from video2world_preprocess.vae.vae import load_vae
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.dataset import LatentDataset, VideoDataset
from video2world_trainer.training.phases import Phase
from video2world_trainer.training.prefetcher import PrefetchedBatch, Prefetcher

__all__ = ["BatchFeed"]

NO_WINDOWS = (
    "hold out episodes or videos of the data set (validationEpisodeIDs, validationEpisodes, "
    "validationNames or validationPercent in spec.dataset; val/ of a prepared folder) and run the "
    "stages before training, or leave spec.training.validation out"
)


class BatchFeed:
    """The data sets of all phases, the batches of the running one, and the held-out windows.

    A batch depends on the seed, the phase and the data position only. The position counts through
    all phases, so that a phase continues the epoch that the one before has begun.

    Args:
        config: the run's settings.
        mesh: determines this rank's samples and latent frames.
        phases: the run's phases.
        actions: the actions that the network reads; None for none.

    Raises:
        UserError: a data set has no window to train on, or too few.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: ParallelMesh,
        phases: tuple[Phase, ...],
        actions: RecordedActions | None = None,
    ) -> None:
        build = partial(_build_dataset, config, mesh, actions)
        self._config, self._mesh = config, mesh
        self._by_size: dict[tuple[int, int], LatentDataset] = {}
        for phase in phases:
            if phase.video_size not in self._by_size:
                dataset = build(phase, Path(config.dataset_dir))
                dataset.require(mesh.data_size)
                self._by_size[phase.video_size] = dataset
        self.held_out: LatentDataset | None = None
        if config.run_validation:
            folder = _held_out_folder(config, phases[-1])
            if actions is not None:
                _require_same_actions(folder, actions)
            self.held_out = build(phases[-1], folder)
        self.encode: Callable[[Tensor], Tensor] | None = None  # of pixels, without latents
        if config.encode:
            path = config.vae_path or f"{PRESETS[config.size].base_folder}/tokenizer"
            self.encode = load_vae(path, mesh.world.device).encode_latents
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
            encode=self.encode,
        )

    def close(self) -> None:
        """Stop reading ahead."""
        if self._batches is not None:
            self._batches.close()


def _build_dataset(
    config: TrainConfig,
    mesh: ParallelMesh,
    actions: RecordedActions | None,
    phase: Phase,
    folder: Path,
) -> LatentDataset:
    dataset = VideoDataset if config.encode else LatentDataset
    return dataset(
        folder,
        shape=phase.latent_shape,
        geometry=config.geometry,
        text_length=config.text_length if config.reads_text else 0,
        cache=config.cache,
        frames=mesh.frames(phase.latent_shape[1]),
        latents=phase.latents,
        actions=actions.statistics if actions else None,
    )


def _require_same_actions(split: Path, actions: RecordedActions) -> None:
    """Check that held-out windows have the actions of the run; another data set may not."""
    path, known = split.parent / ACTIONS_FILE, actions.statistics
    if not path.is_file():
        return
    found = ActionStatistics.read(path)
    if (found.names, found.representation) != (known.names, known.representation):
        raise UserError(
            f"dataloader_val.dataset.dataset_dir={split}: its actions are "
            f"{', '.join(found.names)} ({found.representation}), those of training "
            f"{', '.join(known.names)} ({known.representation}): prepare it with the same actions"
        )


def _held_out_folder(config: TrainConfig, phase: Phase) -> Path:
    """Return the folder of the held-out split; raise UserError if it has no window."""
    train = Path(config.dataset_dir)
    outer = train if (train / "train").is_dir() else train.parent
    folder = Path(config.validation_dir or outer / "val")
    part = "videos" if config.encode else phase.latents
    if not any((folder / part).glob("[!.]*")):
        raise UserError(f"trainer.run_validation=true: no window in {folder}/{part}: {NO_WINDOWS}")
    return folder
