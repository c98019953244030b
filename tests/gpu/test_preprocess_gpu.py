"""On a GPU: what the preparing stages compute there in another way than the libraries do."""

import pytest
import torch
from torch import nn

from video2world_preprocess.text import _FeedForward
from video2world_preprocess.vae import VideoVAE

CUDA = torch.device("cuda")


@pytest.mark.parametrize("rows", [1, 97, 4096])
def test_relu_within_the_product_is_relu_after_it(rows):
    torch.manual_seed(0)
    wide, narrow = (nn.Linear(*size, bias=False, device=CUDA, dtype=torch.bfloat16)
                    for size in ((1024, 65536), (65536, 1024)))  # fmt: skip
    hidden = torch.randn(1, rows, 1024, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        found = _FeedForward(wide, narrow)(hidden).double()
        exact = torch.relu(hidden.double() @ wide.weight.double().t())
        exact = exact @ narrow.weight.double().t()
        plain = narrow(torch.relu(wide(hidden))).double()
    error, library = ((one - exact).norm() / exact.norm() for one in (found, plain))
    assert library < 1e-2
    assert error < 1.1 * library


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
