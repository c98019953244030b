"""Sparse attention: masks against brute force, and block plans against masks."""

import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from video2world_trainer.model.attention import sdpa
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import DiTConfig
from video2world_trainer.model.sparse_attention import (
    BLOCK,
    PATTERNS,
    Pattern,
    axes,
    density,
    patterns_for,
    plan_blocks,
    scaled,
    why_unsupported,
)
from video2world_trainer.model.sparse_kernels import choose, in_order, sparse_attention

torch.set_num_threads(1)
CPU = torch.device("cpu")
FULL = (24, 44, 80)
KINDS = list(dict.fromkeys(PATTERNS["2B"]))


def test_published_models_have_a_pattern_for_every_block():
    counts = {size: [row.count(one) for one in [*KINDS, None]] for size, row in PATTERNS.items()}
    assert counts["2B"] == [2, 3, 7, 15, 1, 0]
    assert counts["14B"] == [11, 2, 10, 6, 6, 1]
    assert PATTERNS["2B"][23].window == (-1, 28, 56)
    assert PATTERNS["14B"][27] is None


@pytest.mark.parametrize(
    ("size", "grid", "problem"),
    [
        ("2B", FULL, ""),
        ("14B", (16, 44, 80), ""),
        ("Tiny", (5, 6, 8), ""),
        ("2B", (24, 27, 48), "for frames of 704x1280 only"),
        ("2B", (80, 44, 24), "for frames of 704x1280 only"),
        ("14B", (23, 44, 80), "its 23 latent frames do not divide into blocks of 128"),
    ],
)
def test_clips_without_a_published_pattern_are_refused(size, grid, problem):
    found = why_unsupported(size, grid)
    assert problem in found
    assert bool(found) == bool(problem)


def test_density_is_the_share_of_pairs_in_the_mask():
    grid = (3, 12, 20)
    patterns = patterns_for("Tiny", grid)
    shares = [dense_mask(one, grid).double().mean().item() for one in patterns]
    assert density([*patterns, None], grid) == pytest.approx((sum(shares) + 1) / 5)
    assert density(patterns_for("2B", FULL), FULL) == pytest.approx(4.627 / 28, abs=1e-4)


def dense_mask(pattern, grid):
    """Return the mask [T*H*W queries, T*H*W keys] by definition, time slowest; for small grids."""
    t, h, w = (torch.from_numpy(axis.mask()) for axis in axes(pattern, grid))
    tokens = math.prod(grid)
    mask = t[:, None, None, :, None, None] & h[:, None, None, :, None] & w[:, None, None, :]
    return mask.reshape(tokens, tokens)


