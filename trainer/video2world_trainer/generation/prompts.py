"""Embed the prompts and negative prompts of all samples, loading T5 only if needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_preprocess.text.embedding_files import read_embedding
from video2world_preprocess.text.encoder import TextEncoder
from video2world_trainer.generation.requests import SampleRequest

__all__ = ["NEGATIVE_PROMPT", "PromptEmbeddings", "negative_prompt_of"]

# Upstream's negative prompt is not ours to ship; this one names the same kinds of flaws.
NEGATIVE_PROMPT = (
    "A low-quality video: blurry and noisy frames, compression artefacts, flicker, washed-out or "
    "oversaturated colours, bad exposure, jerky camera, unnatural motion, objects that deform, "
    "merge, vanish or pass through each other, implausible physics, text and watermarks."
)


def negative_prompt_of(request: SampleRequest, model_size: str) -> str | None:
    """Return the text that guidance steers away from.

    None means that there is no guidance, or (Tiny, by default) the all-zero embedding that its
    training used for dropped captions. As upstream, an empty negative prompt becomes the prompt.
    """
    if not request.guidance:
        return None
    if request.negative_prompt is None:
        return None if model_size == "Tiny" else NEGATIVE_PROMPT
    return request.negative_prompt or request.effective_prompt


class PromptEmbeddings:
    """Embeddings of prompts: read from the data set if the prompt is its caption, else from T5.

    Args:
        encoder: folder or Hub id of T5.
        device: where T5 runs.
        length: positions of an embedding.
    """

    def __init__(self, encoder: str, device: str, length: int) -> None:
        self._encoder, self._device, self._length = encoder, device, length
        self._embeddings: dict[str, np.ndarray] = {}
        self._errors: dict[str, UserError] = {}

    def prepare(self, requests: Iterable[SampleRequest], *more: str) -> None:
        """Embed the prompts of ``requests`` and ``more`` texts, loading T5 at most once.

        T5 is released on return. An invalid embedding file is reported by :meth:`padded`.
        """
        files: dict[str, Path | None] = {}
        for request in requests:
            if prompt := request.effective_prompt:
                files[prompt] = files.get(prompt) or request.embedding
        self._embed(dict.fromkeys(more) | files)
        for prompt, rows in self._embeddings.items():
            if len(rows) >= self._length:
                say(
                    f"note: this prompt fills all {self._length} positions; text beyond them is "
                    f"not read: {prompt[:60]}..."
                )

    def _embed(self, prompts: Mapping[str, Path | None]) -> None:
        missing = []
        for prompt, path in prompts.items():
            if path is None:
                missing.append(prompt)
                continue
            try:
                self._embeddings[prompt] = read_embedding(path)
            except UserError as error:  # must not fail the other samples
                self._errors[prompt] = error
        if missing:
            encoder = TextEncoder.load(self._encoder, self._device)
            self._embeddings.update(zip(missing, encoder.encode(missing), strict=True))

    def padded(self, prompt: str | None) -> Tensor:
        """Return an embedding [1, length, 1024] in float32, padded with zeros; None is all zeros.

        Raises:
            UserError: the prompt's embedding file is invalid.
        """
        text = torch.zeros(1, self._length, 1024)
        if prompt in self._errors:
            raise self._errors[prompt]
        if prompt is not None:
            rows = torch.from_numpy(self._embeddings[prompt][: self._length]).float()
            text[0, : len(rows)] = rows
        return text
