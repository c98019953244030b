"""Test recomputation: equal gradients with every policy, and attention computed once."""

import sys
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from video2world_trainer.distributed import activation_offload
from video2world_trainer.distributed.activation_checkpoint import (
    RECOMPUTE_POLICIES,
    fitting_policies,
    prepare_blocks,
    saved_bytes_per_block,
)
from video2world_trainer.model.attention import sdpa
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.flash_attention_4 import flash_attention_4
from video2world_trainer.model.presets import PRESETS, DiTConfig

torch.set_num_threads(1)
CONFIG = DiTConfig(
    model_channels=64,
    num_blocks=2,
    num_heads=2,
    adaln_lora_dim=16,
    crossattn_dim=32,
    max_height=16,
    max_width=16,
    max_frames=8,
)


def random_net() -> VideoDiT:
    net = VideoDiT(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return net


def loss_of(net: VideoDiT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (
        net(
            torch.randn(1, 16, 3, 8, 12, generator=generator),
            torch.rand(1, 3, generator=generator),
            torch.randn(1, 5, 32, generator=generator),
            torch.zeros(1, 1, 3, 8, 12),
        )
        .square()
        .mean()
    )


class Counter(TorchDispatchMode):
    """Count operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def gradients(keep, *, attend=sdpa, compiled=False, offload=False):
    net = random_net()
    net.set_attention(attend)
    prepare_blocks(net, keep=keep, compiled=compiled, offload=offload)
    counter = Counter()
    if compiled:
        loss_of(net).backward()
    else:
        with counter:
            loss_of(net).backward()
    return [one.grad for one in net.parameters()], counter.counts


def test_every_policy_gives_the_same_gradients_and_recomputes_what_it_should():
    expected, all_kept = gradients("all")
    forward = "aten::_scaled_dot_product_flash_attention_for_cpu"
    products = {}
    for keep in RECOMPUTE_POLICIES:
        found, counts = gradients(keep)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), keep
        products[keep] = counts["aten::mm"]
        if keep == "all":
            assert counts[forward] == 4  # two blocks, to tokens and to the caption
        elif keep == "nothing":
            assert counts[forward] == 8
        else:
            assert counts[forward] == 6  # only the cheap one, to the caption, again
    assert products["attention"] == products["nothing"]
    assert products["narrow"] == products["attention"] - 2  # one a block
    assert products["square"] == products["narrow"] - 2 * 6  # to and from heads, and to caption
    assert products["products"] == products["square"] - 2
    assert products["all"] < products["products"]
    assert products["all"] == all_kept["aten::mm"]


@pytest.fixture
def package(monkeypatch):
    """Provide flash-attn-4's interface, computed with PyTorch on the CPU."""

    def fwd(query, key, value, *, return_lse):
        assert return_lse
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(one.transpose(1, 2) for one in (query, key, value))
        )
        return out.transpose(1, 2).contiguous(), lse.transpose(1, 2).contiguous(), None, None, None

    def bwd(query, key, value, out, gradient, lse):
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(one.transpose(1, 2) for one in (gradient, query, key, value, out)),
            lse.transpose(1, 2),
            0.0,
            False,
        )
        return tuple(one.transpose(1, 2).contiguous() for one in grads)

    # as the interface orders it, log-sum-exps are [B, heads, L]
    def fwd_heads_first(*given, **named):
        out, lse, *rest = fwd(*given, **named)
        return out, lse.transpose(1, 2).contiguous(), *rest

    def bwd_heads_first(query, key, value, out, gradient, lse):
        return bwd(query, key, value, out, gradient, lse.transpose(1, 2))

    module = types.ModuleType("flash_attn.cute.interface")
    module._flash_attn_fwd, module._flash_attn_bwd = fwd_heads_first, bwd_heads_first
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", module)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_output_of_flash_attention_4_is_saved(package, compiled, monkeypatch):
    """Operator, autograd, checkpointing and compiler work together; the kernels need a GPU."""
    if compiled:  # the compiler's graphs without its code generation
        monkeypatch.setattr(
            torch, "compile", lambda f, **options: COMPILE(f, backend=BACKEND, **options)
        )
    expected, _ = gradients("all")
    calls = []
    interface = sys.modules["flash_attn.cute.interface"]
    forward = interface._flash_attn_fwd
    interface._flash_attn_fwd = lambda q, k, v, **named: (
        calls.append(k.shape[1]) or forward(q, k, v, **named)
    )
    found, _ = gradients("narrow", attend=flash_attention_4, compiled=compiled)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert calls.count(72) == 2  # self-attention: once a block, never again
    assert calls.count(5) == 4


def test_offloaded_inputs_give_the_same_gradients(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **kw: COMPILE(f, backend=BACKEND, **kw))
    moved = []
    move = activation_offload._Offload._to_host
    monkeypatch.setattr(
        activation_offload._Offload, "_to_host", lambda *a: moved.append(a[1]) or move(*a)
    )
    expected, _ = gradients("attention", compiled=True)
    found, _ = gradients("attention", compiled=True, offload=True)
    assert len(moved) == CONFIG.num_blocks
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


COMPILE, BACKEND = torch.compile, "aot_eager_decomp_partition"


def test_saved_bytes_of_the_2b_model():
    """28 blocks save their input and attention's output: 2 x 346 MB each."""
    dit, tokens = PRESETS["2B"].dit, 84_480
    assert saved_bytes_per_block(dit, tokens, "attention") == 2 * tokens * 2048 * 2
    sizes = [saved_bytes_per_block(dit, tokens, keep) for keep in RECOMPUTE_POLICIES]
    assert sizes == sorted(sizes, reverse=True)


def test_memory_left_over_is_used_for_the_next_larger_policy():
    dit, tokens = PRESETS["2B"].dit, 84_480
    square, products = (saved_bytes_per_block(dit, tokens, k) for k in ("square", "products"))
    assert fitting_policies(dit, tokens, 28 * square) == ["square"] * 28
    mixed = fitting_policies(dit, tokens, 28 * square + 3 * (products - square) + 1)
    assert mixed == ["products"] * 3 + ["square"] * 25
    assert fitting_policies(dit, tokens, 10**15) == ["products"] * 28
    assert fitting_policies(dit, tokens, 0) == ["attention"] * 28


@pytest.mark.parametrize("compiled", [False, True])
def test_each_block_may_have_a_policy_of_its_own(compiled, monkeypatch):
    if compiled:
        monkeypatch.setattr(torch, "compile", lambda f, **kw: COMPILE(f, backend=BACKEND, **kw))
    expected, alike = gradients("nothing", compiled=compiled)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found, mixed = gradients(["products", "nothing"], compiled=compiled)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    if compiled:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each policy
    else:
        assert mixed["aten::mm"] == alike["aten::mm"] - 8