def brute_force(pattern, grid):
    """Return the mask position by position, as NATTEN's documentation defines it."""
    cells = list(itertools.product(*(range(n) for n in grid)))

    def sees(query, key, length, window, stride, dilation):
        if query % dilation != key % dilation:
            return False
        group = [n for n in range(length) if n % dilation == query % dilation]
        i, j = group.index(query), group.index(key)
        leader = min(i // stride * stride + stride // 2, len(group) - 1)
        first = min(max(leader - window // 2, 0), len(group) - window)
        return first <= j < first + window

    axes = list(zip(grid, pattern.window, pattern.stride, pattern.dilation, strict=True))
    return torch.tensor(
        [[all(sees(q[a], k[a], *axes[a]) for a in range(3)) for k in cells] for q in cells]
    )


# checked by hand: natten 0.21.0's na3d gives the same on these grids and patterns
SMALL = [
    ((2, 6, 8), Pattern((2, 3, 4))),
    ((2, 7, 9), Pattern((2, 2, 3), (1, 1, 1), (1, 3, 2))),
    ((3, 8, 8), Pattern((2, 4, 5), (2, 2, 4), (1, 1, 1))),
    ((1, 9, 12), Pattern((1, 4, 6), (1, 3, 2), (1, 2, 2))),
]


@pytest.mark.parametrize(("grid", "pattern"), SMALL)
def test_mask_equals_brute_force(grid, pattern):
    assert torch.equal(dense_mask(pattern, grid), brute_force(pattern, grid))


def test_queries_of_a_stride_share_a_window_inside_the_axis():
    """Pattern C along a height of 44: four rows share a window of the twelve around them."""
    mask = dense_mask(Pattern((1, 12, 1), (1, 4, 1)), (1, 44, 1))
    seen = [(int(row.nonzero()[0]), int(row.nonzero()[-1])) for row in mask]
    assert seen[0:4] == [(0, 11)] * 4
    assert seen[4:8] == [(0, 11)] * 4
    assert seen[20:24] == [(16, 27)] * 4
    assert seen[40:44] == [(32, 43)] * 4


def rebuilt(blocks):
    """Return the mask that a block plan describes, in the tokens' original order."""
    tokens, count = len(blocks.order), len(blocks.full_count)
    mask = torch.zeros(count * BLOCK, count * BLOCK, dtype=torch.bool)
    rows = F.pad(
        blocks.rows[blocks.kind.long()], (0, count * BLOCK - tokens, 0, count * BLOCK - tokens)
    )
    for q in range(count):
        here = slice(q * BLOCK, (q + 1) * BLOCK)
        for k in blocks.full_index[q, : blocks.full_count[q]].tolist():
            mask[here, k * BLOCK : (k + 1) * BLOCK] = True
        for k in blocks.part_index[q, : blocks.part_count[q]].tolist():
            there = slice(k * BLOCK, (k + 1) * BLOCK)
            mask[here, there] = rows[here, there]
    return mask[:tokens, :tokens][blocks.place][:, blocks.place]


@pytest.mark.parametrize("grid", [(4, 11, 20), (3, 12, 20)])
@pytest.mark.parametrize("kind", range(5))
def test_blocks_equal_the_mask(grid, kind):
    pattern = scaled(KINDS[kind], grid)
    assert torch.equal(rebuilt(plan_blocks(pattern, grid)), dense_mask(pattern, grid))


@pytest.mark.parametrize("frames", [24, 16])
def test_published_sizes_have_full_blocks_only(frames):
    grid = (frames, 44, 80)
    shares = []
    for kind in KINDS:
        blocks = plan_blocks(scaled(kind, grid), grid)
        assert blocks.has_full_blocks_only
        count = len(blocks.full_count)
        assert count * BLOCK == frames * 44 * 80
        assert blocks.order[blocks.place].equal(torch.arange(count * BLOCK))
        shares.append(float(blocks.full_count.sum()) / count**2)
    wide = [(4 * 16, 1), (12 * 16, 1), (12 * 24, 1), (20 * 40, 1), (28 * 56, 1)]
    assert shares == pytest.approx([n / (44 * 80) for n, _ in wide])


def test_block_sparse_attention_equals_masked_attention():
    """With compiled flex attention, and blocks that are attended to in part."""
    grid = (3, 8, 16)
    pattern = scaled(KINDS[2], grid)
    assert not plan_blocks(pattern, grid).has_full_blocks_only
    generator = torch.Generator().manual_seed(0)
    tokens = 3 * 8 * 16
    query, key, value = (torch.randn(2, tokens, 2, 16, generator=generator) for _ in range(3))
    sparse, dense = sparse_attention([pattern, None], grid, CPU, "flex", sdpa)
    assert dense is sdpa
    expected = F.scaled_dot_product_attention(
        *(one.transpose(1, 2) for one in (query, key, value)), attn_mask=dense_mask(pattern, grid)
    ).transpose(1, 2)
    torch.testing.assert_close(sparse(query, key, value), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(sparse(query, key, value), dense(query, key, value), atol=1e-2)


@pytest.mark.parametrize("frames", [24, 16])
def test_the_gradients_lists_are_the_transpose(frames):
    grid = (frames, 44, 80)
    for kind in KINDS:
        blocks = plan_blocks(scaled(kind, grid), grid)
        count = len(blocks.full_count)
        by_query = torch.zeros(count, count, dtype=torch.bool)
        by_key = torch.zeros(count, count, dtype=torch.bool)
        for number in range(count):
            by_query[number, blocks.full_index[number, : blocks.full_count[number]].long()] = True
            seen_by = blocks.query_index[number, : blocks.query_count[number]].long()
            by_key[seen_by, number] = True
        assert torch.equal(by_query, by_key)


@pytest.mark.parametrize("kind", range(5))
def test_gradients_are_those_of_masked_attention_in_float64(kind):
    grid = (2, 11, 20)
    pattern = scaled(KINDS[kind], grid)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, math.prod(grid), 2, 16, generator=generator) for _ in range(4)]
    (attend,) = sparse_attention([pattern], grid, CPU, "masked", sdpa)

    def exact(query, key, value):
        scores = torch.einsum("blhd,bmhd->bhlm", query, key) / 4
        scores = scores.masked_fill(~dense_mask(pattern, grid), -math.inf)
        return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), value)

    def with_gradients(function, given):
        inputs = [one.clone().requires_grad_() for one in given[:3]]
        out = function(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, given[3])]

    expected = with_gradients(exact, [one.double() for one in given])
    for found, right in zip(with_gradients(attend, given), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)


