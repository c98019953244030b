"""Measure one case of ``benchmarks.inference``, in a process of its own.

Every case takes ``tiny``: a small network and clip on whatever device there is, so that a case can
be tried without a GPU. Weights are random, of the true shapes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from video2world_common.model_sizes import SIZES
from video2world_preprocess.vae.vae import VideoVAE, set_channels_last
from video2world_preprocess.video.writer import write_video
from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.generation.denoise import (
    SamplingSettings,
    Velocity,
    conditioning_mask,
    decode_video,
    denoise,
    encode_condition,
    network_velocity,
)
from video2world_trainer.generation.quality_metrics import psnr
from video2world_trainer.generation.weight_offload import offload_weights
from video2world_trainer.model.attention_backends import select_for
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import PRESETS, DiTConfig
from video2world_trainer.model.sparse_attention import patterns_for, plan_blocks
from video2world_trainer.model.sparse_kernels import choose, sparse_attention, sparse_for
from video2world_trainer.model.state_dict import to_diffusers

from .networks import diffusers_network, randomised

GIB = 2**30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


@dataclass(frozen=True)
class Size:
    """The network, frames x height x width in pixels, and caption positions."""

    dit: DiTConfig
    frames: int
    height: int
    width: int
    text: int = 512
    vae_width: int = 96

    @property
    def latents(self) -> tuple[int, ...]:
        return (1, 16, 1 + (self.frames - 1) // 4, self.height // 8, self.width // 8)

    @property
    def grid(self) -> tuple[int, int, int]:
        _, _, frames, height, width = self.latents
        return (frames, height // 2, width // 2)


def _size(tiny: bool, fps: int = 16) -> Size:
    if tiny:
        dit = replace(PRESETS["2B"].dit, model_channels=64, num_heads=2, adaln_lora_dim=16)
        return Size(dit, 9 if fps == 16 else 5, 96, 160, text=8, vae_width=8)
    return Size(PRESETS["2B"].dit, SIZES["2B"].clip_frames[fps], 704, 1280)


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _timed(work: Callable[[], Any], *, warm: int = 1, count: int = 3) -> list[float]:
    for _ in range(warm):
        work()
    times = []
    for _ in range(count):
        _wait()
        started = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - started)
    return times


def _timing(times: list[float]) -> dict[str, Any]:
    return {
        "seconds": round(statistics.median(times), 4),
        "all_seconds": [round(one, 4) for one in times],
    }


def _peak() -> dict[str, float]:
    if not ON_GPU:
        return {"peak_GiB": 0.0}
    return {
        "peak_GiB": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "peak_reserved_GiB": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def _forget_peak() -> None:
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _network(dit: DiTConfig, *, exact_rope: bool = False, dtype: torch.dtype = DTYPE) -> VideoDiT:
    with DEVICE:
        net = VideoDiT(dit, exact_rope=exact_rope).to(dtype)
    randomised(net)
    return net.eval().requires_grad_(False)


def _prepared(net: VideoDiT) -> str:
    """Prepare attention and compilation as the inference command does; return the kernel's name."""
    choice = select_for("auto", DEVICE, next(net.parameters()).dtype)
    net.set_attention(choice.cross_attention, choice.attend)
    prepare_blocks(net, compiled=ON_GPU)
    return choice.name


