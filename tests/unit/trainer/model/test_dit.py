"""The DiT against diffusers' CosmosTransformer3DModel and the published checkpoints' shapes."""

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import PRESETS, DiTConfig
from video2world_trainer.model.state_dict import to_diffusers

LATENTS = (2, 16, 3, 8, 12)  # batch, channels, frames, height, width


def small(**changes) -> DiTConfig:
    settings = {
        "model_channels": 64,
        "num_blocks": 2,
        "num_heads": 2,
        "adaln_lora_dim": 16,
        "crossattn_dim": 32,
        "max_height": 16,
        "max_width": 16,
        "max_frames": 8,
    } | changes
    return DiTConfig(**settings)


def random_net(config: DiTConfig, **options) -> VideoDiT:
    net = VideoDiT(config, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():  # not init_weights: its zeros would hide mistakes
            parameter.normal_(std=0.1, generator=generator)
    return net


def inputs(config: DiTConfig):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(LATENTS[0], 1, *LATENTS[2:])
    mask[:, :, 0] = 1
    return {
        "x": torch.randn(LATENTS, generator=generator),
        "timesteps": torch.rand(LATENTS[0], LATENTS[2], generator=generator),
        "text": torch.randn(LATENTS[0], 5, config.crossattn_dim, generator=generator),
        "condition_mask": mask,
    }


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(rope_ratio_t=20 / 24, rope_ratio_h=2.0, rope_ratio_w=2.0),
        small(model_channels=256),  # head_dim 128, like the published sizes
        small(num_blocks=1, num_heads=4, model_channels=128),
    ],
)
def test_equals_diffusers_in_float32(config):
    net = random_net(config, exact_rope=True)
    peer = CosmosTransformer3DModel(
        in_channels=17,
        out_channels=16,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_blocks,
        mlp_ratio=4.0,
        text_embed_dim=config.crossattn_dim,
        adaln_lora_dim=config.adaln_lora_dim,
        max_size=(config.max_frames, config.max_height, config.max_width),
        patch_size=(1, 2, 2),
        rope_scale=(config.rope_ratio_t, config.rope_ratio_h, config.rope_ratio_w),
        concat_padding_mask=True,
        extra_pos_embed_type=None,
    )
    peer.load_state_dict(to_diffusers(net.state_dict()), strict=True)
    given = inputs(config)
    with torch.no_grad():
        ours = net(**given)
        theirs = peer(
            torch.cat([given["x"], given["condition_mask"]], dim=1),
            given["timesteps"][:, None, :, None, None],
            given["text"],
            padding_mask=torch.zeros(1, 1, LATENTS[3] * 8, LATENTS[4] * 8),
            return_dict=False,
        )[0]
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("size", "parameters", "tensors", "entries"),
    [("2B", 1_956_413_440, 567, 574), ("14B", 14_265_285_632, 727, 734)],
)
def test_counts_of_the_published_checkpoints(size, parameters, tensors, entries):
    with torch.device("meta"):
        net = VideoDiT(PRESETS[size].dit)
    assert sum(one.numel() for one in net.parameters()) == parameters
    assert len(list(net.parameters())) == tensors
    assert len(net.state_dict()) == entries
    assert net.pos_embedder.seq.shape == (128,)
    assert net.pos_embedder.dim_spatial_range.shape == (21,)
    assert net.pos_embedder.dim_temporal_range.shape == (22,)


def test_shapes_of_the_2b_checkpoint():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in VideoDiT(PRESETS["2B"].dit).state_dict().items()}
    assert shapes["x_embedder.proj.1.weight"] == (2048, 72)
    assert shapes["t_embedder.1.linear_2.weight"] == (6144, 2048)
    assert shapes["blocks.27.cross_attn.k_proj.weight"] == (2048, 1024)
    assert shapes["blocks.0.self_attn.q_norm.weight"] == (128,)
    assert shapes["blocks.0.mlp.layer2.weight"] == (2048, 8192)
    assert shapes["blocks.0.adaln_modulation_mlp.2.weight"] == (6144, 256)
    assert shapes["final_layer.linear.weight"] == (64, 2048)
    assert shapes["final_layer.adaln_modulation.2.weight"] == (4096, 256)


def test_recomputation_does_not_change_gradients():
    config = small()
    gradients = []
    for recompute in (False, True):
        net = random_net(config)
        prepare_blocks(net, keep="nothing" if recompute else "all")
        net(**inputs(config)).square().mean().backward()
        gradients.append([one.grad for one in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(one.abs().sum() > 0 for one in gradients[0])


def test_a_fresh_network_starts_at_zero_modulation_and_from_its_seed():
    nets = [VideoDiT(small()) for _ in range(2)]
    for net in nets:
        net.init_weights(torch.Generator().manual_seed(7))
    a, b = (net.state_dict() for net in nets)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["blocks.0.adaln_modulation_mlp.2.weight"].abs().sum() == 0
    assert a["t_embedding_norm.weight"].eq(1).all()
    assert a["x_embedder.proj.1.weight"].std() == pytest.approx(72**-0.5, rel=0.05)


def test_rope_of_the_published_models():
    with torch.device("meta"):
        rope = VideoDiT(PRESETS["2B"].dit).pos_embedder
    # ratio ** (d / (d - 2)): 3.0 -> 3.1694 over 42 channels, 1.0 stays
    assert rope.thetas == pytest.approx((10_000, 31_694, 31_694), rel=1e-4)
    exact = VideoDiT(small(model_channels=256), exact_rope=True).pos_embedder
    rounded = VideoDiT(small(model_channels=256)).pos_embedder
    angles, coarse = exact(8, 8, 8), rounded(8, 8, 8)
    assert angles.shape == (512, 64)
    assert torch.equal(angles[:, 0], torch.arange(8).repeat_interleave(64).float())
    assert 0 < (angles - coarse).abs().max() < 0.2  # the bfloat16 frequencies upstream trains with
