"""The Fréchet distance against closed forms, and the bootstrap over clips."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from video2world_trainer.evaluation.bootstrap import FEWEST_CLIPS, interval
from video2world_trainer.evaluation.latent_moments import (
    Moments,
    frechet_distance,
    latent_moments,
    pooled,
)


def gaussian(mean, covariance):
    mean = np.asarray(mean, float)
    return Moments(100, mean, np.asarray(covariance, float) + np.outer(mean, mean))


def random_covariance(random, size, rank=None):
    factor = random.normal(size=(size, rank or size))
    return factor @ factor.T


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_distance_of_gaussians_with_a_common_basis_is_closed_form(seed, size):
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(size, size)))[0]
    a, b = random.uniform(0, 3, (2, size))  # standard deviations along the basis
    means = random.normal(size=(2, size))
    found = frechet_distance(
        gaussian(means[0], basis * a**2 @ basis.T), gaussian(means[1], basis * b**2 @ basis.T)
    )
    assert found == pytest.approx(np.sum((means[0] - means[1]) ** 2) + np.sum((a - b) ** 2))


@pytest.mark.parametrize("rank", [5, 2])
def test_the_distance_agrees_with_the_square_root_of_the_product(rank):
    random = np.random.default_rng(rank)
    first, other = random_covariance(random, 5), random_covariance(random, 5, rank)
    root = np.trace(sqrtm(first @ other).real)
    expected = 1.0 + np.trace(first) + np.trace(other) - 2 * root
    a, b = gaussian([0, 0, 0, 0, 0], first), gaussian([1, 0, 0, 0, 0], other)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_moments_are_of_channels_and_their_change_without_given_frames():
    latents = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    found = latent_moments(latents, 2)
    values = latents.double().numpy()
    vectors = np.concatenate([values[:, 2:], values[:, 2:] - values[:, 1:4]]).reshape(6, -1)
    assert found.count == vectors.shape[1] == 3 * 4 * 6
    np.testing.assert_allclose(found.mean, vectors.mean(1), atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(vectors, bias=True), atol=1e-12)
    read = Moments.of_json(found.to_json())
    np.testing.assert_array_equal(read.second, found.second)
    changed = latents.clone()
    changed[:, 0] += 9  # before the last given frame
    np.testing.assert_array_equal(latent_moments(changed, 2).second, found.second)


def test_a_still_clip_is_far_from_a_moving_one_of_the_same_pictures():
    moving = torch.randn(16, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    still = moving[:, :1].expand_as(moving)
    shuffled = moving[:, torch.tensor([0, 3, 1, 7, 5, 8, 2, 4, 6])]
    of = [latent_moments(one, 1) for one in (moving, still, shuffled)]
    assert frechet_distance(of[0], of[1]) > 10 * frechet_distance(of[0], of[2])


def test_pooled_moments_are_those_of_all_vectors():
    clips = [torch.randn(2, 4, 3, n) * n for n in (1, 2, 5)]
    parts = [latent_moments(clip, 1) for clip in clips]
    twice = pooled(parts, np.array([2.0, 0.0, 1.0]))
    same = pooled([parts[0], parts[0], parts[2]])
    np.testing.assert_allclose(twice.second, same.second)
    np.testing.assert_allclose(twice.mean, same.mean)
    assert (twice.count, same.count) == (2 * 9 + 45, 2 * 9 + 45)


def mean_of(values):
    return lambda counts: float(counts @ values / counts.sum())


@given(
    st.lists(st.floats(-100, 100), min_size=FEWEST_CLIPS, max_size=24),
    st.floats(-50, 50),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_an_interval_is_reproducible_within_the_values_and_moves_with_them(values, shift, seed):
    values = np.array(values)
    low, high = interval(mean_of(values), len(values), seed=seed)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9
    assert interval(mean_of(values), len(values), seed=seed) == (low, high)
    moved = interval(mean_of(values + shift), len(values), seed=seed)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-6)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        low, high = interval(mean_of(random.normal(3, 1, 16)), 16)
        covered += low <= 3 <= high
    assert 0.86 <= covered / 150 <= 0.99  # the percentile interval is a little narrow at 16


def test_too_few_clips_have_no_interval():
    assert interval(mean_of(np.ones(5)), FEWEST_CLIPS - 1) is None