def _texts(size: Size) -> Tensor:
    """Return a prompt of 100 tokens and a longer negative prompt."""
    generator = torch.Generator().manual_seed(2)
    texts = torch.randn(2, size.text, 1024, generator=generator) * 0.1
    texts[0, size.text // 5 :] = 0
    texts[1, size.text // 4 :] = 0
    return texts.to(DEVICE)


def _given(size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size.latents, generator=generator).to(DEVICE)


def _once(velocity: Velocity, given: Tensor) -> Callable[[], Tensor]:
    times = torch.full((1, given.shape[2]), 0.8, device=DEVICE)
    return lambda: velocity(given, times)


def network_pass(tiny: bool = False, peer: bool = True) -> dict[str, Any]:
    """Measure one evaluation: both guidance branches, one branch, and diffusers' transformer."""
    size = _size(tiny)
    given, texts = _given(size), _texts(size)
    mask = conditioning_mask(given, 1)
    net = _network(size.dit, exact_rope=True)
    result: dict[str, Any] = {}
    if peer:
        theirs = _diffusers(size.dit)
        theirs.load_state_dict(to_diffusers(net.state_dict()))
        their_pass = _their_pass(theirs, given, mask, texts[:1])
        result["diffusers"] = _timing(_timed(their_pass, count=2))
        expected = their_pass()
        del theirs, their_pass
        _forget_peak()
    result["attention"] = _prepared(net)
    one = _once(network_velocity(net, texts[:1], mask), given)
    if peer:
        result["relative_difference"] = _difference(one(), expected)
    result["one_branch"] = _timing(_timed(one, count=2))
    _forget_peak()
    pair = _once(network_velocity(net, texts, mask), given)
    times = _timed(pair)
    result["pair"] = _timing(times) | _peak()
    result["seconds"] = round(statistics.median(times) / 2, 4)
    result["pair_against_its_branches"] = _difference(pair()[:1], one())
    if peer:
        result["of_diffusers"] = round(result["seconds"] / result["diffusers"]["seconds"], 4)
        result["relative_difference_float32_small"] = _small_in_float32(size)
    return result


def _diffusers(dit: DiTConfig, dtype: torch.dtype = DTYPE) -> nn.Module:
    return diffusers_network(dit, DEVICE, dtype).eval().requires_grad_(False)


def _their_pass(net: nn.Module, x: Tensor, mask: Tensor, text: Tensor) -> Callable[[], Tensor]:
    dtype = next(net.parameters()).dtype
    _, _, frames, height, width = x.shape
    level = torch.full((1, 1, frames, 1, 1), 0.8, device=DEVICE, dtype=dtype)
    padding = torch.zeros(1, 1, height * 8, width * 8, device=DEVICE, dtype=dtype)
    given = torch.cat([x, mask], 1).to(dtype)

    @torch.no_grad()
    def work() -> Tensor:
        out: Tensor = net(given, level, text.to(dtype), padding_mask=padding, return_dict=False)[0]
        return out.float()

    return work


def _difference(found: Tensor, expected: Tensor) -> float:
    error = (found - expected).double().norm() / expected.double().norm()
    return float(f"{float(error):.3e}")


def _small_in_float32(size: Size) -> float:
    """Repeat the comparison without bfloat16 rounding: all blocks, 1/33 of the area."""
    small = replace(size, height=96, width=256)
    given, texts = _given(small), _texts(small)
    mask = conditioning_mask(given, 1)
    net = _network(size.dit, exact_rope=True, dtype=torch.float32)
    theirs = _diffusers(size.dit, torch.float32)
    theirs.load_state_dict(to_diffusers(net.state_dict()))
    found = _once(network_velocity(net, texts[:1], mask), given)()
    return _difference(found, _their_pass(theirs, given, mask, texts[:1])())


def _vae(size: Size) -> VideoVAE:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return VideoVAE(AutoencoderKLWan(base_dim=size.vae_width), "random", DEVICE, DTYPE)


def vae_decode(tiny: bool = False) -> dict[str, Any]:
    """Measure latents to pixels: diffusers unmodified, and ours with more frames per pass."""
    size = _size(tiny)
    latents, vae = _given(size), _vae(size)
    result: dict[str, Any] = {}

    def theirs() -> Tensor:
        with torch.no_grad():
            plain = latents.to(DTYPE) / vae._inverse_std + vae._mean
            frames: Tensor = vae.model.decode(plain).sample
            return frames

    result["diffusers"] = _timing(_timed(theirs, count=2)) | _peak()
    expected = theirs().float()
    rows = {}
    for name, frames, last in (
        ("4", 4, False),
        ("4, channels last", 4, True),
        ("8, channels last", 8, True),
        ("16, channels last", 16, True),
    ):
        vae.frames_per_pass = frames
        if last:
            set_channels_last(vae.model.decoder)
        _forget_peak()
        times = _timed(lambda: vae.decode_latents(latents), count=2)
        rows[name] = _timing(times) | _peak()
        found = vae.decode_latents(latents).float().clamp(-1, 1)
        rows[name]["relative_difference"] = _difference(found, expected)
    result["frames_a_pass"] = rows
    best = min(rows, key=lambda name: rows[name]["seconds"])
    result |= {"best": best, "seconds": rows[best]["seconds"]}
    result["of_diffusers"] = round(result["seconds"] / result["diffusers"]["seconds"], 4)
    _forget_peak()
    vae.prepare_to_decode()
    result["to_pixels_on_the_host"] = _timing(
        _timed(lambda: [*decode_video(vae, latents)], count=1)
    )
    return result


def sparse(tiny: bool = False) -> dict[str, Any]:
    """Measure each kernel on each ``-natten`` pattern, and a complete evaluation."""
    size = _size(tiny)
    heads, width = size.dit.num_heads, size.dit.head_dim
    tokens = int(np.prod(size.grid))
    generator = torch.Generator(DEVICE).manual_seed(3)
    qkv = [
        torch.randn(1, tokens, heads, width, device=DEVICE, generator=generator).to(DTYPE)
        for _ in range(3)
    ]
    dense = select_for("auto", DEVICE, DTYPE).attend
    patterns = patterns_for("2B", size.grid)
    kernel = choose(torch.cuda.get_device_capability() if ON_GPU else None, DTYPE)
    result: dict[str, Any] = {"kernel": kernel, "patterns": {}}
    for letter, pattern in zip("ABCDE", dict.fromkeys(patterns), strict=False):
        row: dict[str, Any] = {"density": round(_density(pattern, size.grid), 4)}
        for name in dict.fromkeys((kernel, "flex")):
            try:
                attend = sparse_attention([pattern], size.grid, DEVICE, name, dense)[0]
                row[name] = _timing(_timed(partial(attend, *qkv), count=3))
                row[name]["relative_error"] = _sampled_error(attend(*qkv), qkv, pattern, size)
            except Exception as error:  # the other kernel may work
                row[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        result["patterns"][letter] = row
    usable = all("seconds" in row[kernel] for row in result["patterns"].values())
    used = kernel if usable else "flex"
    given, texts = _given(size), _texts(size)
    net = _network(size.dit)
    _prepared(net)
    pair = _once(network_velocity(net, texts, conditioning_mask(given, 1)), given)
    result["dense"] = _timing(_timed(pair, count=2))
    ways = sparse_attention(patterns, size.grid, DEVICE, used, dense)
    net.set_attention(select_for("auto", DEVICE, DTYPE).cross_attention, ways)
    _forget_peak()
    times = _timed(pair)
    result |= {"used": used, **_timing(times), **_peak()}
    result["of_dense"] = round(result["seconds"] / result["dense"]["seconds"], 4)
    return result


def _set_sparse(net: VideoDiT, size: Size) -> str:
    """Give each block of ``net`` its published pattern; return the kernel's name."""
    dense = select_for("auto", DEVICE, DTYPE)
    kernel, own = sparse_for("2B", size.grid, DEVICE, DTYPE, dense.attend)
    net.set_attention(dense.cross_attention, own)
    return f"{kernel}, sparse"


def _density(pattern: Any, grid: Any) -> float:
    blocks = plan_blocks(pattern, grid)
    return float(blocks.rows[blocks.kind.long()].float().mean())


def _sampled_error(found: Tensor, qkv: list[Tensor], pattern: Any, size: Size) -> float:
    """Compare with masked float32 attention for randomly drawn queries."""
    blocks = plan_blocks(pattern, size.grid)
    chosen = torch.randperm(len(blocks.order), generator=torch.manual_seed(4))[:64]
    rows = blocks.rows[blocks.kind[blocks.place[chosen]].long()][:, blocks.place]
    rows, chosen = rows.to(DEVICE), chosen.to(DEVICE)
    query, key, value = (one[0].float() for one in qkv)
    scores = torch.einsum("qhd,khd->hqk", query[chosen], key) / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~rows, float("-inf"))
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    return _difference(found[0, chosen].float(), expected)


def _sample(
    net: VideoDiT,
    size: Size,
    vae: VideoVAE,
    settings: SamplingSettings,
    folder: Path,
    *,
    batch_branches: bool = True,
) -> dict[str, Any]:
    """Generate an mp4 from embeddings and a first frame, and time each part."""
    frame = np.random.default_rng(0).integers(0, 255, (1, size.height, size.width, 3))
    _forget_peak()
    marks = [time.perf_counter()]
    given = encode_condition(vae, frame.astype(np.uint8), size.frames).to(DEVICE)
    velocity = network_velocity(
        net, _texts(size), conditioning_mask(given, 1), batch_branches=batch_branches
    )
    _wait()
    marks.append(time.perf_counter())
    latents = denoise(velocity, given, 1, settings)
    _wait()
    marks.append(time.perf_counter())
    if not batch_branches and ON_GPU:
        torch.cuda.empty_cache()
    parts: list[np.ndarray] = []

    def passing() -> Iterator[np.ndarray]:
        for part in decode_video(vae, latents):
            parts.append(part)
            yield part
        marks.append(time.perf_counter())

    write_video(folder / "a.mp4", passing(), 16)
    marks.append(time.perf_counter())
    video = np.concatenate(parts)
    seconds = np.diff(marks).round(3).tolist()
    return {
        "seconds": round(marks[-1] - marks[0], 3),
        **dict(zip(("condition", "denoise", "decode", "write"), seconds, strict=True)),
        **_peak(),
        "video": video,
        "latents": latents,
    }


def _told(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: one for key, one in sample.items() if key not in ("video", "latents")}


def _full(size: Size, steps: int, *, approximate: bool, sparse: bool = False) -> dict[str, Any]:
    net = _network(size.dit)
    attention = _prepared(net)
    if sparse:
        attention = _set_sparse(net, size)
    vae = _vae(size)
    vae.prepare_to_decode()
    with tempfile.TemporaryDirectory() as folder:
        _sample(net, size, vae, SamplingSettings(steps=1), Path(folder))  # compiles
        exact = _sample(net, size, vae, SamplingSettings(steps=steps), Path(folder))
        result = _told(exact) | {"attention": attention, "steps": steps, "passes": 2 * (steps + 1)}
        result["seconds_a_pass"] = round(exact["denoise"] / result["passes"], 4)
        if approximate:
            other = _sample(
                net, size, vae, SamplingSettings(steps=steps, approximate=True), Path(folder)
            )
            result["approximate"] = _told(other) | {
                "of_exact": round(other["seconds"] / exact["seconds"], 4),
                "psnr_against_exact": round(psnr(other["video"], exact["video"]), 2),
                "latents_relative_difference": _difference(other["latents"], exact["latents"]),
            }
    return result


def full_16fps(tiny: bool = False) -> dict[str, Any]:
    """Measure embedding to mp4: 93 frames of 704x1280, 35 steps with guidance."""
    return _full(_size(tiny), 3 if tiny else 35, approximate=False)


def full_sparse(tiny: bool = False) -> dict[str, Any]:
    """Measure 93 frames with the ``-natten`` patterns, and approximately from the same seed."""
    return _full(_size(tiny), 9 if tiny else 35, approximate=True, sparse=True)


def full_10fps(tiny: bool = False) -> dict[str, Any]:
    """Measure the same with 61 frames, and approximately from the same seed."""
    return _full(_size(tiny, fps=10), 9 if tiny else 35, approximate=True)


def offload(tiny: bool = False) -> dict[str, Any]:
    """Measure pass time and peak memory of two evaluations with weights offloaded to the host."""
    size = _size(tiny)
    net = _network(size.dit)
    _prepared(net)
    offload_weights(net, DEVICE)
    given, texts = _given(size), _texts(size)
    velocity = network_velocity(net, texts, conditioning_mask(given, 1), batch_branches=False)
    times = _timed(_once(velocity, given), count=2)
    result = {"pair": _timing(times), "seconds": round(statistics.median(times) / 2, 4)}
    del velocity
    vae = _vae(size)
    vae.prepare_to_decode(frames_per_pass=4)
    with tempfile.TemporaryDirectory() as folder:
        settings = SamplingSettings(steps=1)
        sample = _sample(net, size, vae, settings, Path(folder), batch_branches=False)
    return result | {"sample_of_two_evaluations": _told(sample), "peak_GiB": sample["peak_GiB"]}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    one.__name__: one
    for one in (network_pass, vae_decode, sparse, offload, full_10fps, full_16fps, full_sparse)
}
