import math

import pytest
import torch

from video2world_trainer.training.loss import (
    CONDITION_SIGMA,
    NoiseDistribution,
    collate_noise,
    condition_mask,
    edm_weight,
    interpolate,
    sample_noise,
    sample_sigma,
    sigma_to_time,
    training_loss,
    velocity_loss,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def test_noise_levels_have_the_quantiles_of_cosmos_predict2(generator):
    sigma = sample_sigma(400_000, 24, generator)
    body = sigma[sigma < 200]  # exp(N) * 4.9 passes 200 once in ten thousand
    share = torch.tensor([0.05, 0.5, 0.95])
    assert torch.allclose(body.quantile(share), torch.tensor([0.946, 4.90, 25.4]), rtol=0.02)
    times = sigma_to_time(body).quantile(share)
    assert torch.allclose(times, torch.tensor([0.486, 0.830, 0.962]), atol=0.004)


def test_a_twentieth_of_noise_levels_is_log_uniform(generator):
    sigma = sample_sigma(400_000, 24, generator)
    high = sigma[sigma >= 250]
    assert len(high) / len(sigma) == pytest.approx(
        0.05 * math.log(1e5 / 250) / math.log(1e5 / 200), rel=0.03
    )
    assert high.max() <= 1e5
    assert float(high.log().median()) == pytest.approx(math.log(250 * 1e5) / 2, rel=0.01)
    exactly_one = sigma_to_time(high).bfloat16() == 1.0
    assert 0.8 < exactly_one.float().mean() < 0.95  # about 85% of the whole high range


def test_noise_levels_grow_with_the_root_of_the_latent_frames(generator):
    sigma = sample_sigma(200_000, 5, generator)
    assert float(sigma[sigma < 100].median()) == pytest.approx(math.sqrt(5), rel=0.02)


def test_conditional_frames_are_clean_and_have_the_conditional_noise_level():
    seen = {}

    def net(x, timesteps, text, mask):
        seen.update(x=x, timesteps=timesteps, text=text, mask=mask)
        return torch.zeros_like(x)

    shape = (16, 3, 4, 4)
    draws = [sample_noise(shape, torch.Generator().manual_seed(seed)) for seed in range(8)]
    randomness = collate_noise(draws)
    latents, text = torch.randn(8, *shape), torch.randn(8, 6, 1024)
    training_loss(net, latents, text, randomness)
    assert torch.equal(seen["x"][:, :, 0], latents[:, :, 0])
    assert torch.allclose(seen["timesteps"][:, 0], torch.tensor(9.999e-5), rtol=1e-6)
    time = sigma_to_time(randomness.sigma)
    assert torch.equal(seen["timesteps"][:, 1:], time[:, None].expand(8, 2))
    expected = interpolate(latents, randomness.noise, time)
    assert torch.equal(seen["x"][:, :, 1:], expected[:, :, 1:])
    assert seen["mask"].shape == (8, 1, 3, 4, 4)
    assert seen["mask"][:, :, 0].eq(1).all()
    assert seen["mask"][:, :, 1:].eq(0).all()
    dropped = ~randomness.keep_text
    assert seen["text"][dropped].eq(0).all()
    assert torch.equal(seen["text"][~dropped], text[~dropped])


def test_a_fifth_of_the_captions_is_dropped():
    kept = [
        sample_noise((1, 1, 1, 1), torch.Generator().manual_seed(seed)).keep_text
        for seed in range(5000)
    ]
    assert torch.cat(kept).float().mean() == pytest.approx(0.8, abs=0.02)


def test_one_or_two_conditional_frames_are_equally_likely_and_images_have_none():
    counts = [
        int(
            sample_noise(
                (1, 3, 1, 1), torch.Generator().manual_seed(seed), NoiseDistribution((1, 2))
            ).conditional
        )
        for seed in range(1000)
    ]
    assert set(counts) == {1, 2}
    assert counts.count(1) == pytest.approx(500, abs=60)
    assert int(sample_noise((1, 1, 2, 2), torch.Generator()).conditional) == 0


def test_velocity_loss_equals_the_weighted_x0_loss(generator):
    """mean((x0 - x0_hat)^2 (1+s)^2/s^2) * 10 with Cosmos-Predict2's preconditioning."""
    shape = (4, 16, 3, 4, 4)
    clean, noise, velocity = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    sigma = torch.tensor([0.3, 1.0, 5.0, 900.0], dtype=torch.float64)
    mask = condition_mask(torch.tensor([1, 1, 2, 1]), shape).double()

    s = sigma.view(-1, 1, 1, 1, 1)
    time = s / (1 + s)
    noisy = clean + s * noise
    x0_hat = (1 - time) * noisy - time * velocity
    x0_hat = torch.where(mask.bool(), clean, x0_hat)
    upstream = ((clean - x0_hat).square() * (1 + s) ** 2 / s**2).mean() * 10

    # velocity_loss rounds the velocity to float32, as the network's output is
    ours = velocity_loss(velocity, clean, noise, mask)
    assert float(ours) == pytest.approx(float(upstream), rel=1e-6)
    # the network's input under upstream's c_in is the flow interpolant
    assert torch.allclose(noisy * (1 - time), interpolate(clean, noise, sigma_to_time(sigma)))


def test_the_edm_weight_of_the_guides_commit():
    """mean((x0 - x0_hat)^2 (s^2+1)/s^2) * 10, with x0_hat = (1 - t) x_t - t v, step by step."""
    shape = (4, 16, 3, 4, 4)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(shape, generator=generator)
    randomness = collate_noise(
        [
            sample_noise(
                shape[1:],
                torch.Generator().manual_seed(seed),
                NoiseDistribution(high_sigma_ratio=0.3),
            )
            for seed in range(4)
        ]
    )
    answer = torch.randn(shape, generator=generator)
    losses = {
        edm: float(
            training_loss(
                lambda *_: answer, latents, torch.zeros(4, 1, 8), randomness, edm=edm, scale=10.0
            )
        )
        for edm in (False, True)
    }
    s = randomness.sigma.double().view(-1, 1, 1, 1, 1)
    x = latents.double() + s * randomness.noise.double()
    x0_hat = x / (1 + s) - s / (1 + s) * answer.double()
    mask = condition_mask(randomness.conditional, shape).bool()
    square = torch.where(mask, 0.0, (latents.double() - x0_hat).square())
    for edm, weight in ((False, (1 + s) ** 2 / s**2), (True, (s**2 + 1) / s**2)):
        assert losses[edm] == pytest.approx(float((square * weight).mean() * 10), rel=1e-5)
    assert 0.5 < losses[True] / losses[False] < 0.99
    one = edm_weight(torch.tensor([1e-4, 1.0, 1e5]))
    assert one.tolist() == pytest.approx([1, 0.5, 1], rel=1e-3)


def test_settings_of_the_noise_distribution():
    def sigmas(law):
        return sample_sigma(20_000, 16, torch.Generator().manual_seed(1), law)

    assert not (sigmas(NoiseDistribution(high_sigma_ratio=0.0)) > 1e3).any()
    assert (sigmas(NoiseDistribution(high_sigma_ratio=1.0)) >= 200).all()
    plain = sigmas(NoiseDistribution(high_sigma_ratio=0.0, adjusted=False))
    assert torch.allclose(4 * plain, sigmas(NoiseDistribution(high_sigma_ratio=0.0)))
    for rate, kept in ((0.0, 200), (1.0, 0)):
        law = NoiseDistribution(text_dropout=rate)
        drawn = [
            sample_noise((1, 1, 1, 1), torch.Generator().manual_seed(n), law) for n in range(200)
        ]
        assert sum(bool(one.keep_text) for one in drawn) == kept


def test_conditional_elements_count_in_the_denominator():
    shape = (1, 16, 4, 2, 2)
    zeros = torch.zeros(shape)
    mask = condition_mask(torch.tensor([1]), shape)
    assert float(velocity_loss(torch.ones(shape), zeros, zeros, mask)) == pytest.approx(7.5)


def test_a_noise_sample_depends_on_its_generator_only():
    first, again, other = (
        sample_noise((16, 2, 4, 4), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.sigma, again.sigma)
    assert not torch.equal(first.noise, other.noise)
    assert CONDITION_SIGMA == 1e-4
