"""Find the actions that each sample follows, and plan the clips that its video takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video2world_common.action_statistics import ActionStatistics
from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_preprocess.actions.sequence import normalise, read_actions, read_sequence
from video2world_trainer.checkpoint.recorded_actions import RecordedActions
from video2world_trainer.generation.action_chunks import Chunk, plan_chunks
from video2world_trainer.generation.action_trace import ActionTrace
from video2world_trainer.generation.requests import SampleRequest

__all__ = ["ActionPlan", "SampleActions", "without_text"]

SAME = 1e-5  # relative difference of float32 values that went through text


@dataclass(frozen=True)
class SampleActions:
    """The actions that one sample follows.

    ``raw`` and ``normalised`` are [N, D], of which ``chunks`` are clips. ``of_input`` is False if
    they are known to be others than those of the input video, which then is no ground truth.
    """

    path: Path
    raw: np.ndarray
    normalised: np.ndarray
    chunks: tuple[Chunk, ...]
    trace: ActionTrace
    of_input: bool

    @property
    def frames(self) -> int:
        """Pixel frames of the video."""
        return len(self.raw) + 1

    def tensor(self, chunk: Chunk) -> Tensor:
        """Return the normalised rows of a clip, [1, F - 1, D]."""
        return torch.from_numpy(chunk.actions(self.normalised))[None]

    def to_json(self) -> dict[str, Any]:
        """Return what the sample's ``.json`` says of them."""
        return {
            "file": str(self.path),
            "clips": len(self.chunks),
            "repeated_last_rows": self.chunks[-1].padding,
            "of_the_input": self.of_input,
            **self.trace.to_json(),
        }


