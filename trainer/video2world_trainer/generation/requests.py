"""Turn the inference command's flags, or a batch file, into a list of samples to generate."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_common.user_text import caption_in
from video2world_trainer.generation.batch_file import NUMBERS, read_batch

__all__ = ["SampleRequest", "existing_path", "parse_requests"]


@dataclass(frozen=True)
class SampleRequest:
    """One sample to generate.

    An empty ``prompt`` means the caption of the input, ``negative_prompt`` None the model's
    default. ``num_conditional_frames`` are pixel frames. ``actions`` None means those of the input,
    if the checkpoint follows actions; ``all_actions`` makes the video as long as they are, and not
    one clip long.
    """

    source: Path
    prompt: str
    target: Path
    negative_prompt: str | None = None
    seed: int = 0
    guidance: float = 7.0
    num_steps: int = 35
    num_conditional_frames: int = 1
    actions: Path | None = None
    all_actions: bool = False

    @property
    def own_actions(self) -> Path:
        """Where the actions of a data set's window are."""
        return self.source.parent.parent / "actions" / f"{self.source.stem}.safetensors"

    @property
    def caption(self) -> str:
        """Caption of a data set's window, or of a user's own video; empty if there is none."""
        name = f"{self.source.stem}.txt"
        for path in (self.source.parent.parent / "metas" / name, self.source.parent / name):
            try:
                return caption_in(on_volume(path).read_bytes())
            except (OSError, ValueError, UserError):
                continue
        return ""

    @property
    def effective_prompt(self) -> str:
        """The prompt, or else the caption; empty if there is neither."""
        return self.prompt.strip() or self.caption

    @property
    def embedding(self) -> Path | None:
        """File with the data set's embedding of the prompt, if the prompt is its caption."""
        path = self.source.parent.parent / "t5_xxl" / f"{self.source.stem}.pickle"
        return path if path.is_file() and self.effective_prompt == self.caption else None

    @property
    def branches(self) -> int:
        """Network evaluations per noise level: two with guidance."""
        return 2 if self.guidance else 1


def existing_path(path: Path) -> Path:
    """Return ``path``, or the existing path that the guide's command means by it.

    The guide's example of an inference command leaves ``videos/`` out of the input's path, and
    names a run's folder by its experiment.
    """
    if path.exists():
        return path
    for other in (
        path.parent / "videos" / path.name,
        Path(*(part.removeprefix("predict2_video2world_training_") for part in path.parts)),
    ):
        if other != path and other.exists():
            say(f"note: there is no {path}: using {other}")
            return other
    return path


def parse_requests(args: argparse.Namespace) -> list[SampleRequest]:
    """Return the samples that the command line asks for.

    Raises:
        UserError: there are none or one is invalid, would overwrite an input or another sample's
            files, or cannot be written.
    """
    common = {name: getattr(args, name) for name in (*NUMBERS, "negative_prompt")}
    if args.action_path is not None and args.input_annotation is not None:
        raise UserError("--action_path and --input_annotation: name the actions once")
    if args.batch_input_json is None:
        if args.input_path is None:
            raise UserError("--input_path: name the image or video to start from")
        target = args.save_path or Path("output/generated_video.mp4")
        request = SampleRequest(
            existing_path(args.input_path),
            args.prompt or "",
            target,
            actions=args.action_path or args.input_annotation,
            all_actions=args.action_path is not None or args.autoregressive,
            **common,
        )
        return _checked([request], "--save_path")
    path = args.batch_input_json
    for name in ("input_path", "prompt", "save_path", "action_path", "input_annotation"):
        if getattr(args, name) is not None:
            say(f"note: --{name} has no effect with --batch_input_json")
    requests = [
        SampleRequest(
            existing_path(Path(entry["input_video"])),
            entry.get("prompt") or "",
            Path(entry.get("output_video") or f"output_{number}.mp4"),
            actions=Path(entry["actions"]) if entry.get("actions") else None,
            all_actions=bool(entry.get("actions")) or args.autoregressive,
            **common | {name: entry[name] for name in common if entry.get(name) is not None},
        )
        for number, entry in enumerate(read_batch(path))
    ]
    return _checked(requests, f"{path}: output_video")


def _checked(requests: list[SampleRequest], where: str) -> list[SampleRequest]:
    """Return ``requests`` if no sample would overwrite an input or another sample's files."""
    inputs = {request.source.resolve() for request in requests}
    taken: set[Path] = set()
    for request in requests:
        target = request.target.resolve()
        if request.target.suffix.lower() != ".mp4":
            raise UserError(f"{where} {request.target}: the name must end in .mp4")
        if target in inputs:
            raise UserError(f"{where} {request.target}: this is an input; choose another name")
        if target.with_suffix("") in taken:
            raise UserError(f"{where} {request.target}: two samples have this name; rename one")
        taken.add(target.with_suffix(""))
    for folder in {request.target.parent for request in requests}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{where}: nothing can be written into {folder} ({error.strerror}); choose another "
                "folder or change its owner"
            ) from None
    return requests