def test_reordered_tokens_keep_their_gradients():
    """In the order of blocks a kernel sees other places, and gradients return to their tokens."""
    grid = (1, 8, 16)
    blocks = plan_blocks(scaled(KINDS[0], grid), grid)
    attend = in_order(blocks, lambda query, key, value: query * 2 + key * 3 + value * 5)
    given = [torch.randn(1, 128, 2, 4, requires_grad=True) for _ in range(3)]
    weight = torch.randn(1, 128, 2, 4)
    out = attend(*given)
    torch.testing.assert_close(out, given[0] * 2 + given[1] * 3 + given[2] * 5)
    for gradient, factor in zip(torch.autograd.grad(out, given, weight), (2, 3, 5), strict=True):
        torch.testing.assert_close(gradient, weight * factor)


def test_block_sparse_attention_runs_inside_a_compiled_function():
    grid = (1, 8, 16)
    attend = sparse_attention([scaled(KINDS[2], grid)], grid, CPU, "flex", sdpa)[0]
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(1, 128, 2, 16, generator=generator) for _ in range(3)]
    expected = attend(*given) + 1
    block = torch.compile(lambda q, k, v: attend(q * 1, k, v) + 1, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(block(*given), expected)


def test_a_network_accepts_one_attention_per_block():
    config = DiTConfig(
        model_channels=32, num_blocks=2, num_heads=2, adaln_lora_dim=8, crossattn_dim=16
    )
    net = VideoDiT(config)
    calls = []

    def noted(name):
        return lambda *given: calls.append(name) or sdpa(*given)

    net.set_attention(sdpa, [noted("first"), noted("second")])
    net(
        torch.zeros(1, 16, 1, 4, 4),
        torch.zeros(1, 1),
        torch.zeros(1, 3, 16),
        torch.zeros(1, 1, 1, 4, 4),
    )
    assert calls == ["first", "second"]


@pytest.mark.parametrize(
    ("capability", "packages", "expected"),
    [
        ((9, 0), ("natten", "flash_attn.cute"), "natten"),
        ((9, 0), ("flash_attn.cute",), "flash_attention_4"),
        ((10, 0), ("flash_attn.cute",), "flex"),  # it uses blocks of another size there
        ((8, 0), ("natten",), "flex"),
        (None, ("natten", "flash_attn.cute"), "masked"),  # flex has no gradients on CPUs
    ],
)
def test_the_kernel_is_chosen_by_hardware_and_packages(capability, packages, expected):
    assert choose(capability, torch.bfloat16, has=packages.__contains__) == expected
    in_float32 = choose(capability, torch.float32, has=packages.__contains__)
    assert in_float32 == ("masked" if capability is None else "flex")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (SimpleNamespace(HAS_LIBNATTEN=True), "natten"),
        (SimpleNamespace(HAS_LIBNATTEN=False), "flex"),
        (SimpleNamespace(), "flex"),  # before 0.20
        (None, "flex"),  # not installed
    ],
)
def test_natten_without_its_cuda_kernels_is_not_used(monkeypatch, module, expected):
    monkeypatch.setitem(sys.modules, "natten", module)
    assert choose((10, 0), torch.bfloat16) == expected


def na3d(query, key, value, *, kernel_size, stride, dilation):
    """A stand-in with NATTEN's call convention; the real one runs on GPUs only."""
    grid = tuple(query.shape[1:4])
    mask = dense_mask(Pattern(kernel_size, stride, dilation), grid)
    given = [one.flatten(1, 3).transpose(1, 2) for one in (query, key, value)]
    out = F.scaled_dot_product_attention(*given, attn_mask=mask).transpose(1, 2)
    return out.unflatten(1, grid)


def test_natten_is_called_by_its_convention(monkeypatch):
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(na3d=na3d))
    grid, pattern = SMALL[2]
    given = [torch.randn(1, 3 * 8 * 8, 2, 8) for _ in range(3)]
    (attend,) = sparse_attention([pattern], grid, CPU, "natten", sdpa)
    expected = F.scaled_dot_product_attention(
        *(one.transpose(1, 2) for one in given), attn_mask=dense_mask(pattern, grid)
    ).transpose(1, 2)
    torch.testing.assert_close(attend(*given), expected)