class ActionPlan:
    """The actions of all samples.

    Args:
        requests: the samples.
        recorded: the actions that the checkpoint was trained with; None if it reads none.
        checkpoint: its path, for messages.
        clip_frames: pixel frames of a clip.
        frames_from: ``first`` or ``last``, the input's frames that a video starts from.

    Raises:
        UserError: there are actions for a checkpoint that reads none, or those of every sample are
            missing or invalid. Those of a single sample are reported by :meth:`of`.
    """

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        recorded: RecordedActions | None,
        checkpoint: Path,
        clip_frames: int,
        frames_from: str,
    ) -> None:
        self.recorded = recorded
        self._checkpoint, self._clip_frames = checkpoint, clip_frames
        self._from_last = frames_from == "last"
        self._found: dict[Path, SampleActions | UserError] = {}  # by the sample's video
        for request in requests:
            if recorded is not None:
                self._found[request.target] = self._read_or_error(request, recorded)
            elif request.actions is not None:
                raise UserError(
                    f"{request.actions}: {checkpoint} was trained without actions; leave them out, "
                    "or name a checkpoint that was trained with them "
                    "(spec.training.conditioning.actions)"
                )
        errors = [str(one) for one in self._found.values() if isinstance(one, UserError)]
        if errors and len(errors) == len(requests):
            raise UserError("; ".join(dict.fromkeys(errors)))

    @property
    def reads_text(self) -> bool:
        """Whether the checkpoint reads prompts, and so makes a difference between two of them."""
        return self.recorded is None or self.recorded.conditioning.uses_text

    def of(self, request: SampleRequest) -> SampleActions | None:
        """Return the actions of a sample; None if the checkpoint reads none.

        Raises:
            UserError: they are missing or invalid.
        """
        found = self._found.get(request.target)
        if isinstance(found, UserError):
            raise found
        return found

    def chunks(self, request: SampleRequest) -> tuple[Chunk, ...]:
        """Return the clips of a sample; a single one without actions, or with invalid ones."""
        found = self._found.get(request.target)
        if isinstance(found, SampleActions):
            return found.chunks
        return plan_chunks(self._clip_frames - 1, self._clip_frames - 1)

    def _read_or_error(
        self, request: SampleRequest, recorded: RecordedActions
    ) -> SampleActions | UserError:
        try:
            return self._read(request, recorded)
        except UserError as error:
            return error

    def _read(self, request: SampleRequest, recorded: RecordedActions) -> SampleActions:
        given, statistics = request.num_conditional_frames, recorded.statistics
        if recorded.kind == "per_clip" and given != 1:
            raise UserError(
                f"{request.source}: num_conditional_frames {given}: {self._checkpoint} "
                "(per_clip) starts from 1 frame; set 1"
            )
        path, raw = self._sequence(request, statistics)
        clip_rows = self._clip_frames - 1
        if not request.all_actions and len(raw) > clip_rows:
            if request.actions is not None:
                say(
                    f"note: {path}: the first {clip_rows} of {len(raw)} actions are used; "
                    "--autoregressive uses all"
                )
            raw = raw[:clip_rows]
        if len(raw) < given:
            raise UserError(
                f"{path}: {len(raw)} actions make {len(raw) + 1} frames, of which the first "
                f"{given} are given: nothing would be left to generate"
            )
        chunks = plan_chunks(len(raw), clip_rows)
        trace = ActionTrace(
            statistics.names,
            raw,
            np.asarray(statistics.min),
            np.asarray(statistics.max),
            tuple(one.first for one in chunks[1:]),
        )
        self._describe(request, path, chunks)
        _warn_of_range(path, trace, statistics)
        return SampleActions(
            path=path,
            raw=raw,
            normalised=normalise(raw, statistics),
            chunks=chunks,
            trace=trace,
            of_input=_is_of_input(request, raw),
        )

    def _sequence(
        self, request: SampleRequest, statistics: ActionStatistics
    ) -> tuple[Path, np.ndarray]:
        """Return the file and the rows [N, D] of the sample's actions."""
        if request.actions is not None:
            return request.actions, read_sequence(request.actions, statistics)
        path = request.own_actions
        if not path.is_file():
            raise UserError(
                f"{request.source}: {self._checkpoint} follows actions, and there is no {path}: "
                "name a file with --action_path (actions in the batch file, "
                "inference.samples[].actions)"
            )
        if self._from_last:
            raise UserError(
                f"{request.source}: {path} leads to the video's last frame and not from it: name "
                "the actions that follow with --action_path, or leave --frames last out"
            )
        raw = read_actions(path)
        if raw.shape[1] != statistics.dimension:
            raise UserError(
                f"{path}: {raw.shape[1]} numbers per action, but {self._checkpoint} was trained "
                f"with {statistics.dimension} ({', '.join(statistics.names)}); prepare the data "
                "set with the same actions"
            )
        return path, raw

    def _describe(self, request: SampleRequest, path: Path, chunks: Sequence[Chunk]) -> None:
        rows, last = sum(one.rows for one in chunks), chunks[-1]
        clips = f"{len(chunks)} clip{'s' if chunks[1:] else ''} of {self._clip_frames} frames"
        text = f"{request.target.name}: {rows} actions from {path}: {rows + 1} frames, in {clips}"
        if last.padding:
            text += (
                f"; {last.padding} repetitions of the last action fill the last clip, and their "
                "frames are dropped"
            )
        say(text)


def _is_of_input(request: SampleRequest, raw: np.ndarray) -> bool:
    """Return False if the input is a window with other actions."""
    if request.actions is None or not request.own_actions.is_file():
        return True
    try:
        own = read_actions(request.own_actions)[: len(raw)]
    except UserError:
        return True
    return own.shape == raw.shape and np.allclose(own, raw, rtol=SAME, atol=SAME)


def _warn_of_range(path: Path, trace: ActionTrace, statistics: ActionStatistics) -> None:
    if statistics.rows > 1 and (found := trace.out_of_range()) is not None:
        row, name = found
        say(
            f"note: {path}: row {row}: {name} is {trace.rows[row, trace.names.index(name)]:g}, "
            "outside the range of the training data"
        )


def without_text(request: SampleRequest) -> SampleRequest:
    """Return ``request`` for a network that reads no text: guidance would compare equals."""
    return replace(request, prompt="", negative_prompt=None, guidance=0.0)
