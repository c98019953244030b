"""Which samples the inference command is asked for, and their prompts' embeddings."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_common.user_text import caption_in
from video2world_preprocess.text.embedding_files import read_embedding
from video2world_preprocess.text.encoder import TextEncoder
from video2world_trainer.generation.batch_file import FLAGS, read_batch

__all__ = ["Item", "Texts", "items_of", "meant"]


@dataclass(frozen=True)
class Item:
    """One sample to make; an empty ``prompt`` stands for the input's own caption.

    ``negative_prompt`` None stands for the model's own.
    """

    source: Path
    prompt: str
    target: Path
    negative_prompt: str | None = None
    seed: int = 0
    guidance: float = 7.0
    num_steps: int = 35
    num_conditional_frames: int = 1

    @property
    def caption(self) -> str:
        """Of a data set's window, or of a user's own video; empty if there is none."""
        name = f"{self.source.stem}.txt"
        for path in (self.source.parent.parent / "metas" / name, self.source.parent / name):
            try:
                return caption_in(on_volume(path).read_bytes())
            except (OSError, ValueError, UserError):
                continue
        return ""

    @property
    def wording(self) -> str:
        """What the network is told; empty if nothing says it."""
        return self.prompt.strip() or self.caption

    @property
    def embedding(self) -> Path | None:
        """The data set's embedding of the wording, where that is the caption it was made of."""
        path = self.source.parent.parent / "t5_xxl" / f"{self.source.stem}.pickle"
        return path if path.is_file() and self.wording == self.caption else None


def meant(path: Path) -> Path:
    """``path``, or what is there of what the guide's own command means by it.

    Its example leaves ``videos/`` out of the input's path and names a run's folder by the whole
    experiment (facts sheet 8.2).
    """
    if path.exists():
        return path
    for other in (
        path.parent / "videos" / path.name,
        Path(*(part.removeprefix("predict2_video2world_training_") for part in path.parts)),
    ):
        if other != path and other.exists():
            say(f"note: there is no {path}: {other} is taken")
            return other
    return path


def items_of(args: argparse.Namespace) -> list[Item]:
    """The samples that the command line names.

    Raises:
        UserError: none or damaged; or one would overwrite an input or another one's files, or
            cannot be written.
    """
    common = {name: getattr(args, name) for name in (*FLAGS, "negative_prompt")}
    if args.batch_input_json is None:
        if args.input_path is None:
            raise UserError("--input_path: name the image or video to start from")
        target = args.save_path or Path("output/generated_video.mp4")
        item = Item(meant(args.input_path), args.prompt or "", target, **common)
        return _checked([item], "--save_path")
    path = args.batch_input_json
    for name in ("input_path", "prompt", "save_path"):
        if getattr(args, name) is not None:
            say(f"note: --{name} has no effect with --batch_input_json")
    items = [
        Item(
            meant(Path(entry["input_video"])),
            entry.get("prompt") or "",
            Path(entry.get("output_video") or f"output_{number}.mp4"),
            **common | {name: entry[name] for name in common if entry.get(name) is not None},
        )
        for number, entry in enumerate(read_batch(path))
    ]
    return _checked(items, f"{path}: output_video")


def _checked(items: list[Item], where: str) -> list[Item]:
    """``items``, if writing one can destroy neither an input nor another one's files."""
    inputs = {item.source.resolve() for item in items}
    taken: set[Path] = set()
    for item in items:
        target = item.target.resolve()
        if item.target.suffix.lower() != ".mp4":
            raise UserError(f"{where} {item.target}: the name must end in .mp4")
        if target in inputs:
            raise UserError(f"{where} {item.target}: this is an input; choose another name")
        if target.with_suffix("") in taken:
            raise UserError(f"{where} {item.target}: two samples have this name; rename one")
        taken.add(target.with_suffix(""))
    for folder in {item.target.parent for item in items}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{where}: nothing can be written into {folder} ({error.strerror}); choose another "
                "folder or give this one the right owner"
            ) from None
    return items


class Texts:
    """Embeddings of prompts: the data set's own where the prompt is its caption, else T5's."""

    def __init__(self, encoder: str, device: str, length: int) -> None:
        self._folder, self._device, self._length = encoder, device, length
        self._known: dict[str, np.ndarray] = {}
        self._refused: dict[str, UserError] = {}

    def prepare(self, items: Iterable[Item], *more: str) -> None:
        """Encode the wordings of ``items`` and ``more`` prompts, loading T5 once if at all.

        T5 is released on return. A bad embedding file is reported when its prompt is asked for.
        """
        wanted: dict[str, Path | None] = {}
        for item in items:
            if item.wording:
                wanted[item.wording] = wanted.get(item.wording) or item.embedding
        self._encode(dict.fromkeys(more) | wanted)
        for prompt, rows in self._known.items():
            if len(rows) >= self._length:
                say(
                    f"note: this prompt fills all {self._length} positions; what lies beyond them "
                    f"is not read: {prompt[:60]}..."
                )

    def _encode(self, prompts: Mapping[str, Path | None]) -> None:
        missing = []
        for prompt, cached in prompts.items():
            if cached is None:
                missing.append(prompt)
                continue
            try:
                self._known[prompt] = read_embedding(cached)
            except UserError as error:  # it must not cost the other prompts
                self._refused[prompt] = error
        if missing:
            encoder = TextEncoder.load(self._folder, self._device)
            self._known.update(zip(missing, encoder.encode(missing), strict=True))

    def padded(self, prompt: str | None) -> Tensor:
        """[1, length, 1024] float32, zeros beyond the prompt; None is zeros throughout.

        Raises:
            UserError: the prompt's embedding file is damaged or refused.
        """
        text = torch.zeros(1, self._length, 1024)
        if prompt in self._refused:
            raise self._refused[prompt]
        if prompt is not None:
            rows = torch.from_numpy(self._known[prompt][: self._length]).float()
            text[0, : len(rows)] = rows
        return text
