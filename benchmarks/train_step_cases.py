"""Measure one case of ``benchmarks.train_step``, in a process of its own."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.activation_checkpoint import (
    RecomputePolicy,
    policies_for_free_memory,
    prepare_blocks,
)
from video2world_trainer.distributed.parallelize import frame_slice
from video2world_trainer.distributed.ulysses import ulysses
from video2world_trainer.model.action_conditioning import ActionConditioning
from video2world_trainer.model.attention_backends import BACKENDS, select_for
from video2world_trainer.model.dit import Block, VideoDiT
from video2world_trainer.model.flops import step_flops
from video2world_trainer.model.lora import inject
from video2world_trainer.model.presets import PRESETS, DiTConfig
from video2world_trainer.model.sparse_attention import PATTERNS, plan_blocks, scaled
from video2world_trainer.model.sparse_kernels import sparse_attention
from video2world_trainer.training.attention_choice import AttentionChoice, choose_attention
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.loss import sample_noise, training_loss
from video2world_trainer.training.optimizer import MasterAdamW
from video2world_trainer.training.phases import phases_of
from video2world_trainer.training.step import TrainStep

from .cases import GRADIENTS
from .networks import diffusers_network, randomised

GIB = 2**30
BF16 = torch.bfloat16
LATENTS = {"720p": (16, 24, 88, 160), "480p": (16, 24, 54, 96)}  # 93 frames


def tokens_of(latents: tuple[int, ...]) -> int:
    return latents[1] * (latents[2] // 2) * (latents[3] // 2)


def seconds_of(work: Callable[[], Any], *, warm: int, count: int) -> list[float]:
    """Return the times of single calls by CUDA events, after ``warm`` untimed ones."""
    for _ in range(warm):
        work()
    torch.cuda.synchronize()
    times = []
    for _ in range(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return times


def timing(times: list[float]) -> dict[str, Any]:
    return {
        "seconds": round(statistics.median(times), 5),
        "all_seconds": [round(one, 5) for one in times],
    }


def memory() -> dict[str, float]:
    return {
        "card_GiB": round(torch.cuda.get_device_properties(0).total_memory / GIB, 2),
        "peak_GiB": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "peak_reserved_GiB": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def network(dit: DiTConfig) -> VideoDiT:
    with torch.device("cuda"):
        net = VideoDiT(dit).to(BF16)
    randomised(net)
    return net


def matrix_rate() -> dict[str, Any]:
    """Measure the card's matrix rate: a bf16 product of 8192 x 8192 random values."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=BF16) for _ in range(2))
    times = seconds_of(lambda: a @ b, warm=20, count=50)
    return timing(times) | {"tflops": round(2 * 8192**3 / statistics.median(times) / 1e12, 1)}


def attention_rate(backend: str = "auto") -> dict[str, Any]:
    """Measure the self-attention of the 2B size alone."""
    tokens = tokens_of(LATENTS["720p"])
    attend = select_for(backend, torch.device("cuda"), BF16).attend
    given = [
        torch.randn(1, tokens, 16, 128, device="cuda", dtype=BF16, requires_grad=True)
        for _ in range(3)
    ]
    gradient = torch.randn_like(given[0])
    with torch.no_grad():
        forward = seconds_of(lambda: attend(*given), warm=3, count=10)
    both = seconds_of(
        lambda: torch.autograd.grad(attend(*given), given, gradient), warm=3, count=10
    )
    return {"forward": timing(forward), "forward_backward": timing(both)}


def _batch(latents: tuple[int, ...]) -> tuple[Tensor, Tensor, Any]:
    generator = torch.Generator().manual_seed(0)
    randomness = sample_noise(latents, generator)
    randomness = replace(randomness, **{name: one.cuda() for name, one in vars(randomness).items()})
    clean = torch.randn(1, *latents, generator=generator).cuda()
    return clean, torch.randn(1, 512, 1024, generator=generator).cuda(), randomness


def attention_of(size: str, pattern: str, backend: str = "auto") -> AttentionChoice:
    """Choose attention for clips of 93 frames of 704x1280, as training does."""
    config = TrainConfig(size=size, attention=backend, attention_pattern=pattern)
    return choose_attention(config, phases_of(config)[0].token_grid, torch.device("cuda"), BF16)


