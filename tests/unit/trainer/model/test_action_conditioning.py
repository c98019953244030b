"""Action embeddings against the facts of the published network, and ours per latent frame."""

import dataclasses
import math

import pytest
import torch

from small_network import network
from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.distributed.parallelize import frame_slice
from video2world_trainer.model.action_conditioning import (
    ActionConditioning,
    ActionEmbedder,
    is_action_parameter,
)
from video2world_trainer.model.dit import VideoDiT, _sinusoid
from video2world_trainer.model.lora import AdapterFacts, inject
from video2world_trainer.model.presets import preset
from video2world_trainer.model.state_dict import fitting_weights, load_dit_weights

PER_FRAME = ActionConditioning("per_frame", 3)
PER_CLIP = ActionConditioning("per_clip", 7, 12)
BOTH = pytest.mark.parametrize("actions", [PER_FRAME, PER_CLIP], ids=["per_frame", "per_clip"])


def inputs(frames=4, dimension=3, rows=12, batch=2):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(batch, 1, frames, 4, 6)
    mask[:, :, 0] = 1
    return {
        "x": torch.randn(batch, 16, frames, 4, 6, generator=generator),
        "timesteps": torch.rand(batch, frames, generator=generator),
        "text": torch.randn(batch, 5, 32, generator=generator),
        "condition_mask": mask,
        "actions": torch.randn(batch, rows, dimension, generator=generator),
    }


def run(net, **given):
    with torch.no_grad():
        return net(**given)


def fresh(actions):
    net = network(actions=actions)
    net.init_action_embedders(torch.Generator().manual_seed(0))
    return net


# --------------------------------------------------------------------- names, shapes, counts


def test_the_published_network_has_its_names_and_counts():
    with torch.device("meta"):
        base = dict(VideoDiT(preset("2B").dit).named_parameters())
        net = dict(VideoDiT(preset("2B", actions=PER_CLIP).dit).named_parameters())
    assert (len(base), sum(one.numel() for one in base.values())) == (567, 1_956_413_440)
    assert (len(net), sum(one.numel() for one in net.values())) == (575, 2_024_923_136)
    assert {name: list(net[name].shape) for name in net.keys() - base.keys()} == {
        "action_embedder_B_D.fc1.weight": [8192, 84],
        "action_embedder_B_D.fc1.bias": [8192],
        "action_embedder_B_D.fc2.weight": [2048, 8192],
        "action_embedder_B_D.fc2.bias": [2048],
        "action_embedder_B_3D.fc1.weight": [8192, 84],
        "action_embedder_B_3D.fc1.bias": [8192],
        "action_embedder_B_3D.fc2.weight": [6144, 8192],
        "action_embedder_B_3D.fc2.bias": [6144],
    }


def test_ours_has_the_shapes_of_the_published_chunk_network():
    with torch.device("meta"):
        actions = ActionConditioning("per_frame", 7)
        net = VideoDiT(preset("2B", actions=actions).dit)
    assert list(net.action_embedder_B_D.fc1.weight.shape) == [8192, 28]
    assert list(net.action_embedder_B_3D.fc2.weight.shape) == [6144, 8192]


