"""Tests for computations of the preprocess package that differ from the libraries' on a GPU."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5Config, T5EncoderModel

from video2world_preprocess.text.encoder import FusedReluFeedForward, TextEncoder
from video2world_preprocess.vae.vae import VideoVAE

CUDA = torch.device("cuda")


@pytest.mark.parametrize("rows", [1, 97, 4096])
def test_relu_within_the_product_is_relu_after_it(rows):
    torch.manual_seed(0)
    wide, narrow = (
        nn.Linear(*size, bias=False, device=CUDA, dtype=torch.bfloat16)
        for size in ((1024, 65536), (65536, 1024))
    )
    hidden = torch.randn(1, rows, 1024, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        found = FusedReluFeedForward(wide, narrow)(hidden).double()
        exact = torch.relu(hidden.double() @ wide.weight.double().t())
        exact = exact @ narrow.weight.double().t()
        plain = narrow(torch.relu(wide(hidden))).double()
    error, library = ((one - exact).norm() / exact.norm() for one in (found, plain))
    assert library < 1e-2
    assert error < 1.1 * library


def test_attention_with_t5s_bias_is_fused():
    """Not the fallback in float32, which a bias without the keys last in memory would get."""
    config = T5Config(d_model=64, d_kv=128, num_heads=8, d_ff=128, num_layers=2, vocab_size=99)
    encoder = TextEncoder(T5EncoderModel(config).to(CUDA, torch.bfloat16), None, CUDA)
    ids = torch.arange(1, 65, device=CUDA)[None].expand(4, -1)
    mask = (ids < 50).long()
    with torch.no_grad(), sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        found = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert found.isfinite().all()


@pytest.mark.parametrize("frames", [4, 16])
def test_the_wan_vae_is_diffusers_both_ways(frames):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(base_dim=32)
    video = torch.rand(1, 3, 33, 96, 160, device=CUDA) * 2 - 1
    exact = VideoVAE(model, "AutoencoderKLWan", CUDA, torch.float32)
    with torch.no_grad():
        latents = exact.encode_latents(video)
        pixels = model.decode(latents / exact._inverse_std + exact._mean).sample
    vae = VideoVAE(model, "AutoencoderKLWan", CUDA, torch.bfloat16)
    vae.prepare_for_batches()
    vae.prepare_to_decode(frames)
    vae.frames_per_pass = frames
    for found, expected in (
        (vae.encode_latents(video), latents),
        (vae.decode_latents(latents), pixels),
    ):
        assert found.shape == expected.shape
        assert float((found.float() - expected).norm() / expected.norm()) < 3e-2