def step_2b(
    keep: RecomputePolicy | Literal["auto"] = "auto",
    backend: str = "auto",
    pattern: str = "dense",
    compiled: bool = True,
    count: int = 5,
    profile: bool = True,
    dimension: int = 0,
) -> dict[str, Any]:
    """Measure the complete 2B step: 93 frames of 704x1280, batch 1, cached latents.

    ``dimension`` is that of an action per frame; 0: not conditioned on actions.
    """
    preset, latents = PRESETS["2B"], LATENTS["720p"]
    tokens = tokens_of(latents)
    dit, actions = preset.dit, None
    if dimension:
        dit = replace(dit, actions=ActionConditioning("per_frame", dimension))
        actions = torch.randn(1, 4 * (latents[1] - 1), dimension, device="cuda")
    net = network(dit)
    choice = attention_of("2B", pattern, backend)
    net.set_attention(choice.cross_attention, choice.self_attention)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=preset.weight_decay)
    step = TrainStep(net, optimizer, Ema(net.named_parameters()), dtype=BF16, clip=1.0)
    if keep == "auto":
        gradients = sum(one.numel() * one.element_size() for one in net.parameters())
        policies = policies_for_free_memory(net.config, tokens, gradients, torch.device("cuda"))
    else:
        policies = [keep] * len(net.blocks)
    prepare_blocks(net, keep=policies, compiled=compiled)
    batch = _batch(latents)
    started = time.monotonic()
    outcome = step(*batch, 1e-5, actions)
    torch.cuda.synchronize()
    first = time.monotonic() - started
    times = seconds_of(lambda: step(*batch, 1e-5, actions), warm=1, count=count)
    parameters = sum(one.numel() for one in net.parameters())
    flops = step_flops(preset.dit, parameters, tokens, density=choice.density)
    median = statistics.median(times)
    result = timing(times) | memory()
    result |= {
        "tokens": tokens,
        "attention": choice.name,
        "keep": dict(Counter(policies)),
        "compiled": compiled,
        "first_step_seconds": round(first, 1),
        "useful_flops": flops,
        "useful_tflops": round(flops / median / 1e12, 1),
        "tokens_per_second": round(tokens / median),
        "loss": float(outcome.loss),
        "norm": float(outcome.gradient_norm),
        "skipped": float(outcome.skipped),
    }
    if profile:
        result["device_seconds"] = _profile(lambda: step(*batch, 1e-5, actions))
    return result


def _profile(work: Callable[[], Any]) -> dict[str, float]:
    """Profile ``work`` and return seconds of device time by kind of kernel."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        torch.cuda.synchronize()
    return kinds_of(profiler)


def kinds_of(profiler: Any) -> dict[str, float]:
    """Return seconds of device time by kind of kernel in a profile."""
    kinds: dict[str, float] = {}
    for one in sorted(profiler.key_averages(), key=lambda one: -one.device_time_total):
        seconds = one.device_time_total / 1e6
        name = one.key.lower()
        kind = next(
            (
                kind
                for part, kind in (
                    ("nccl", "communication"),
                    ("flashattention", "attention"),
                    ("flash", "attention"),
                    ("cudnn", "attention"),
                    ("fmha", "attention"),
                    ("nvjet", "products"),
                    ("gemm", "products"),
                    ("cutlass", "products"),
                    ("adam", "optimizer"),
                    ("multi_tensor", "foreach"),
                    ("triton", "element-wise"),
                    ("memcpy", "copies"),
                    ("memset", "copies"),
                )
                if part in name
            ),
            "other",
        )
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    return {kind: round(seconds, 4) for kind, seconds in kinds.items()}


def peer_diffusers(count: int = 2) -> dict[str, Any]:
    """Measure diffusers' transformer: bf16, gradient checkpointing, forward and backward."""
    dit, latents = PRESETS["2B"].dit, LATENTS["720p"]
    net: Any = diffusers_network(dit, torch.device("cuda"), BF16)
    randomised(net)
    net.enable_gradient_checkpointing()
    net.train()
    _, frames, height, width = latents
    x = torch.randn(1, 17, frames, height, width, device="cuda", dtype=BF16)
    target = torch.randn(1, *latents, device="cuda")
    level = torch.rand(1, 1, frames, 1, 1, device="cuda", dtype=BF16)
    text = torch.randn(1, 512, 1024, device="cuda", dtype=BF16)
    padding = torch.zeros(1, 1, height * 8, width * 8, device="cuda", dtype=BF16)

    def step() -> None:
        net.zero_grad()
        out = net(x, level, text, padding_mask=padding, return_dict=False)[0]
        (out.float() - target).square().mean().backward()

    times = seconds_of(step, warm=1, count=count)
    flops = step_flops(dit, sum(one.numel() for one in net.parameters()), tokens_of(latents))
    return (
        timing(times)
        | memory()
        | {"useful_tflops": round(flops / statistics.median(times) / 1e12, 1)}
    )


