"""Summarize clips by the moments of their latents, and compare sets of clips by them.

The Fréchet distance of two Gaussians (Dowson and Landau 1982,
https://doi.org/10.1016/0047-259X(82)90077-X) is that of FID (Heusel et al. 2017,
https://arxiv.org/abs/1706.08500); here it is taken in the space of the VAE, which needs no further
weights. A vector is what the VAE says of one place at one time: its 16 channels, and how much they
have changed since the latent frame before, without which a still picture would look right. A clip
has thousands of such vectors of 32 numbers, so that few clips suffice for a full-rank covariance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Moments", "frechet_distance", "latent_moments", "pooled"]


@dataclass(frozen=True)
class Moments:
    """Number of vectors, their mean [D], and the mean [D, D] of their outer products."""

    count: int
    mean: np.ndarray
    second: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The covariance [D, D] of the vectors."""
        covariance: np.ndarray = self.second - np.outer(self.mean, self.mean)
        return covariance

    def to_json(self) -> dict[str, Any]:
        """Return the moments as JSON values: of the symmetric matrix, the upper triangle."""
        upper = self.second[np.triu_indices(len(self.mean))]
        return {"count": self.count, "mean": self.mean.tolist(), "second": upper.tolist()}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Moments:
        """Read the result of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        mean = np.asarray(value["mean"], np.float64)
        second = np.zeros((len(mean), len(mean)))
        second[np.triu_indices(len(mean))] = value["second"]
        return cls(int(value["count"]), mean, second + np.triu(second, 1).T)


def latent_moments(latents: Tensor, given: int) -> Moments:
    """Return the moments of a clip's latents [C, T, h, w] without the first ``given`` >= 1 frames.

    The vectors are a latent frame's channels and their change since the frame before: 2C numbers.
    """
    values = latents.double()
    change = values[:, given:] - values[:, given - 1 : -1]
    vectors = np.concatenate([values[:, given:].flatten(1).numpy(), change.flatten(1).numpy()])
    count = vectors.shape[1]
    return Moments(count, vectors.mean(1), vectors @ vectors.T / count)


def pooled(clips: Sequence[Moments], weights: np.ndarray | None = None) -> Moments:
    """Return the moments of all vectors of ``clips``, of which each counts ``weights`` times."""
    counts = np.array([one.count for one in clips], np.float64)
    if weights is not None:
        counts *= weights
    total = counts.sum()
    share = counts / total
    mean = share @ np.stack([one.mean for one in clips])
    second = np.tensordot(share, np.stack([one.second for one in clips]), 1)
    return Moments(int(total), mean, second)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B.

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is
    symmetric; those that rounding makes negative count as 0, so A and B may be singular.
    """
    first, other = a.covariance, b.covariance
    values, basis = np.linalg.eigh(first)
    root = basis * np.sqrt(np.clip(values, 0, None)) @ basis.T
    inner = root @ other @ root
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(first) + np.trace(other) - 2 * overlap
    return max(0.0, float(distance))
