"""Read batches, draw their noise and copy both to the device ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.training.dataset import (
    Batch,
    LatentDataset,
    collate,
    generator_for,
    positions,
)
from video2world_trainer.training.loss import (
    NoiseDistribution,
    NoiseSample,
    collate_noise,
    sample_noise,
)

__all__ = ["PrefetchedBatch", "Prefetcher"]

AHEAD = 2  # batches to prepare in host memory


@dataclass(frozen=True)
class PrefetchedBatch:
    """A batch on the host, and its tensors on the device.

    ``latents`` are this rank's latent frames ``[B, 16, T, h, w]``, also if ``batch`` has pixels;
    ``actions`` are those of the complete clips, None for a network without actions.
    """

    batch: Batch
    latents: Tensor
    text: Tensor
    noise: NoiseSample
    actions: Tensor | None


class Prefetcher(Iterator[PrefetchedBatch]):
    """Iterate over one rank's micro-batches, starting at a data position.

    The n-th micro-batches of all ranks together have consecutive positions, which follow those of
    the micro-batches before: R ranks with K micro-batches per iteration and 1 rank with R K of them
    train on the same clips with the same noise.

    Args:
        dataset: the samples.
        mesh: determines this rank's samples and latent frames.
        consumed: number of samples that all ranks together have consumed before.
        batch_size: clips per rank and micro-batch.
        shape: shape of a complete clip's latents, ``(16, T, h, w)``.
        distribution: distribution of noise, conditional frames and text dropout.
        seed: the run's seed.
        encode: computes latents from pixels on the device, for data sets without latents.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        mesh: ParallelMesh,
        *,
        consumed: int,
        batch_size: int,
        shape: tuple[int, int, int, int],
        distribution: NoiseDistribution,
        seed: int,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._encode = encode
        self._dataset, self._mesh, self._consumed = dataset, mesh, consumed
        self._batch_size, self._shape = batch_size, shape
        self._distribution, self._seed = distribution, seed
        self._device = mesh.world.device
        self._copy_stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._ready: queue.Queue[tuple[Batch, NoiseSample] | BaseException] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetcher", daemon=True)
        self._thread.start()

    def _prepare(self) -> tuple[Batch, NoiseSample]:
        """Read the next batch and draw its noise, in host memory."""
        mesh = self._mesh
        places = positions(self._consumed, mesh.data_rank, self._batch_size)
        self._consumed += mesh.data_size * self._batch_size
        batch = collate([self._dataset.sample(place, self._seed) for place in places])
        samples = [
            sample_noise(self._shape, generator_for(self._seed, "noise", place), self._distribution)
            for place in places
        ]
        noise = collate_noise(samples)
        own = mesh.frames(self._shape[1])
        noise = replace(noise, noise=noise.noise[:, :, own])
        if self._copy_stream is not None:
            batch = replace(
                batch,
                latents=batch.latents.pin_memory(),
                text=batch.text.pin_memory(),
                actions=None if batch.actions is None else batch.actions.pin_memory(),
            )
            noise = NoiseSample(**{name: one.pin_memory() for name, one in vars(noise).items()})
        return batch, noise

    def _run(self) -> None:
        while not self._closed.is_set():
            prepared: tuple[Batch, NoiseSample] | BaseException
            try:
                prepared = self._prepare()
            except BaseException as error:  # raised by __next__ in the main thread
                prepared = error
            while not self._closed.is_set():
                try:
                    self._ready.put(prepared, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(prepared, BaseException):
                return

    def __next__(self) -> PrefetchedBatch:
        """Return the next batch.

        Raises:
            UserError: one of its files is damaged.
        """
        prepared = self._ready.get()
        if isinstance(prepared, BaseException):
            raise prepared
        batch, noise = prepared
        if self._copy_stream is None:
            latents = self._own_latents(batch.latents)
            return PrefetchedBatch(batch, latents, batch.text, noise, batch.actions)
        with torch.cuda.stream(self._copy_stream):
            latents, text, *rest = (
                one.to(self._device, non_blocking=True)
                for one in (batch.latents, batch.text, *vars(noise).values())
            )
            actions = batch.actions
            if actions is not None:
                actions = actions.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._copy_stream)
        for one in (latents, text, *rest, *([] if actions is None else [actions])):
            one.record_stream(current)
        own = self._own_latents(latents)
        return PrefetchedBatch(batch, own, text, NoiseSample(*rest), actions)

    def _own_latents(self, content: Tensor) -> Tensor:
        """Return this rank's latent frames, encoding them if the data set has pixels."""
        if self._encode is None:
            return content
        latents = self._encode(content.float() / 127.5 - 1).float()
        return latents[:, :, self._mesh.frames(self._shape[1])]

    def close(self) -> None:
        """Stop reading ahead."""
        self._closed.set()
        self._thread.join()
