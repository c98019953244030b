"""Read training samples, latents or videos with text embeddings, in a resumable order.

The sample at a position of the run is a pure function of seed and position, so a resumed run, or
one with another world size, sees the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from video2world_common.action_statistics import ActionStatistics
from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.latent_folders import LATENTS
from video2world_preprocess.text.embedding_files import read_embedding
from video2world_preprocess.video.reader import probe, read_fitted
from video2world_preprocess.video.resize import Geometry
from video2world_trainer.training.clip_actions import ClipActions

__all__ = [
    "Batch",
    "LatentDataset",
    "TrainingSample",
    "VideoDataset",
    "collate",
    "generator_for",
    "positions",
    "sample_at",
]

TEXT_WIDTH = 1024


@dataclass(frozen=True)
class TrainingSample:
    """One clip with its caption's embedding."""

    name: str  # "<stem>, clip k", for messages
    latents: Tensor  # [16, T, h, w] float32, normalised; VideoDataset: uint8 [3, T', H, W]
    text: Tensor  # [N, 1024] float32, zeros beyond the caption
    actions: Tensor | None = None  # [F - 1, D] float32, normalised; of the complete clip


@dataclass(frozen=True)
class Batch:
    """Clips of one rank and iteration."""

    names: tuple[str, ...]
    latents: Tensor  # [B, 16, T, h, w], or pixels (see TrainingSample)
    text: Tensor  # [B, N, 1024]
    actions: Tensor | None = None  # [B, F - 1, D]


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    """Return a CPU generator whose state depends on the arguments only."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = torch.randperm(count, generator=generator_for(seed, "epoch", epoch))
    return tuple(order.tolist())


def sample_at(position: int, count: int, seed: int) -> int:
    """Return which of ``count`` windows is at ``position`` of the run: each once per epoch."""
    epoch, place = divmod(position, count)
    return _permutation(count, seed, epoch)[place]


def positions(consumed: int, rank: int, batch_size: int) -> range:
    """Return a data-parallel rank's positions in the global batch that starts at ``consumed``."""
    first = consumed + rank * batch_size
    return range(first, first + batch_size)


