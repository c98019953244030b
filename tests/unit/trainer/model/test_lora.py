"""LoRA: upstream's names and counts; injecting and merging do not change the output."""

import pytest
import torch
from safetensors.torch import save_file

from video2world_common.exit_codes import UserError
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import (
    TARGETS,
    AdapterFacts,
    inject,
    merge,
    merge_state,
)
from video2world_trainer.model.presets import PRESETS, DiTConfig
from video2world_trainer.model.state_dict import fitting_weights, load_dit_weights

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


def adapted(*, trained: bool, rank: int = 4, alpha: float = 8.0) -> VideoDiT:
    net = random_net()
    inject(net, rank=rank, alpha=alpha, generator=torch.Generator().manual_seed(1))
    if trained:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=generator)
    return net


def run(net: VideoDiT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return net(
        torch.randn(1, 16, 2, 4, 6, generator=generator),
        torch.rand(1, 2, generator=generator),
        torch.randn(1, 3, 32, generator=generator),
        torch.zeros(1, 1, 2, 4, 6),
    )


@pytest.mark.parametrize(
    ("size", "trained", "tensors", "total"),
    [("2B", 22_937_600, 560, 1_956_413_440), ("14B", 71_958_528, 720, 14_265_285_632)],
)
def test_parameter_counts_at_rank_16_equal_upstreams(size, trained, tensors, total):
    with torch.device("meta"):
        net = VideoDiT(PRESETS[size].dit)
    names = inject(net)
    assert len(names) == tensors / 2 == 10 * PRESETS[size].dit.num_blocks
    counts = [one.numel() for one in net.parameters() if one.requires_grad]
    assert sum(counts) == trained
    assert sum(one.numel() for one in net.parameters()) == total + trained
    assert sum(one.requires_grad for one in net.parameters()) == tensors


def test_names_and_shapes_equal_pefts():
    plain, state = random_net().state_dict(), adapted(trained=False).state_dict()
    layer = "blocks.1.mlp.layer1"
    assert state[f"{layer}.lora_A.default.weight"].shape == (4, 64)
    assert state[f"{layer}.lora_B.default.weight"].shape == (256, 4)
    assert torch.equal(state[f"{layer}.base_layer.weight"], plain[f"{layer}.weight"])
    kept = {key.replace(".base_layer", "") for key in state if ".lora_" not in key}
    assert kept == set(plain)
    unadapted = {key for key in state if "adaln" in key or "embed" in key or "final" in key}
    assert unadapted <= set(plain)


def test_a_new_adapter_changes_nothing_and_is_reproducible():
    with torch.no_grad():
        assert torch.equal(run(adapted(trained=False)), run(random_net()))
    a, b = (adapted(trained=False).state_dict() for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    down = a["blocks.0.self_attn.q_proj.lora_A.default.weight"]
    assert 0.9 / 8 < down.abs().max() <= 1 / 8  # uniform in +-1/sqrt(64)


def test_only_adapters_have_gradients():
    net = adapted(trained=True)
    run(net).square().mean().backward()
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_merged_layers_compute_the_same_as_adapted_ones():
    net = adapted(trained=True)
    with torch.no_grad():
        before = run(net)
        state = merge_state(net.state_dict(), AdapterFacts(8.0))
        merge(net)
        torch.testing.assert_close(run(net), before, atol=2e-5, rtol=2e-5)
        assert (before - run(random_net())).abs().max() > 1e-2
    assert list(net.state_dict()) == list(random_net().state_dict())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_a_file_with_adapters_is_merged_on_loading(tmp_path):
    net = adapted(trained=True)
    path = tmp_path / "iter_000000001.pt"
    torch.save({f"net.{key}": value for key, value in net.state_dict().items()}, path)
    loaded = VideoDiT(CONFIG)
    load_dit_weights(loaded, path, adapters=AdapterFacts(8.0))
    with torch.no_grad():
        torch.testing.assert_close(run(loaded), run(net), atol=2e-5, rtol=2e-5)


def test_merge_keeps_the_dtype_and_rounds_once():
    base = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    down, up = torch.tensor([[2.0**-9, 0.5]]), torch.tensor([[1.0]])
    state = {
        "a.base_layer.weight": base,
        "a.lora_A.default.weight": down,
        "a.lora_B.default.weight": up,
    }
    merged = merge_state(state, AdapterFacts(2.0))["a.weight"]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (base.float() + 2 * down).bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("blocks.0.mlp.layer1.lora_B.default.weight"),
            r"blocks\.0\.mlp\.layer1\.lora_B\.default\.weight is missing",
        ),
        (
            lambda s: s.update({"blocks.0.mlp.layer1.lora_A.default.weight": torch.zeros(3, 64)}),
            r"adapter of blocks\.0\.mlp\.layer1 does not fit: A \[3, 64\], B \[256, 4\]",
        ),
    ],
)
def test_incomplete_adapters_are_refused_by_name(tmp_path, change, message):
    state = adapted(trained=True).state_dict()
    change(state)
    path = tmp_path / "lora.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=message):
        load_dit_weights(VideoDiT(CONFIG), path)


