"""Batches for one rank, read, drawn and copied to its device ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from video2world_trainer.distributed.parallelize import Layout
from video2world_trainer.training.dataset import (
    Batch,
    LatentDataset,
    collate,
    generator_for,
    positions,
)
from video2world_trainer.training.loss import Draw, NoiseLaw, collate_draws, draw

__all__ = ["Feed", "Item"]

AHEAD = 2  # batches that wait in host memory


@dataclass(frozen=True)
class Item:
    """A batch: on the host, and its tensors on the device."""

    batch: Batch
    latents: Tensor
    text: Tensor
    randomness: Draw


class Feed(Iterator[Item]):
    """The batches of one rank from a data position on.

    Args:
        dataset: where they come from.
        layout: which of them, and which of their frames, are this rank's.
        consumed: samples that all ranks have taken before.
        shape: latents of a whole clip.
        law: how noise, given frames and dropped captions are distributed.
        batch_size, seed: as the run's settings have them.
        encode: turns pixels on the device into latents, where the data set has none.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        layout: Layout,
        *,
        consumed: int,
        batch_size: int,
        shape: tuple[int, int, int, int],
        law: NoiseLaw,
        seed: int,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._encode = encode
        self._dataset, self._layout, self._consumed = dataset, layout, consumed
        self._batch_size, self._shape = batch_size, shape
        self._law, self._seed = law, seed
        self._device = layout.world.device
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._ready: queue.Queue[tuple[Batch, Draw] | BaseException] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def _make(self) -> tuple[Batch, Draw]:
        layout = self._layout
        places = positions(self._consumed, layout.data_rank, self._batch_size)
        self._consumed += layout.data_size * self._batch_size
        batch = collate([self._dataset.sample(place, self._seed) for place in places])
        draws = [
            draw(self._shape, generator_for(self._seed, "noise", place), self._law)
            for place in places
        ]
        randomness = collate_draws(draws)
        own = layout.frames(self._shape[1])
        randomness = replace(randomness, noise=randomness.noise[:, :, own])
        if self._side is not None:
            batch = replace(batch, latents=batch.latents.pin_memory(), text=batch.text.pin_memory())
            randomness = Draw(**{name: one.pin_memory() for name, one in vars(randomness).items()})
        return batch, randomness

    def _work(self) -> None:
        while not self._closed.is_set():
            made: tuple[Batch, Draw] | BaseException
            try:
                made = self._make()
            except BaseException as error:  # raised where the batch is asked for
                made = error
            while not self._closed.is_set():
                try:
                    self._ready.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(made, BaseException):
                return

    def __next__(self) -> Item:
        """The next batch.

        Raises:
            UserError: a file of it is damaged.
        """
        made = self._ready.get()
        if isinstance(made, BaseException):
            raise made
        batch, randomness = made
        if self._side is None:
            return Item(batch, self._latents(batch.latents), batch.text, randomness)
        with torch.cuda.stream(self._side):
            moved = [
                one.to(self._device, non_blocking=True)
                for one in (batch.latents, batch.text, *vars(randomness).values())
            ]
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._side)
        for one in moved:
            one.record_stream(current)
        return Item(batch, self._latents(moved[0]), moved[1], Draw(*moved[2:]))

    def _latents(self, given: Tensor) -> Tensor:
        """This rank's latents, encoded if the data set gave pixels."""
        if self._encode is None:
            return given
        latents = self._encode(given.float() / 127.5 - 1).float()
        return latents[:, :, self._layout.frames(self._shape[1])]

    def close(self) -> None:
        """Read no more."""
        self._closed.set()
        self._thread.join()
