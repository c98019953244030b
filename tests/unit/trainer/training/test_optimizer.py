import pytest
import torch
from torch import nn

from video2world_common.model_sizes import SIZES
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.config_parser import read_config
from video2world_trainer.training.ema import Ema, ema_exponent
from video2world_trainer.training.lr_schedule import LinearSchedule
from video2world_trainer.training.optimizer import MasterAdamW


def schedule(size):
    p, shared = PRESETS[size], SIZES[size]
    return shared.learning_rate, LinearSchedule(
        shared.warmup_iterations, p.cycle_length, p.f_max, p.f_min, p.f_start
    )


@pytest.mark.parametrize(
    ("size", "step", "rate"),
    [
        ("2B", 500, 5.34e-6),
        ("2B", 2000, 2.136e-5),
        ("2B", 10_000, 2.093e-5),
        ("2B", 100_000, 1.610e-5),
        ("14B", 500, 1.079e-6),
        ("14B", 2000, 4.316e-6),
        ("14B", 10_000, 3.597e-6),
        ("14B", 50_000, 0.0),
    ],
)
def test_learning_rates_equal_those_of_cosmos_predict2(size, step, rate):
    base, law = schedule(size)
    assert base * law.factor(step) == pytest.approx(rate, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("size", "floor", "step", "rate"),
    [
        ("2b", 0.4, 2000, 2**-15.5 * 0.99),
        ("2b", 0.4, 400_000, 2**-15.5 * 0.4),
        ("2b", 0.4, 201_000, 2**-15.5 * 0.695),
        ("14b", 0.1, 50_000, 2**-15.5 * 0.1),
        ("14b", 0.1, 26_000, 2**-15.5 * 0.15),
    ],
)
def test_the_schedule_of_the_guides_commit_by_override(size, floor, step, rate):
    name = f"experiment={size}_agibot_head_center_fisheye_color"
    config = read_config([name, f"scheduler.f_min=[{floor}]"])
    law = LinearSchedule(
        config.warm_up_steps, config.cycle_length, config.f_max, config.f_min, config.f_start
    )
    assert config.learning_rate * law.factor(step) == pytest.approx(rate, rel=1e-6)


def test_the_floor_holds_after_the_cycle():
    """Cosmos-Predict2 raises TypeError at iteration 50,001 of the 14B experiment's 100,000."""
    assert schedule("14B")[1].factor(50_001) == 0.0
    assert LinearSchedule(10, 100, 1.0, 0.4).factor(10**6) == 0.4
    assert LinearSchedule(0, 100, 1.0, 0.0).factor(0) == 1.0


def kept_by_ema(step: int) -> float:
    """Return the weight of the old average in the update after the 0-based ``step``."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    ema = Ema(net.named_parameters())
    nn.init.zeros_(net.weight)
    ema.update(step)
    return ema.average["weight"].item()


def test_ema_exponent_and_weights():
    assert ema_exponent() == pytest.approx(6.93720, abs=1e-5)
    betas = [kept_by_ema(step) for step in (0, 10, 100, 1000, 10_000)]
    assert betas == pytest.approx([0, 0.469, 0.924, 0.9921, 0.99921], abs=5e-4)


def test_ema_averages_in_float32():
    net = nn.Linear(3, 2).bfloat16()
    ema = Ema(net.named_parameters())
    expected = net.weight.detach().float()
    for step in range(4):
        with torch.no_grad():
            net.weight += 0.5
        ema.update(step)
        beta = (1 - 1 / (step + 1)) ** (ema_exponent() + 1)
        expected = beta * expected + (1 - beta) * net.weight.detach().float()
    assert ema.average["weight"].dtype == torch.float32
    assert torch.allclose(ema.average["weight"], expected)


def train(net, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 3, generator=generator).to(next(net.parameters()).dtype)
        net(x).float().square().mean().backward()
        optimizer.step(1e-3)


def test_a_step_equals_adamw_by_hand_with_decay_on_norms_too():
    net = nn.LayerNorm(2)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=0.1)
    net.weight.grad, net.bias.grad = torch.tensor([2.0, -3.0]), torch.zeros(2)
    optimizer.step(0.01)
    # the first step's update is the gradient's sign; decay comes on top: 1 - 0.01 * 0.1 -/+ 0.01
    assert torch.allclose(net.weight, torch.tensor([0.989, 1.009]))
    assert net.bias.eq(0).all()


def test_small_steps_are_not_lost_in_bfloat16():
    net = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        net.weight.fill_(1.0)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=0.0)
    for _ in range(100):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step(1e-4)  # a bfloat16 at 1.0 moves in steps of 0.004
    assert float(optimizer.masters["weight"]) == pytest.approx(0.99, abs=1e-5)
    assert net.weight.item() == pytest.approx(0.99, abs=4e-3)
    assert net.weight.item() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_restored_bit_for_bit(dtype):
    torch.manual_seed(0)
    one, two = nn.Linear(3, 5).to(dtype), nn.Linear(3, 5).to(dtype)
    first = MasterAdamW(one.named_parameters(), weight_decay=0.1)
    train(one, first, 5)
    second = MasterAdamW(two.named_parameters(), weight_decay=0.1)
    for name, tensor in second.state().items():
        tensor.copy_(first.state()[name])
    second.restored()
    assert torch.equal(one.weight, two.weight)
    train(one, first, 5, seed=1)
    train(two, second, 5, seed=1)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(first.masters["bias"], second.masters["bias"])


def test_a_skipped_step_changes_nothing_and_a_divisor_clips():
    torch.manual_seed(0)
    net = nn.Linear(3, 5).bfloat16()
    optimizer, ema = MasterAdamW(net.named_parameters(), weight_decay=0.1), None
    train(net, optimizer, 2)
    ema = Ema(net.named_parameters())
    ema.update(3)
    before = {name: one.clone() for name, one in (optimizer.state() | ema.state()).items()}
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step(1e-3, skip=torch.ones(()))
    ema.update(torch.tensor(-1.0, dtype=torch.float64))
    for name, one in (optimizer.state() | ema.state()).items():
        assert torch.equal(one, before[name]), name

    one, two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    steps = [MasterAdamW(net.named_parameters(), weight_decay=0.0) for net in (one, two)]
    one.weight.grad, two.weight.grad = torch.tensor([[8.0]]), torch.tensor([[2.0]])
    steps[0].step(1e-3, divisor=torch.tensor(4.0))
    steps[1].step(1e-3)
    assert torch.equal(steps[0].state()["exp_avg.weight"], steps[1].state()["exp_avg.weight"])


def test_frozen_parameters_do_not_change():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=0.5)
    assert list(optimizer.parameters) == ["weight"]
    assert list(Ema(net.named_parameters()).average) == ["weight"]
