"""Write random training data and weights of the real shapes, and read a training's events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import save_file

from video2world_preprocess.text.embedding_files import write_embedding
from video2world_preprocess.tiny_weights import write_tiny_vae
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import PRESETS

from .networks import randomised

__all__ = ["DATA", "TINY", "events", "write_base", "write_data", "write_samples"]

DATA = "datasets/random/train"  # on the volume
TINY = (
    1,
    16,
    5,
    12,
    16,
)  # shape of the Tiny size's latents: offsets, channels, frames, height, width


def write_data(
    volume: Path,
    latents: tuple[int, ...],
    windows: int = 8,
    split: str = DATA,
    folder: str = "latents",
) -> None:
    """Write latents in ``folder`` of ``split``, and text embeddings, of ``windows`` clips."""
    generator = torch.Generator().manual_seed(0)
    for number in range(windows):
        path = volume / split / folder / f"w{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "latents": torch.randn(latents, generator=generator).bfloat16(),
            "starts": torch.zeros(1),
        }
        save_file(tensors, path, metadata={"geometry": "crop"})
        words = np.random.default_rng(number).normal(size=(100, 1024)).astype(np.float16)
        write_embedding(volume / split / f"t5_xxl/w{number}.pickle", words)


def write_base(path: Path, size: str) -> None:
    """Write base weights of a model of ``size``, created on the GPU if there is one."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        net = VideoDiT(PRESETS[size].dit).bfloat16()
    state = randomised(net).state_dict()
    torch.save({f"net.{name}": one.cpu() for name, one in state.items()}, path)
    del net, state
    torch.cuda.empty_cache()  # 54 GiB for 14B, which the measured training needs


def write_samples(volume: Path, count: int, size: str) -> Path:
    """Write ``count`` requests with the embeddings of their captions, and a VAE in ``vae``.

    Returns:
        The batch file, for ``--batch_input_json``; results go to ``results/0.mp4`` and so on.
    """
    entries = []
    for number in range(count):
        frame = np.random.default_rng(number).integers(0, 255, (704, 1280, 3)).astype(np.uint8)
        source = volume / DATA / f"videos/s{number}.png"
        for folder in ("videos", "metas", "t5_xxl"):
            (volume / DATA / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(source)
        (volume / DATA / f"metas/s{number}.txt").write_text(f"sample {number}")
        words = np.random.default_rng(number).normal(size=(100, 1024)).astype(np.float16)
        write_embedding(volume / DATA / f"t5_xxl/s{number}.pickle", words)
        entries.append(
            {
                "input_video": str(source.relative_to(volume)),
                "output_video": f"results/{number}.mp4",
            }
        )
    if size == "Tiny":
        write_tiny_vae(volume / "vae")
    else:
        torch.manual_seed(0)
        AutoencoderKLWan().to(torch.bfloat16).save_pretrained(volume / "vae")
    path = volume / "samples.json"
    path.write_text(json.dumps(entries))
    return path


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the events among a command's lines."""
    for line in lines:
        if line.startswith('{"event"'):
            yield json.loads(line)
