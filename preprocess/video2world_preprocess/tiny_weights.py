"""Create small VAE and T5 weights for the Tiny model, which has none to download.

The T5 encoder is untrained: different captions have different embeddings, which suffices for a
model that is trained from scratch on a few captions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from video2world_common.files import PARTIAL_PREFIX, sync_folder
from video2world_preprocess.vae.tiny_vae import TransformVAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TINY_T5", "TINY_VAE", "write_tiny_t5", "write_tiny_vae"]

TINY_VAE = Path("video2world/Cosmos-Predict2-Tiny-Video2World/tokenizer")  # below --checkpoint_dir
TINY_T5 = Path("video2world/t5-tiny")
WIDTH = 1024  # of an embedding, as for T5-11B: the DiT's cross attention expects it

_WORDS = (
    "the a an of in on to and with is are from at it its this that robot arm arms hand gripper "
    "left right moves move moving video captures humanoid positioned front item shelf table cart "
    "shopping picks pick up places place bag supermarket red green blue yellow white black object "
    "box ball grasps lifts toward towards down into frame scene task camera retrieve cup kitchen"
)


def write_tiny_vae(folder: Path) -> None:
    """Write the folder of :class:`.vae.tiny_vae.TransformVAE`."""
    TransformVAE().save_pretrained(folder)


def write_tiny_t5(folder: Path, seed: int = 0) -> bool:
    """Write a small T5 encoder with tokenizer unless it exists; return whether it was written.

    The files depend only on ``seed``. ``config.json`` is written last: a folder that has it is
    complete.
    """
    if all((folder / name).is_file() for name in ("config.json", "model.safetensors")):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=folder.parent) as partial:
        _save(Path(partial), seed)
        for path in sorted(Path(partial).iterdir(), key=lambda p: p.name == "config.json"):
            path.chmod(0o644)  # the library makes them private
            path.replace(folder / path.name)
    sync_folder(folder)
    return True


def _save(folder: Path, seed: int) -> None:
    from safetensors.torch import save
    from transformers import T5Config, T5EncoderModel

    tokenizer = _tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=32,
        num_heads=4,
        d_ff=64,
        num_layers=1,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    tensors = model.state_dict()
    del tensors["encoder.embed_tokens.weight"]  # equal to shared.weight
    # not save_file(), which hides a full disk behind an error of its own
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer like T5's: words, characters, and bytes for all other text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "</s>", "<unk>"]
    pieces = [(piece, 0.0) for piece in specials]
    # a character costs 6, a byte 12: a word at 7 is cheaper than its letters
    pieces += [(f"<0x{byte:02X}>", -12.0) for byte in range(256)]
    pieces += [("▁", -6.0), *((chr(code), -6.0) for code in range(33, 127))]
    pieces += [("▁" + word, -7.0) for word in dict.fromkeys(_WORDS.split()) if len(word) > 1]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
