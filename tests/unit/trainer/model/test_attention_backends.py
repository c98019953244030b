"""Attention kernels: which one is selected, and why others are refused."""

import importlib
import sys

import pytest
import torch

from video2world_common.exit_codes import UserError
from video2world_trainer.model.attention import sdpa
from video2world_trainer.model.attention_backends import BACKENDS, installed, select, select_for

torch.set_num_threads(1)


def only(*modules):
    return lambda module: module in modules or module == "torch"


def qkv(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 6, 2, 8), (2, 5, 2, 8), (2, 5, 2, 8)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def test_cpu_uses_pytorch_attention_which_equals_the_formula():
    choice = select_for("minimal_a2a", torch.device("cpu"), torch.float32)
    assert choice.name == "torch"
    assert "flash_attention_3: it needs an NVIDIA GPU" in choice.reason
    query, key, value = qkv()
    scores = torch.einsum("blhd,bmhd->bhlm", query, key) / 8**0.5
    expected = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), value)
    torch.testing.assert_close(choice.attend(query, key, value), expected)


@pytest.mark.parametrize("capability", [None, (8, 0), (9, 0), (10, 0), (12, 0)])
def test_pytorch_attention_is_the_fallback_on_every_gpu(capability):
    choice = select("auto", capability, has=only())
    assert choice.name == "torch"
    given = qkv()
    torch.testing.assert_close(choice.attend(*given), sdpa(*given))  # on a CPU, "math" always runs


@pytest.mark.parametrize(
    ("wanted", "capability", "dtype", "has", "message"),
    [
        (
            "flash_attention_3",
            (10, 0),
            torch.bfloat16,
            lambda _: True,
            r"atten_backend=flash_attention_3: it runs on compute capability 9\.x, this .* 10\.0",
        ),
        (
            "flash_attention_4",
            (8, 6),
            torch.bfloat16,
            lambda _: True,
            r"compute capability 9\.x, 10\.x, this GPU has 8\.6",
        ),
        ("flash_attention_2", (7, 5), torch.float16, lambda _: True, r"this GPU has 7\.5"),
        (
            "transformer_engine",
            (10, 0),
            torch.bfloat16,
            only(),
            r"transformer-engine\[pytorch\] is not installed .* usable here: torch",
        ),
        (
            "flash_attention_2",
            (8, 0),
            torch.float32,
            lambda _: True,
            r"it computes in bfloat16 or float16, the model is float32; usable here: torch",
        ),
        ("flash_attention_2", None, torch.bfloat16, lambda _: True, r"needs an NVIDIA GPU"),
        (
            "flash",
            (9, 0),
            torch.bfloat16,
            only(),
            r"must be one of auto, minimal_a2a, flash_attention_4, .*torch",
        ),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(
    wanted, capability, dtype, has, message
):
    with pytest.raises(UserError, match=message):
        select(wanted, capability, dtype, has=has)


def test_pytorch_attention_can_be_requested_everywhere():
    for capability in (None, (7, 0), (9, 0)):
        choice = select("torch", capability, torch.float32, has=only())
        assert (choice.name, choice.reason) == ("torch", "requested")


FLASH = """
import torch
def flash_attn_func(query, key, value):
    heads_first = [one.transpose(1, 2) for one in (query, key, value)]
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    return {answer}
"""
INTERFACE = """
import torch
def _flash_attn_fwd(query, key, value, return_lse):
    heads_first = [one.transpose(1, 2) for one in (query, key, value)]
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    return out.contiguous(), torch.zeros(query.shape[0], query.shape[2], query.shape[1]), None
"""
ENGINE = """
import torch
class DotProductAttention:
    def __init__(self, heads, head_dim, *, attention_dropout, qkv_format, attn_mask_type):
        assert (attention_dropout, qkv_format, attn_mask_type) == (0.0, "bshd", "no_mask")
    def __call__(self, query, key, value, attn_mask_type):
        heads_first = [one.transpose(1, 2) for one in (query, key, value)]
        return torch.nn.functional.scaled_dot_product_attention(
            *heads_first).transpose(1, 2).flatten(2)
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Write importable stand-ins for GPU-only packages, with the same call conventions.

    The real ones run on GPUs only; what is tested is how they are found, called and unpacked.
    """
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(module: str, source: str) -> None:
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("flash_attn", "flash_attn_interface", "transformer_engine"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "module", "source", "capability"),
    [
        ("flash_attention_4", "flash_attn.cute.interface", INTERFACE, (10, 0)),
        ("flash_attention_3", "flash_attn_interface", FLASH.format(answer="out"), (9, 0)),
        ("flash_attention_3", "flash_attn_interface", FLASH.format(answer="(out, None)"), (9, 0)),
        (
            "flash_attention_2",
            "flash_attn.flash_attn_interface",
            FLASH.format(answer="out"),
            (8, 0),
        ),
        ("transformer_engine", "transformer_engine.pytorch", ENGINE, (12, 0)),
    ],
)
def test_an_installed_kernel_is_preferred_and_unpacked(packages, name, module, source, capability):
    packages(module, source)
    given = qkv(torch.bfloat16)
    for wanted in ("auto", name):
        choice = select(wanted, capability)
        assert choice.name == name
        assert torch.equal(choice.attend(*given), sdpa(*given))


def test_flash_attention_4_alone_is_not_mistaken_for_version_2(packages):
    packages("flash_attn.cute", FLASH.format(answer="out"))
    assert installed("flash_attn.cute")
    assert not installed("flash_attn.flash_attn_interface")
    assert select("auto", (8, 0)).name == "torch"


def test_a_package_that_does_not_load_is_named(packages):
    packages("flash_attn_interface", "raise ImportError('libcudart.so.12: cannot open')")
    with pytest.raises(UserError, match=r"flash-attn-3 is installed but does not load \(libcudart"):
        select("flash_attention_3", (9, 0))
    choice = select("auto", (9, 0))  # falls back to the next
    assert choice.name == "torch"
    assert "flash-attn-3 is installed but does not load (libcudart" in choice.reason


def test_a_package_with_a_missing_library_is_skipped(packages):
    packages("transformer_engine.pytorch", "raise RuntimeError('curand shared object not found')")
    choice = select("auto", (8, 0))
    assert choice.name == "torch"
    assert "curand shared object not found" in choice.reason


def test_backend_names_equal_the_operators():
    from video2world_operator.plan.commands import _ATTENTION

    assert set(_ATTENTION.values()) == set(BACKENDS)