class LatentDataset:
    """The windows of a split folder that have latents and all else that a sample consists of.

    Args:
        folder: the split's folder, ``.../train``, or the data set's folder that contains it.
        shape: shape of one clip's latents, ``(16, T, h, w)``, from the run's settings.
        geometry: how videos were fitted to the frame size; checked against the files.
        text_length: tokens to pad or truncate captions to; 0 reads no text embeddings, and samples
            have a single token of zeros.
        cache: cache samples in memory.
        frames: latent frames to read of each clip; None for all.
        latents: the folder of the latents within the split's.
        actions: names and normalisation of the actions to read; None reads none.

    Raises:
        UserError: there is no window to train on, or latents have another shape or geometry.
    """

    pattern = "[!.]*.safetensors"
    stage = "the embeddings and latents stages"

    def __init__(
        self,
        folder: Path,
        *,
        shape: Sequence[int],
        geometry: Geometry,
        text_length: int = 512,
        cache: bool = False,
        frames: slice | None = None,
        latents: str = LATENTS,
        actions: ActionStatistics | None = None,
    ) -> None:
        folder, self.part = Path(folder), self._part(latents)
        self._frames = frames or slice(None)
        if not (folder / self.part).is_dir() and (folder / "train" / self.part).is_dir():
            folder = folder / "train"
        self.folder, self.text_length = folder, text_length
        self._shape, self._geometry = tuple(shape), geometry
        self._cache: dict[tuple[str, int], TrainingSample] | None = {} if cache else None
        self._actions = ClipActions(folder, actions, self._clip_frames) if actions else None
        self.stems: list[str] = []
        self._starts: list[Sequence[int]] = []  # first frames of the clips of each window
        self.problems: list[str] = []  # left-out windows with their reasons
        for path in sorted((folder / self.part).glob(self.pattern)):
            self._add(path)
        if not self.stems:
            reason = (
                f" ({len(self.problems)} were left out: {self.problems[0]})"
                if self.problems
                else ""
            )
            height, width = self._shape[2] * 8, self._shape[3] * 8
            also = f", also with --video_size {height} {width}" if "_" in self.part else ""
            raise UserError(
                f"dataloader_train.dataset.dataset_dir={folder}: there is no window to train on in "
                f"{self.part}{reason}; run {self.stage} on this folder first{also}"
            )

    def _part(self, latents: str) -> str:
        """Return the folder of the clips within the split's, given that of latents."""
        return latents

    def _add(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                clips, *shape = file.get_slice("latents").get_shape()
                metadata = file.metadata() or {}
                geometry = metadata.get("geometry", self._geometry)
                starts = file.get_tensor("starts").tolist() if self._actions else range(clips)
                frames = int(metadata["source_frames"]) if "source_frames" in metadata else None
        except (SafetensorError, OSError, ValueError) as error:
            self.problems.append(f"{path} is damaged ({error})")
            return
        if tuple(shape) != self._shape or geometry != self._geometry:
            raise UserError(
                f"{path} holds latents {list(shape)} made with geometry {geometry}, this run "
                f"needs {list(self._shape)} and {self._geometry}: run the latents stage with the "
                "run's num_frames, video_size and geometry, or set these as the latents have them"
            )
        if len(starts) != clips:
            self.problems.append(f"{path} holds {clips} clips with {len(starts)} first frames")
            return
        self._keep(path, starts, frames)

    def _keep(self, path: Path, starts: Sequence[int], frames: int | None) -> None:
        """Add a window with clips from ``starts``, of a video of ``frames`` frames if known."""
        if problem := self._problem(path, starts, frames):
            self.problems.append(problem)
        else:
            self.stems.append(path.stem)
            self._starts.append(starts)

    def _problem(self, path: Path, starts: Sequence[int], frames: int | None) -> str:
        embedding = self._embedding_path(path.stem)
        if not starts:
            return f"{path} holds no clip"
        if self.text_length and (not embedding.is_file() or not embedding.stat().st_size):
            return f"{embedding} is missing or empty"
        if self._actions is not None:
            return self._actions.problem(path.stem, starts, frames)
        return ""

    def _embedding_path(self, stem: str) -> Path:
        return self.folder / "t5_xxl" / f"{stem}.pickle"

    def __len__(self) -> int:
        return len(self.stems)

    @property
    def clip_counts(self) -> list[int]:
        """Number of clips of each window."""
        return [len(starts) for starts in self._starts]

    @property
    def parts(self) -> list[str]:
        """The folders of the split that are read."""
        texts = ["t5_xxl"] if self.text_length else []
        return [self.part, *texts, *([self._actions.folder.name] if self._actions else [])]

    @property
    def _clip_frames(self) -> int:
        return 1 + 4 * (self._shape[1] - 1)

    def report(self) -> None:
        """Log the number of windows, and which were left out and why."""
        say(f"{len(self)} windows with {sum(self.clip_counts)} clips in {self.folder / self.part}")
        if self.problems:
            say(f"{len(self.problems)} windows left out:")
            for problem in self.problems[:20]:
                say(f"  {problem}")
            if len(self.problems) > 20:
                say(f"  and {len(self.problems) - 20} more")

    def require(self, ranks: int) -> None:
        """Check that there are at least as many windows as data-parallel ranks.

        Raises:
            UserError: there are fewer.
        """
        if len(self) < ranks:
            raise UserError(
                f"dataloader_train.dataset.dataset_dir={self.folder}: {len(self)} windows are "
                f"fewer than the {ranks} ranks that train on them; add videos or use fewer "
                "processes"
            )

    def sample(self, position: int, seed: int) -> TrainingSample:
        """Return the sample at ``position`` of a run: a random clip of a window."""
        window = sample_at(position, len(self), seed)
        generator = generator_for(seed, "clip", position)
        clip = int(torch.randint(len(self._starts[window]), (1,), generator=generator))
        return self.read(window, clip)

    def _read(self, stem: str, clip: int) -> Tensor:
        path = self.folder / self.part / f"{stem}.safetensors"
        with safe_open(path, framework="pt") as file:
            part: Tensor = file.get_slice("latents")[clip, :, self._frames]
            return part.float().contiguous()

    def read(self, window: int, clip: int) -> TrainingSample:
        """Read one clip of one window; latents are memory-mapped.

        Raises:
            UserError: the embedding or the actions are damaged.
        """
        stem = self.stems[window]
        if self._cache is not None and (stem, clip) in self._cache:
            return self._cache[stem, clip]
        latents, actions = self._read(stem, clip), None
        if self._actions is not None:
            actions = self._actions.read(stem, self._starts[window][clip])
        sample = TrainingSample(f"{stem}, clip {clip}", latents, self._text(stem), actions)
        if self._cache is not None:
            self._cache[stem, clip] = sample
        return sample

    def _text(self, stem: str) -> Tensor:
        if not self.text_length:
            return torch.zeros(1, TEXT_WIDTH)
        embedding = torch.from_numpy(read_embedding(self._embedding_path(stem)))
        if embedding.shape[1] != TEXT_WIDTH:
            raise UserError(
                f"{self._embedding_path(stem)} is {embedding.shape[1]} wide, not {TEXT_WIDTH}: "
                "delete it and run the embeddings stage again"
            )
        text = torch.zeros(self.text_length, TEXT_WIDTH)
        kept = embedding[: self.text_length]
        text[: len(kept)] = kept.float()
        return text


class _UnreadableClip(UserError):
    """A clip of a video has damaged or missing frames."""


class VideoDataset(LatentDataset):
    """The windows of a split folder as videos, for training that encodes them in its step.

    A clip may start at any frame, so a window has as many clips as possible first frames. Samples
    hold pixels, uint8 ``[3, frames, H, W]``.
    """

    pattern = "[!.]*.mp4"
    stage = "the dataset and embeddings stages"

    def _part(self, latents: str) -> str:
        return "videos"

    def _add(self, path: Path) -> None:
        try:
            frames = probe(path).frames
        except UserError as error:
            self.problems.append(str(error))
            return
        self._keep(path, range(max(frames - self._clip_frames + 1, 0)), frames)

    def sample(self, position: int, seed: int) -> TrainingSample:
        """Return the sample at ``position``; a clip of the next window if it is unreadable.

        Raises:
            UserError: no window is readable, or an embedding is damaged.
        """
        for other in range(len(self)):
            try:
                return super().sample(position + other, seed)
            except _UnreadableClip as error:
                problem = error
                if str(error) not in self.problems:
                    self.problems.append(str(error))
                    say(f"left out, the next window is taken instead: {error}")
        raise problem

    def _read(self, stem: str, clip: int) -> Tensor:
        path = self.folder / self.part / f"{stem}.mp4"
        size = (self._shape[2] * 8, self._shape[3] * 8)
        try:
            frames = read_fitted(path, size, self._geometry, clip, self._clip_frames)
        except UserError as error:
            raise _UnreadableClip(*error.args) from error
        return torch.from_numpy(frames).permute(3, 0, 1, 2).contiguous()


def collate(samples: Sequence[TrainingSample]) -> Batch:
    """Stack samples into a batch."""
    actions = [one.actions for one in samples if one.actions is not None]
    return Batch(
        tuple(one.name for one in samples),
        torch.stack([one.latents for one in samples]),
        torch.stack([one.text for one in samples]),
        torch.stack(actions) if actions else None,
    )
