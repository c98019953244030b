"""On a GPU: every attention kernel against float64, the compiled step against the plain one."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from repository import ROOT
from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.model.action_conditioning import ActionConditioning
from video2world_trainer.model.attention_backends import BACKENDS, select_for
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import DiTConfig
from video2world_trainer.model.sparse_attention import patterns_for
from video2world_trainer.model.sparse_kernels import sparse_attention
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.loss import sample_noise
from video2world_trainer.training.optimizer import MasterAdamW
from video2world_trainer.training.step import TrainStep

BF16 = torch.bfloat16
CONFIG = DiTConfig(model_channels=512, num_blocks=2, num_heads=4, adaln_lora_dim=64)
CLIP = (16, 4, 16, 24)


def errors(attend, given, gradient):
    exact = [one.double().requires_grad_() for one in given]
    scores = torch.einsum("blhd,bmhd->bhlm", exact[0], exact[1]) / given[0].shape[-1] ** 0.5
    wanted = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), exact[2])
    inputs = [one.clone().requires_grad_() for one in given]
    out = attend(*inputs)
    pairs = [(out, wanted)]
    pairs += zip(
        torch.autograd.grad(out, inputs, gradient),
        torch.autograd.grad(wanted, exact, gradient.double()),
        strict=True,
    )
    return [float((a.detach().double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("queries", "keys"), [(1000, 1000), (777, 512)])
def test_kernels_against_float64(name, queries, keys):
    device = torch.device("cuda")
    try:
        choice = select_for(name, device, BF16)
    except UserError as error:
        pytest.skip(str(error))
    generator = torch.Generator(device).manual_seed(queries)
    lengths = (queries, keys, keys, queries)
    *given, gradient = (
        torch.randn(2, n, 4, 128, device=device, generator=generator).to(BF16) for n in lengths
    )
    found = errors(choice.attend, given, gradient)
    peer = errors(select_for("torch", device, BF16).attend, given, gradient)
    assert max(found) < 1e-2
    assert all(a < 1.1 * b for a, b in zip(found, peer, strict=True))
    assert max(errors(choice.cross_attention, given, gradient)) < 1e-2


def step_with(keep, compiled, *, steps=3, backend="auto", offload=False, kind=None):
    device = torch.device("cuda")
    torch.manual_seed(0)
    conditioning = ActionConditioning(kind, 7, 12 if kind == "per_clip" else None) if kind else None
    net = VideoDiT(replace(CONFIG, actions=conditioning)).to(device, BF16)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 / parameter.shape[1] ** 0.5)
    choice = select_for(backend, device, BF16)
    net.set_attention(choice.cross_attention, choice.attend)
    prepare_blocks(net, keep=keep, compiled=compiled, offload=offload)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=0.1)
    step = TrainStep(net, optimizer, Ema(net.named_parameters()), dtype=BF16, clip=1.0)
    generator = torch.Generator().manual_seed(1)
    randomness = sample_noise(CLIP, generator)
    randomness = replace(randomness, **{n: one.cuda() for n, one in vars(randomness).items()})
    latents = torch.randn(1, *CLIP, generator=generator).cuda()
    text = torch.randn(1, 32, 1024, generator=generator).cuda()
    actions = torch.randn(1, 12, 7, generator=generator).cuda() if kind else None
    outcomes = [step(latents, text, randomness, 1e-4, actions) for _ in range(steps)]
    return net, step, [(float(one.loss), float(one.gradient_norm)) for one in outcomes]


@pytest.mark.parametrize(
    ("keep", "kind"),
    [("products", None), ("narrow", None), ("narrow", "per_frame"), ("products", "per_clip")],
)
def test_the_compiled_step_equals_the_plain_one(keep, kind):
    _, _, plain = step_with("all", False, backend="torch", kind=kind)
    _, _, found = step_with(keep, True, kind=kind)
    for (loss, norm), (expected, expected_norm) in zip(found, plain, strict=True):
        assert loss == pytest.approx(expected, rel=5e-3)
        assert norm == pytest.approx(expected_norm, rel=3e-2)


def test_inputs_on_the_host_change_nothing_but_memory():
    _, _, expected = step_with("attention", True)
    _, _, found = step_with("attention", True, offload=True)
    for (loss, norm), (wanted, wanted_norm) in zip(found, expected, strict=True):
        assert loss == pytest.approx(wanted, rel=1e-3)  # attention's backward sums in any order
        assert norm == pytest.approx(wanted_norm, rel=1e-2)


def test_a_step_does_not_wait_for_the_gpu():
    """Synchronising calls raise; also when gradients are not finite and the step is skipped."""
    net, step, _ = step_with("narrow", True)
    before = {name: one.detach().clone() for name, one in net.named_parameters()}
    averages = {name: one.clone() for name, one in step.ema.average.items()}
    generator = torch.Generator().manual_seed(1)
    randomness = sample_noise(CLIP, generator)
    randomness = replace(randomness, **{n: one.cuda() for n, one in vars(randomness).items()})
    latents = torch.full((1, *CLIP), float("nan"), device="cuda")
    text = torch.zeros(1, 32, 1024, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = step(latents, text, randomness, 1e-4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(outcome.skipped) == 1
    assert float(step.updates) == 3
    assert all(torch.equal(one, before[name]) for name, one in net.named_parameters())
    assert all(torch.equal(one, averages[name]) for name, one in step.ema.average.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_equal_one():
    worker = ROOT / "tests/support/parallel_worker.py"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(worker),
            "1,1",
            "2,1",
            "1,2",
            "2,2",
        ],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal:") == 4


def test_sparse_blocks_run_within_compiled_blocks():
    """By flex attention, which has to be compiled itself: its fall-back would take all memory."""
    grid = (2, 44, 80)
    patterns = patterns_for("2B", grid)
    device = torch.device("cuda")
    dense = select_for("torch", device, BF16)
    sparse = sparse_attention(patterns[:2], grid, device, "flex", dense.attend)
    given = [torch.randn(1, 2 * 44 * 80, 4, 128, device=device, dtype=BF16) for _ in range(3)]
    with torch.no_grad():
        expected = [attend(*given) for attend in sparse]
        block = torch.compile(lambda attend, q, k, v: attend(q * 1, k, v) + 0, dynamic=False)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for attend, wanted in zip(sparse, expected, strict=True):
            torch.testing.assert_close(block(attend, *given), wanted)
    assert torch.cuda.max_memory_allocated() - before < 300 << 20  # all scores: 99 MB a head