def rank_14b(
    keep: RecomputePolicy = "products",
    pattern: str = "dense",
    ranks: int = 8,
    shards: int = 32,
    count: int = 3,
    profile: bool = True,
) -> dict[str, Any]:
    """Measure one rank's share of 14B at context parallel 8 and FSDP over 32, without transfers.

    The rank's 3 of 24 latent frames pass through all 36 blocks, its 5 of 40 heads attend over the
    complete clip, and it updates and averages its 1/32 of all parameters. Two blocks' weights and
    gradients, used in turn, stand in for what FSDP would gather and scatter; packing for the
    all-to-all is included, sending is not.
    """
    preset, latents = PRESETS["14B"], LATENTS["720p"]
    tokens = tokens_of(latents)
    with torch.device("meta"):
        parameters = sum(one.numel() for one in VideoDiT(preset.dit).parameters())
    net = network(replace(preset.dit, num_blocks=2))
    repeated = nn.ModuleList(_twin(net.blocks[i % 2]) for i in range(preset.dit.num_blocks))
    net.blocks = cast("Sequence[Block]", repeated)
    choice = attention_of("14B", pattern)
    attend = choice.self_attention
    sizes = [tokens // ranks] * ranks
    every = list(attend) if isinstance(attend, Sequence) else [attend] * len(net.blocks)
    shared = {one: ulysses(one, sizes, lambda x, *_: x, 0) for one in every}
    net.set_attention(choice.cross_attention, [shared[one] for one in every])
    net.all_frames = latents[1]
    prepare_blocks(net, keep=keep, compiled=True)
    part = nn.ParameterList(
        torch.randn(parameters // shards // 36, device="cuda", dtype=BF16) for _ in range(36)
    )
    optimizer = MasterAdamW(part.named_parameters(), weight_decay=preset.weight_decay)
    step = TrainStep(net, optimizer, Ema(part.named_parameters()), dtype=BF16, clip=1.0)
    clean, text, randomness = _batch(latents)
    own = frame_slice(latents[1], ranks, 0)
    randomness = replace(randomness, noise=randomness.noise[:, :, own])

    def iteration() -> None:
        for one in net.parameters():
            one.grad = None
        loss = training_loss(net, clean[:, :, own], text, randomness, dtype=BF16)
        loss.backward()
        for one in part.parameters():
            one.grad = torch.randn_like(one)
        step.apply(loss.detach(), 1e-5)

    times = seconds_of(iteration, warm=2, count=count)
    flops = step_flops(preset.dit, parameters, tokens, density=choice.density) / ranks
    result = timing(times) | memory()
    result |= {
        "attention": choice.name,
        "keep": keep,
        "context_parallel": ranks,
        "shards": shards,
        "useful_tflops": round(flops / statistics.median(times) / 1e12, 1),
    }
    if profile:
        result["device_seconds"] = _profile(iteration)
    return result


def _twin(block: Block) -> Block:
    """Return a block with the same weights that may have another self-attention."""
    twin = copy.copy(block)
    twin._modules = dict(block._modules)
    twin.self_attn = copy.copy(block.self_attn)
    return twin


def step_2b_sparse(**options: Any) -> dict[str, Any]:
    """As :func:`step_2b`, with the published sparse patterns."""
    return step_2b(pattern="sparse", **options)


def rank_14b_sparse(**options: Any) -> dict[str, Any]:
    """As :func:`rank_14b`, with the published sparse patterns."""
    return rank_14b(pattern="sparse", **options)


def lora_14b(keep: RecomputePolicy = "attention", count: int = 2) -> dict[str, Any]:
    """Measure the complete 14B step with rank-16 adapters on one GPU: 93 frames of 432x768."""
    preset, latents = PRESETS["14B"], LATENTS["480p"]
    net = network(preset.dit)
    inject(net)
    randomised(net)
    choice = select_for("auto", torch.device("cuda"), BF16)
    net.set_attention(choice.cross_attention, choice.attend)
    prepare_blocks(net, keep=keep, compiled=True)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=preset.weight_decay)
    step = TrainStep(net, optimizer, Ema(net.named_parameters()), dtype=BF16)
    batch = _batch(latents)
    times = seconds_of(lambda: step(*batch, 1e-5), warm=2, count=count)
    parameters = list(net.parameters())
    trained = sum(one.numel() for one in parameters if one.requires_grad)
    total = sum(one.numel() for one in parameters)
    flops = step_flops(preset.dit, total, tokens_of(latents), lora=True)
    return (
        timing(times)
        | memory()
        | {
            "trained_parameters": trained,
            "tokens": tokens_of(latents),
            "keep": keep,
            "useful_tflops": round(flops / statistics.median(times) / 1e12, 1),
        }
    )


def gradients(length: int = 2048, heads: int = 4, draws: int = 8) -> dict[str, Any]:
    """Compare every available kernel with float64: relative errors of output and gradients.

    Means over ``draws`` random inputs; ``spread`` is the standard deviation between them of the
    largest of the four.
    """
    device = torch.device("cuda")
    found: dict[str, Any] = {}
    kernels = {}
    for name in BACKENDS:
        try:
            kernels[name] = select_for(name, device, BF16).attend
        except UserError as error:
            found[name] = {"not_here": str(error).partition(": ")[2]}
    errors: dict[str, list[list[float]]] = {name: [] for name in kernels}
    for seed in range(1, draws + 1):
        generator = torch.Generator(device).manual_seed(seed)
        given = [
            torch.randn(1, length, heads, 128, device=device, generator=generator).to(BF16)
            for _ in range(4)
        ]
        wanted = _attended(_exact, [one.double() for one in given])
        for name, attend in kernels.items():
            errors[name].append(
                [
                    float((a.double() - b).norm() / b.norm())
                    for a, b in zip(_attended(attend, given), wanted, strict=True)
                ]
            )
    for name, rows in errors.items():
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        found[name] = dict(zip(GRADIENTS, means, strict=True))
        found[name]["spread"] = statistics.stdev(max(row) for row in rows)
    return found


def gradients_sparse(grid: tuple[int, int, int] = (4, 44, 80), heads: int = 2) -> dict[str, Any]:
    """Compare sparse kernels with a mask in float64: the largest relative errors by pattern."""
    device, found = torch.device("cuda"), dict[str, Any]()
    given = [torch.randn(1, math.prod(grid), heads, 128, device=device).to(BF16) for _ in range(4)]
    for number, pattern in enumerate(dict.fromkeys(PATTERNS["2B"])):
        assert pattern is not None
        name, own = "ABCDE"[number], scaled(pattern, grid)
        assert plan_blocks(own, grid).has_full_blocks_only  # else flex attention takes its place

        def of(kernel: str, given: list[Tensor], own: Any = own) -> list[Tensor]:
            (attend,) = sparse_attention([own], grid, device, kernel, cast("Any", None))
            return _attended(attend, given)

        wanted = of("masked", [one.double() for one in given])
        for kernel in ("flash_attention_4", "flex"):
            errors = [
                float((a.double() - b).norm() / b.norm())
                for a, b in zip(of(kernel, given), wanted, strict=True)
            ]
            found[f"{name} {kernel}"] = dict(zip(GRADIENTS, errors, strict=True))
    return found


def _exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("blhd,bmhd->bhlm", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), value)


def _attended(attend: Any, given: list[Tensor]) -> list[Tensor]:
    """Return output and gradients for query, key, value and the output's gradient in ``given``."""
    inputs = [one.clone().requires_grad_() for one in given[:3]]
    out = attend(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, given[3])]


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    one.__name__: one
    for one in (
        matrix_rate,
        attention_rate,
        step_2b,
        step_2b_sparse,
        peer_diffusers,
        rank_14b,
        rank_14b_sparse,
        lora_14b,
        gradients,
        gradients_sparse,
    )
}
