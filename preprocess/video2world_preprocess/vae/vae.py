"""Load a video VAE, encode videos as normalized latents, and decode them.

The conventions are those of ``cosmos_predict2/tokenizers/tokenizer.py`` in the cosmos-predict2
repository: the posterior's mean, normalized per channel with the constants of the Wan 2.1 VAE
(https://github.com/Wan-Video/Wan2.1), and no clamping after decoding.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from video2world_common.exit_codes import UserError
from video2world_preprocess.vae.tiny_vae import TransformVAE
from video2world_preprocess.vae.wan import decode_wan, encode_wan

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

__all__ = ["VideoVAE", "load_vae", "set_channels_last"]


class VideoVAE:
    """A frozen VAE with 16 latent channels per 8x8 pixels and 4 frames.

    ``model`` has the interface of diffusers' ``AutoencoderKLWan``; ``name`` identifies it in the
    metadata of cached latents. ``frames_per_pass``, a multiple of 4, affects only speed and memory,
    as encoder and decoder are causal.
    """

    temporal_factor = 4
    spatial_factor = 8
    channels = 16
    frames_per_pass = 4  # as in diffusers

    def __init__(self, model: Any, name: str, device: torch.device, dtype: torch.dtype):
        self.model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
        self.name, self.device, self.dtype = name, device, dtype
        shape = (1, self.channels, 1, 1, 1)
        # upstream rounds the mean and the *inverse* deviation to the VAE's dtype
        self._mean = torch.tensor(model.config.latents_mean).to(device, dtype).view(shape)
        self._inverse_std = (1.0 / torch.tensor(model.config.latents_std).to(device, dtype)).view(
            shape
        )

    @torch.no_grad()
    def encode_latents(self, video: Tensor) -> Tensor:
        """Return the normalized latents [B, 16, 1 + (T - 1) / 4, H / 8, W / 8] of ``video``.

        ``video`` is [B, 3, T, H, W] with values in [-1, 1], T = 1 + 4k, H and W multiples of 8.

        Raises:
            UserError: the video has another shape.
        """
        frames, height, width = video.shape[2:]
        if (frames - 1) % self.temporal_factor or height % 8 or width % 8:
            raise UserError(
                f"the VAE takes 1 + 4k frames with sides divisible by 8, not {frames} frames of "
                f"{height}x{width}: change num_frames or video_size"
            )
        video = video.to(self.device, self.dtype)
        if self.frames_per_pass > 4 and type(self.model).__name__ == "AutoencoderKLWan":
            latents = encode_wan(self.model, video, self.frames_per_pass)
        else:
            latents = self.model.encode(video).latent_dist.mode()
        return (latents - self._mean) * self._inverse_std

    def prepare_for_batches(self) -> None:
        """Use more memory for speed on a GPU that is used for nothing else (the latents stage)."""
        if self.device.type == "cuda":
            self.frames_per_pass = 16
            set_channels_last(self.model.encoder)

    def prepare_to_decode(self, frames_per_pass: int = 16) -> None:
        """Use more memory for speed when decoding on a GPU.

        At 704x1280, 16 frames per pass take about 10 GiB more than diffusers' 4.
        """
        if self.device.type == "cuda":
            self.frames_per_pass = frames_per_pass
            set_channels_last(self.model.decoder)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the video [B, 3, T, H, W] of normalized ``latents``, about [-1, 1], unclamped."""
        return torch.cat([*self.decode_parts(latents)], 2)

    @torch.no_grad()
    def decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the video of :meth:`decode_latents` in consecutive parts, each as it is decoded."""
        latents = latents.to(self.device, self.dtype) / self._inverse_std + self._mean
        if type(self.model).__name__ == "AutoencoderKLWan":
            yield from decode_wan(self.model, latents, self.frames_per_pass // self.temporal_factor)
        else:
            yield self.model.decode(latents).sample


def set_channels_last(model: nn.Module) -> None:
    """Convert the weights of convolutions to channels last, as GPU kernels for bfloat16 require."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in model.parameters():
        if weight.dim() in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])


def load_vae(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VideoVAE:
    """Load the VAE in ``folder``: diffusers' format, Wan's ``tokenizer.pth``, or our small VAE.

    The path of a ``.pth`` file is accepted, too. ``dtype`` is bfloat16 by default on CUDA, float32
    elsewhere.

    Raises:
        UserError: the folder has none of them, or a damaged one.
    """
    folder, device = Path(folder), torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if folder.suffix in (".pth", ".pt") and folder.is_file():
        return VideoVAE(_load_wan(folder), "AutoencoderKLWan", device, dtype)
    kind = _class_name(folder / "config.json")
    if kind == "TransformVAE":
        return VideoVAE(TransformVAE.from_pretrained(folder), kind, device, dtype)
    if kind == "AutoencoderKLWan":
        return VideoVAE(_load_diffusers(folder), kind, device, dtype)
    if (folder / "tokenizer.pth").is_file():
        wan = _load_wan(folder / "tokenizer.pth")
        return VideoVAE(wan, "AutoencoderKLWan", device, dtype)
    raise UserError(
        f"vae_path: {folder} has no VAE (tokenizer.pth, or config.json of AutoencoderKLWan or "
        "TransformVAE): run the download stage, or correct the path"
    )


def _class_name(path: Path) -> str | None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (NotADirectoryError, ValueError) as error:
        raise UserError(f"vae_path: {path} cannot be read ({error}): download it again") from None
    return config.get("_class_name") if isinstance(config, dict) else None


def _load_diffusers(folder: Path) -> AutoencoderKLWan:
    from diffusers import AutoencoderKLWan

    try:
        model: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"vae_path: {folder} cannot be loaded ({error}): download it again"
        ) from None
    return model


def _load_wan(path: Path) -> AutoencoderKLWan:
    """Load Wan's own checkpoint, with its 194 tensors renamed to those of diffusers."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = convert_wan_vae_to_diffusers(state)
        with torch.device("meta"):
            model = AutoencoderKLWan(**_wan_size(state))
        model.load_state_dict(state, strict=True, assign=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        KeyError,
        AttributeError,
        EOFError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"vae_path: {path} is not a Wan 2.1 VAE checkpoint ({reason}): download it again"
        ) from None
    return model


def _wan_size(state: dict[str, Tensor]) -> dict[str, int]:
    """Return ``base_dim``, which the first convolution shows: 96 in the published weights."""
    return {"base_dim": state["encoder.conv_in.weight"].shape[0]}
