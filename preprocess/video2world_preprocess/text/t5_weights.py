"""Convert the weights of T5's encoder to safetensors, once and in little memory.

The published ``pytorch_model.bin`` of T5-11B has encoder and decoder in float32, 45 GB; the encoder
in bfloat16 takes 10 GB. The file is memory-mapped and converted in parts. An index, which is
written last, marks the conversion as complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from video2world_common.events import say
from video2world_common.files import atomic_write, read_json, remove_leftovers, write_json
from video2world_common.folder_locks import locked

__all__ = ["encoder_files", "tensors"]

INDEX, BINARY = "encoder.index.json", "pytorch_model.bin"
PART_SIZE = 1 << 30  # bytes that the conversion keeps in memory


def encoder_files(folder: Path) -> list[Path]:
    """Return the encoder's safetensors files, converted from ``pytorch_model.bin`` if necessary.

    Raises:
        FileNotFoundError: the folder has neither.
        OSError: the converted files cannot be written.
    """
    found = sorted(folder.glob("model*.safetensors"))
    if found:
        return found
    if not (folder / BINARY).is_file():
        raise FileNotFoundError(f"{folder} has neither *.safetensors nor {BINARY}")
    with locked(folder / ".convert-lock"):
        size = (folder / BINARY).stat().st_size
        index = read_json(folder / INDEX) or {}
        if index.get("source_bytes") != size:
            remove_leftovers(folder)
            say(f"{folder}: converting the encoder to safetensors, once")
            index = {"source_bytes": size, "files": _convert(folder)}
            write_json(folder / INDEX, index)
        return [folder / name for name in index["files"]]


def _convert(folder: Path) -> list[str]:
    names: list[str] = []
    part: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if part:
            names.append(f"encoder-{len(names) + 1:05d}.safetensors")
            content = save(part, metadata={"format": "pt"})
            atomic_write(folder / names[-1], lambda stream: stream.write(content))
            part.clear()

    state = _load(folder / BINARY)
    for name in sorted(state):
        if name != "shared.weight" and not name.startswith("encoder."):
            continue
        if name == "encoder.embed_tokens.weight" and "shared.weight" in state:
            continue  # the same tensor
        part[name] = state[name].to(torch.bfloat16).contiguous()
        if sum(tensor.nbytes for tensor in part.values()) >= PART_SIZE:
            flush()
    flush()
    return names


def _load(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor]
    with contextlib.suppress(RuntimeError):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return state
    # the format that torch wrote before 1.6 cannot be memory-mapped
    say(f"{path}: in an old format, which has to be loaded into memory completely")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state


def tensors(files: list[Path], device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the tensor, on ``device``, of all tensors in ``files``."""
    for path in files:
        with safe_open(path, "pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                yield name, file.get_tensor(name)
