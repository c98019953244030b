"""Encode captions with T5 (https://arxiv.org/abs/1910.10683).

The conventions are those of ``scripts/get_t5_embeddings.py`` in the cosmos-predict2 repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from video2world_common.exit_codes import UserError
from video2world_common.files import FULL
from video2world_preprocess.text.t5_weights import encoder_files, tensors

__all__ = [
    "FusedReluFeedForward",
    "TextEncoder",
    "batches",
    "fuse_relu",
    "load_tokenizer",
    "set_bias_layout",
]

BATCH_TOKENS = 4096  # padded tokens per forward pass: about 8 captions of full length
ALIGNMENT = 8  # tokens; attention copies a bias whose rows are not a multiple of 16 bytes


class TextEncoder:
    """A frozen T5 encoder with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer, self.device = tokenizer, device
        set_bias_layout(self.model)
        if device.type == "cuda":
            fuse_relu(self.model)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> TextEncoder:
        """Load the encoder in a transformers ``folder``, or of a Hub id (``google-t5/t5-11b``).

        It has float32 weights on the CPU, bfloat16 on a GPU.

        Raises:
            UserError: there is no such encoder, or its files are damaged.
        """
        device = torch.device(device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        tokenizer = load_tokenizer(folder)
        try:
            if Path(folder).is_dir():
                model = _load_local(Path(folder), device, dtype)
            else:
                from transformers import T5EncoderModel

                model = T5EncoderModel.from_pretrained(str(folder), dtype=dtype)
        except OSError as error:
            if error.errno in FULL:
                raise
            raise _load_error(folder, error) from error
        except Exception as error:  # a missing or damaged file may raise almost any exception
            raise _load_error(folder, error) from error
        return cls(model, tokenizer, device)

    def encode(self, captions: Sequence[str], max_length: int = 512) -> list[np.ndarray]:
        """Return a float16 array [n_tokens, width] per caption, including the end token's row.

        Captions are truncated to ``max_length`` tokens. Equal captions are computed once and share
        their array.
        """
        found: dict[str, np.ndarray] = {}
        for texts in self.batches(captions, max_length):
            found.update(zip(texts, self.encode_batch(texts, max_length), strict=True))
        return [found[caption] for caption in captions]

    def batches(self, captions: Sequence[str], max_length: int = 512) -> list[list[str]]:
        """Return the distinct ``captions`` in batches of similar length and cost."""
        return batches(self.tokenizer, captions, max_length)

    @torch.no_grad()
    def encode_batch(self, texts: Sequence[str], max_length: int = 512) -> list[np.ndarray]:
        """Encode ``texts`` as :meth:`encode` does, in one forward pass padded to the longest."""
        tokens = self.tokenizer(list(texts), truncation=True, max_length=max_length)
        return self._forward(tokens["input_ids"])

    def _forward(self, tokens: list[list[int]]) -> list[np.ndarray]:
        longest = -(-max(map(len, tokens)) // ALIGNMENT) * ALIGNMENT
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [padding] * (longest - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        hidden = self.model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        rows = hidden.to("cpu", torch.float16).numpy()
        return [rows[i, : len(row)].copy() for i, row in enumerate(tokens)]


class FusedReluFeedForward(nn.Module):
    """``relu(x W_in) W_out`` with relu fused into the first product.

    At T5-11B's 65,536 columns, a separate relu takes longer than a third of that product.
    """

    def __init__(self, wide: nn.Linear, narrow: nn.Linear) -> None:
        super().__init__()
        self.wi, self.wo = wide, narrow
        no_bias = torch.zeros(wide.out_features, dtype=wide.weight.dtype, device=wide.weight.device)
        self.register_buffer("no_bias", no_bias, persistent=False)
        self.no_bias: torch.Tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.flatten(0, -2)
        # PyTorch's only access to cuBLASLt's relu epilogue
        wide = torch._addmm_activation(self.no_bias, rows, self.wi.weight.t())
        narrowed: torch.Tensor = self.wo(wide)
        return narrowed.view_as(hidden)


def fuse_relu(model: nn.Module) -> None:
    """Replace the feed-forward layers of T5's first version by :class:`FusedReluFeedForward`."""
    from transformers.models.t5.modeling_t5 import T5DenseActDense, T5LayerFF

    for layer in model.modules():
        dense = layer.DenseReluDense if isinstance(layer, T5LayerFF) else None
        if not isinstance(dense, T5DenseActDense) or not isinstance(dense.act, nn.ReLU):
            continue
        if dense.wi.weight.dtype == dense.wo.weight.dtype:  # T5 may keep the latter in float32
            layer.DenseReluDense = FusedReluFeedForward(dense.wi, dense.wo)


def set_bias_layout(model: nn.Module) -> None:
    """Store T5's relative position bias with the keys as the last dimension in memory.

    The embedding lookup returns it with the heads last. PyTorch's fused attention accepts a mask
    only with the keys last, and its fallback in float32 takes longer than all products of a layer.
    """

    def by_heads(_: nn.Module, __: Any, found: torch.Tensor) -> torch.Tensor:  # [queries, keys, H]
        return found.permute(2, 0, 1).contiguous().permute(1, 2, 0)

    for layer in model.modules():
        bias = getattr(layer, "relative_attention_bias", None)
        if isinstance(bias, nn.Embedding):
            bias.register_forward_hook(by_heads)


def load_tokenizer(folder: Path | str) -> Any:
    """Load the tokenizer in a transformers ``folder``, or of a Hub id.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    from transformers import AutoTokenizer

    name = str(folder)
    local = Path(name).is_dir()
    if not local and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise UserError(
            f"--cache_dir {name}: there is no such folder: run the download stage, or set it to "
            "the folder of a T5 encoder"
        )
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # a missing or damaged file may raise almost any exception
        raise _load_error(name, error) from error


def batches(tokenizer: Any, captions: Sequence[str], max_length: int) -> list[list[str]]:
    """Return the distinct ``captions`` in batches of similar length and cost.

    The longest come first: if memory does not suffice, the first batch fails.
    """
    texts = list(dict.fromkeys(captions))
    if not texts:
        return []
    tokens = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    made = []
    while order:
        take = max(1, BATCH_TOKENS // len(tokens[order[-1]]))
        batch, order = order[-take:], order[:-take]
        made.append([texts[index] for index in batch])
    return made


def _load_local(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the encoder to ``device`` tensor by tensor, without a complete copy in host memory."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(T5Config.from_pretrained(folder, local_files_only=True))
    files = encoder_files(folder)
    wanted = set(model.state_dict())
    state = {name: t.to(dtype) for name, t in tensors(files, device) if name in wanted}
    if "encoder.embed_tokens.weight" in wanted:
        state.setdefault("encoder.embed_tokens.weight", state["shared.weight"])
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model


def _load_error(name: Path | str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"--cache_dir {name}: the T5 encoder cannot be loaded ({reason[0]}): run the download "
        "stage again"
    )