def test_the_embedder_equals_the_golden_values():
    embedder = ActionEmbedder(6, 8, 4).double()

    def fill(parameter, k):
        numbers = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data = (0.1 * torch.sin(k * numbers)).view(parameter.shape)

    fill(embedder.fc1.weight, 0.7)
    fill(embedder.fc1.bias, 0.3)
    fill(embedder.fc2.weight, 0.5)
    fill(embedder.fc2.bias, 0.2)
    steps = torch.tensor([[[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]], dtype=torch.float64)
    conditioning = ActionConditioning("per_clip", 3, 2)
    found = embedder(conditioning.vectors(steps, slice(0, 1), 1)).flatten()
    golden = [0.012928765892, 0.021266151268, 0.024183888252, 0.074357903643]  # tanh, not erf
    torch.testing.assert_close(found, torch.tensor(golden, dtype=torch.float64), rtol=0, atol=5e-13)


# --------------------------------------------------------------------- what they add


@BOTH
def test_zero_embedders_leave_the_base_network_bit_for_bit(actions):
    given = inputs(dimension=actions.dimension)
    if not actions.uses_text:
        given["text"] = torch.zeros_like(given["text"])
    base, net = network(), network(actions=actions)
    for embedder in (net.action_embedder_B_D, net.action_embedder_B_3D):
        torch.nn.init.zeros_(embedder.fc2.weight)
        torch.nn.init.zeros_(embedder.fc2.bias)
    expected = run(base, **{key: one for key, one in given.items() if key != "actions"})
    assert torch.equal(run(net, **given), expected)


def test_training_per_frame_starts_at_the_base_network_also_in_bfloat16():
    given = {key: one.bfloat16() for key, one in inputs(dimension=3).items()}
    expected = run(network().bfloat16(), **{k: v for k, v in given.items() if k != "actions"})
    assert torch.equal(run(fresh(PER_FRAME).bfloat16(), **given), expected)


@BOTH
def test_the_order_of_actions_matters(actions):
    net, given = network(actions=actions), inputs(dimension=actions.dimension)
    reversed_rows = given | {"actions": given["actions"].flip(1)}
    assert not torch.allclose(run(net, **given), run(net, **reversed_rows))


def test_the_narrow_embedding_is_added_before_the_norm():
    net, given = network(actions=PER_CLIP), inputs(dimension=7)
    times = given["timesteps"][:, :1].expand(-1, 4)  # one sinusoid for all frames of a clip
    torch.nn.init.zeros_(net.action_embedder_B_3D.fc2.weight)
    torch.nn.init.zeros_(net.action_embedder_B_3D.fc2.bias)
    given |= {"timesteps": times, "text": torch.zeros_like(given["text"])}
    sinusoid = _sinusoid(times, 64)
    net.action_embedder_B_D.register_forward_hook(lambda *_: 3.0 * sinusoid[:, :1])
    base = run(network(), **{key: one for key, one in given.items() if key != "actions"})
    torch.testing.assert_close(run(net, **given), base, rtol=1e-4, atol=1e-4)
    net.action_embedder_B_D.register_forward_hook(lambda *_: torch.randn(2, 1, 64))
    assert not torch.allclose(run(net, **given), base, rtol=1e-2, atol=1e-2)


def test_each_row_reaches_the_latent_frame_that_it_leads_to():
    net, given = network(actions=PER_FRAME), inputs(dimension=3)
    before = net._action_embeddings(given["actions"], 4, torch.float32)
    for row in range(12):
        changed = given["actions"].clone()
        changed[:, row] += 1
        after = net._action_embeddings(changed, 4, torch.float32)
        for one, other in zip(before, after, strict=True):
            differs = (one != other).any(dim=2).any(dim=0).tolist()
            assert differs == [frame == 1 + row // 4 for frame in range(4)]


def test_no_action_leads_to_the_first_frame():
    narrow, wide = network(actions=PER_FRAME)._action_embeddings(
        inputs()["actions"], 4, torch.float32
    )
    assert narrow.shape == (2, 4, 64)
    assert wide.shape == (2, 4, 192)
    assert narrow[:, 0].eq(0).all()
    assert wide[:, 0].eq(0).all()
    assert narrow[:, 1:].ne(0).all()


@pytest.mark.parametrize("parts", [2, 3, 4])
@BOTH
def test_ranks_that_share_a_clip_have_the_embeddings_of_their_frames(actions, parts):
    net, given = network(actions=actions), inputs(dimension=actions.dimension)["actions"]
    complete = net._action_embeddings(given, 4, torch.float32)
    slices = [frame_slice(4, parts, rank) for rank in range(parts)]
    found = []
    for one in slices:
        net.first_frame, net.all_frames = one.start, 4
        found.append(net._action_embeddings(given, one.stop - one.start, torch.float32))
    for number in range(2):
        if actions.kind == "per_clip":
            assert all(torch.equal(one[number], complete[number]) for one in found)
        else:
            together = torch.cat([one[number] for one in found], dim=1)
            torch.testing.assert_close(together, complete[number], rtol=1e-5, atol=1e-6)


def test_skipped_cross_attention_equals_that_to_a_caption_of_zeros():
    net, given = network(), inputs()
    seen = []
    block = net.blocks[0]
    block.runner = lambda block, *args: seen.append(args) or block.compute(*args)
    run(net, **{k: v for k, v in given.items() if k != "actions"})
    x, embedding, shared, text, rotation = seen[0]
    with torch.no_grad():
        kept = block.compute(x, embedding, shared, torch.zeros_like(text), rotation)
        skipped = block.compute(x, embedding, shared, None, rotation)
        other = block.compute(x, embedding, shared, text, rotation)
    assert torch.equal(kept, skipped)
    assert not torch.allclose(other, skipped)


def test_per_clip_reads_no_text_so_guidance_changes_nothing():
    net, given = network(actions=PER_CLIP), inputs(dimension=7)
    other = given | {"text": torch.zeros_like(given["text"])}
    assert torch.equal(run(net, **given), run(net, **other))


@BOTH
def test_recomputing_blocks_keeps_loss_and_gradients(actions):
    given, found = inputs(dimension=actions.dimension), []
    for keep in ("all", "nothing"):
        net = network(actions=actions)
        prepare_blocks(net, keep=keep)
        net(**given).square().mean().backward()
        found.append({n: one.grad for n, one in net.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-7)
    assert found[0]["action_embedder_B_D.fc1.bias"].ne(0).any()


@pytest.mark.parametrize(
    ("config", "actions", "message"),
    [
        (PER_FRAME, None, "reads actions, and none were given"),
        (None, torch.zeros(2, 12, 3), "reads no actions, and they were given"),
        (PER_FRAME, torch.zeros(2, 11, 3), r"are \[2, 11, 3\], the network reads 12 rows of 3"),
        (PER_FRAME, torch.zeros(2, 12, 7), "12 rows of 3 numbers"),
        (PER_CLIP, torch.zeros(2, 8, 7), "12 rows of 7 numbers"),
    ],
)
def test_other_actions_than_the_networks_are_an_error(config, actions, message):
    with pytest.raises(ValueError, match=message):
        run(network(actions=config), **(inputs() | {"actions": actions}))


# --------------------------------------------------------------------- initialization


@pytest.mark.parametrize("kind", ["per_frame", "per_clip"])
def test_initial_weights_are_those_of_the_base_and_biases_are_no_norms(kind):
    actions = ActionConditioning(kind, 7, 12 if kind == "per_clip" else None)
    base, net = (
        VideoDiT(dataclasses.replace(network().config, actions=one)) for one in (None, actions)
    )
    base.init_weights(torch.Generator().manual_seed(3))
    net.init_weights(torch.Generator().manual_seed(3))
    state = dict(net.named_parameters())
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, state[name]), name
    for embedder in (net.action_embedder_B_D, net.action_embedder_B_3D):
        bound = 1 / math.sqrt(actions.inputs)
        for parameter in (embedder.fc1.weight, embedder.fc1.bias):
            assert 0.9 * bound < parameter.abs().max() <= bound
        largest = max(embedder.fc2.weight.abs().max(), embedder.fc2.bias.abs().max())
        expected = 0.0 if kind == "per_frame" else 1 / math.sqrt(256)
        assert largest.item() == pytest.approx(expected, rel=0.1)


def test_published_initial_values_perturb_the_base_as_measured():
    embedder = ActionEmbedder(84, 8192, 2048)
    embedder.init_weights(torch.Generator().manual_seed(0), zero=False)
    actions = 0.3 * torch.randn(64, 1, 84, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert embedder(actions).square().mean().sqrt() == pytest.approx(0.055, abs=0.002)
        assert embedder(torch.zeros(1, 1, 84)).square().mean().sqrt() == pytest.approx(
            0.019, abs=0.002
        )


# --------------------------------------------------------------------- files


def save(net, path, prefix="net.", **changes):
    state = {f"{prefix}{name}": one.detach() for name, one in net.named_parameters()}
    torch.save(state | changes, path)
    return path


def test_exactly_the_eight_tensors_of_a_base_file_are_missing(tmp_path):
    path = save(network(), tmp_path / "model-480p-16fps.pt")
    net = fresh(PER_CLIP)
    left = load_dit_weights(net, path, without_actions=True)
    assert len(left) == 8
    assert all(map(is_action_parameter, left))
    with pytest.raises(UserError, match="no action embedders, as base weights are: only training"):
        fitting_weights(net, path)


@pytest.mark.parametrize("lost", ["action_embedder_B_3D.fc2.bias", "blocks.0.mlp.layer1.weight"])
def test_other_missing_tensors_are_never_left_at_random(tmp_path, lost):
    state = {f"net.{name}": one for name, one in network(actions=PER_CLIP).named_parameters()}
    del state[f"net.{lost}"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=f"{lost} is missing"):
        load_dit_weights(fresh(PER_CLIP), tmp_path / "model.pt", without_actions=True)


def test_embedders_of_another_width_are_refused_with_both_sizes(tmp_path):
    path = save(network(actions=ActionConditioning("per_frame", 7)), tmp_path / "chunk.pt")
    with pytest.raises(UserError, match=r"\[256, 28\], the model has \[256, 84\].*28 numbers.*84"):
        load_dit_weights(fresh(PER_CLIP), path, without_actions=True)


def test_action_weights_do_not_load_into_a_network_without(tmp_path):
    path = save(network(actions=PER_CLIP), tmp_path / "model-480p-4fps.pt")
    with pytest.raises(UserError, match=r"is action-conditioned and this model is not"):
        load_dit_weights(network(), path)


def test_a_published_file_loads_exactly_and_has_no_average(tmp_path):
    published = network(actions=PER_CLIP)
    path = save(published, tmp_path / "model-480p-4fps.pt")
    net = VideoDiT(published.config)
    assert load_dit_weights(net, path) == []
    state = dict(published.named_parameters())
    assert all(torch.equal(one, state[name]) for name, one in net.named_parameters())
    with pytest.raises(UserError, match=r"holds no EMA weights \(keys net_ema"):
        load_dit_weights(net, path, ema=True)
    misspelt = save(published, tmp_path / "other.pt", prefix="module.")
    with pytest.raises(UserError, match="does not fit the model"):
        load_dit_weights(net, misspelt)


@pytest.mark.parametrize("targets", [("q_proj", "mlp.layer1"), ("q_proj", "fc1")])
def test_lora_trains_the_embedders_themselves(targets):
    net = network(actions=PER_FRAME)
    if "fc1" in targets:
        with pytest.raises(UserError, match="fc1 names no linear layer"):
            inject(net, targets=targets)
        return
    inject(net, rank=2, targets=targets, generator=torch.Generator().manual_seed(0))
    trained = {name for name, one in net.named_parameters() if one.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {
        name
        for name, _ in network(actions=PER_FRAME).named_parameters()
        if is_action_parameter(name)
    }
    assert all(".lora_" in name for name in trained if not is_action_parameter(name))


def test_adapters_and_embedders_load_from_one_file(tmp_path):
    net = network(actions=PER_FRAME)
    inject(net, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))
    path = save(net, tmp_path / "lora.pt")
    loaded = VideoDiT(network(actions=PER_FRAME).config)
    assert load_dit_weights(loaded, path, adapters=AdapterFacts(4.0)) == []
    weight = net.action_embedder_B_3D.fc2.weight
    assert torch.equal(loaded.action_embedder_B_3D.fc2.weight, weight)