def test_invalid_settings_are_refused_by_name():
    with pytest.raises(UserError, match=r"lora_rank=0: this must be at least 1"):
        inject(random_net(), rank=0)
    with pytest.raises(UserError, match=r"lora_target_modules: qkv names no linear layer"):
        inject(random_net(), targets=("q_proj", "qkv"))


def with_peft(net: VideoDiT, rank: int, alpha: float) -> tuple[VideoDiT, dict[str, torch.Tensor]]:
    """A network whose layers add alpha / rank * B(A(x)), as PEFT defines it, and its file."""
    state = {f"net.{name}": value.clone() for name, value in net.state_dict().items()}
    layers = [
        (name, one)
        for name, one in net.named_modules()
        if isinstance(one, torch.nn.Linear) and f".{name}".endswith(tuple(f".{t}" for t in TARGETS))
    ]
    for number, (name, layer) in enumerate(layers):
        generator = torch.Generator().manual_seed(number)
        down = torch.randn(rank, layer.in_features, generator=generator) * 0.1
        up = torch.randn(layer.out_features, rank, generator=generator) * 0.1
        state[f"net.{name}.base_layer.weight"] = state.pop(f"net.{name}.weight")
        state[f"net.{name}.lora_A.default.weight"] = down
        state[f"net.{name}.lora_B.default.weight"] = up

        def added(module, args, output, down=down, up=up):
            return output + alpha / rank * (args[0] @ down.T @ up.T)

        layer.register_forward_hook(added)
    return net, state


@pytest.mark.parametrize(("rank", "alpha"), [(8, 32.0), (16, 16.0), (4, 1.0), (3, 8.0), (1, 16.0)])
def test_a_file_of_upstream_is_merged_with_its_own_scale(tmp_path, rank, alpha):
    reference, state = with_peft(random_net(), rank, alpha)
    path = tmp_path / "iter_000000001.pt"
    torch.save(state, path)
    loaded = VideoDiT(CONFIG)
    with pytest.raises(UserError, match=rf"adapters of rank {rank}, but not the alpha .*--lora_al"):
        load_dit_weights(loaded, path)
    load_dit_weights(loaded, path, adapters=AdapterFacts(alpha, rank, TARGETS))
    with torch.no_grad():
        wanted = run(reference)
        torch.testing.assert_close(run(loaded), wanted, atol=2e-5, rtol=2e-5)
        load_dit_weights(loaded, path, adapters=AdapterFacts(2 * alpha))
        assert (run(loaded) - wanted).abs().max() > 1e-2


def test_each_layer_is_scaled_by_its_own_rank():
    state = {}
    for name, rank in (("a", 2), ("b", 8)):
        state[f"{name}.base_layer.weight"] = torch.zeros(4, 4)
        state[f"{name}.lora_A.default.weight"] = torch.ones(rank, 4)
        state[f"{name}.lora_B.default.weight"] = torch.ones(4, rank)
    merged = merge_state(state, AdapterFacts(16.0))
    assert torch.equal(merged["a.weight"], torch.full((4, 4), 8.0 * 2))
    assert torch.equal(merged["b.weight"], torch.full((4, 4), 2.0 * 8))


@pytest.mark.parametrize(
    ("adapters", "recorded", "message"),
    [
        ((8.0, 8), (None,), r"LoRA rank 8 was requested, but the adapter of .* has rank 4"),
        ((8.0,), (16.0, 4), r"LoRA alpha 8 was requested, but its config.json records 16"),
        ((8.0, 8), (8.0, 4), r"LoRA rank 8 was requested, but its config.json records 4"),
        ((8.0, None, ("q_proj",)), (None,), r"LoRA targets q_proj: the file also adapts blocks\.0"),
        ((8.0, None, (*TARGETS, "adaln")), (None,), "LoRA target adaln: the file has no adapter"),
        ((), (), "but not the alpha that they were trained with"),
    ],
)
def test_settings_that_contradict_the_file_are_refused(tmp_path, adapters, recorded, message):
    path = tmp_path / "lora.pt"
    torch.save(adapted(trained=True).state_dict(), path)
    with pytest.raises(UserError, match=message) as error:
        load_dit_weights(
            VideoDiT(CONFIG),
            path,
            adapters=AdapterFacts(*adapters),
            recorded=AdapterFacts(*recorded),
        )
    assert str(error.value).startswith(f"{path}: ")


def test_a_plain_file_needs_no_alpha(tmp_path, capsys):
    path = tmp_path / "plain.pt"
    torch.save(random_net().state_dict(), path)
    load_dit_weights(VideoDiT(CONFIG), path)
    assert capsys.readouterr().out == ""
    load_dit_weights(VideoDiT(CONFIG), path, adapters=AdapterFacts(8.0))
    assert "LoRA adapters has no effect" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--use_lora: .*plain.pt holds no LoRA adapters"):
        fitting_weights(VideoDiT(CONFIG), path, adapted=True)
