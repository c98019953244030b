"""Captions to T5 embeddings, with the classes and conventions upstream uses (facts sheet 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .stage import UserError

__all__ = ["TextEncoder"]

BATCH_TOKENS = 4096  # padded tokens a forward pass takes: about 8 captions of full length


class TextEncoder:
    """A frozen T5 encoder with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer, self.device = tokenizer, device

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> TextEncoder:
        """The encoder in a transformers ``folder``, or of a Hub id such as ``google-t5/t5-11b``.

        float32 on the CPU, bfloat16 on a GPU.

        Raises:
            UserError: there is no such encoder, or its files are damaged.
        """
        from transformers import AutoTokenizer, T5EncoderModel

        device, name = torch.device(device), str(folder)
        local = Path(name).is_dir()
        if not local and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
            raise UserError(
                f"--cache_dir {name}: there is no such folder: run the download stage, or give "
                "the folder of a T5 encoder"
            )
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
            model = T5EncoderModel.from_pretrained(name, dtype=dtype, local_files_only=local)
        except Exception as error:  # from a missing file to a torn header, each its own type
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"--cache_dir {name}: the T5 encoder cannot be loaded ({reason[0]}): run the "
                "download stage again"
            ) from error
        return cls(model, tokenizer, device)

    def encode(self, captions: Sequence[str], max_length: int = 512) -> list[np.ndarray]:
        """One float16 array [n_tokens, width] for each caption, the end token's row included.

        Captions longer than ``max_length`` tokens are cut there. Equal captions are computed once
        and share their array.
        """
        found: dict[str, np.ndarray] = {}
        for texts, embeddings in self.batches(captions, max_length):
            found.update(zip(texts, embeddings, strict=True))
        return [found[caption] for caption in captions]

    @torch.no_grad()
    def batches(
        self, captions: Sequence[str], max_length: int = 512
    ) -> Iterator[tuple[list[str], list[np.ndarray]]]:
        """The different captions among ``captions``, by length, a batch at a time, as `encode`."""
        texts = list(dict.fromkeys(captions))
        if not texts:
            return
        tokens = self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
        while order:
            longest = len(tokens[order[-1]])
            take = max(1, BATCH_TOKENS // longest)
            batch, order = order[-take:], order[:-take]  # longest first: memory fails at once
            yield [texts[i] for i in batch], self._forward([tokens[i] for i in batch])

    def _forward(self, tokens: list[list[int]]) -> list[np.ndarray]:
        longest = max(map(len, tokens))
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [padding] * (longest - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        hidden = self.model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        rows = hidden.to("cpu", torch.float16).numpy()
        return [rows[i, : len(row)].copy() for i, row in enumerate(tokens)]
