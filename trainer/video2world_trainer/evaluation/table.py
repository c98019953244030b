"""Put the figures of all clips and models into one table, with intervals and an answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from video2world_trainer.evaluation.bootstrap import FEWEST_CLIPS, interval
from video2world_trainer.evaluation.clip_meter import CEILING, FLOOR
from video2world_trainer.evaluation.latent_moments import Moments, frechet_distance, pooled

__all__ = ["BASE", "METRICS", "ClipFigures", "Metric", "Model", "answer", "summarize"]

BASE = "base"
IDENTICAL_DB = 100.0  # counted as the PSNR of equal videos, which is infinite


@dataclass(frozen=True)
class Metric:
    """A metric: how it is shown, and whether more of it is better."""

    label: str
    unit: str = ""
    digits: int = 4
    more_is_better: bool = False

    def text(self, value: float, *, sign: bool = False) -> str:
        """Format a value with its unit."""
        shown = f"{value:{'+' if sign else ''}.{self.digits}f}"
        return f"{shown} {self.unit}".rstrip()


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR", "dB", 2, more_is_better=True),
    "ssim": Metric("SSIM", more_is_better=True),
    "lpips": Metric("LPIPS"),
    "latent_l2": Metric("latent L2"),
    "latent_frechet": Metric("latent Fréchet distance", digits=3),
}


@dataclass(frozen=True)
class ClipFigures:
    """A clip by one model, by the floor or by the ceiling: its metrics, and those of its latents.

    ``values`` has no entry for a metric that could not be computed.
    """

    values: Mapping[str, float]
    moments: Moments

    @classmethod
    def of_json(cls, metrics: Mapping[str, Any]) -> ClipFigures:
        """Read the metrics of a sample's ``.json``, or of a reference.

        Raises:
            KeyError, TypeError, ValueError: latent metrics are missing.
        """
        values = {name: metrics.get(name) for name in ("psnr", "ssim", "lpips", "latent_l2")}
        if values["psnr"] is None:
            values["psnr"] = IDENTICAL_DB
        known = {name: float(value) for name, value in values.items() if value is not None}
        return cls(known, Moments.of_json(metrics["latent_moments"]))


_NAMES = {"floor": "last given frame repeated", BASE: "base weights", "ceiling": "VAE round trip"}


@dataclass(frozen=True)
class Model:
    """Rows of the table: ``clips`` are its figures in the order of the clips."""

    label: str
    clips: Sequence[ClipFigures]
    iteration: int | None = None
    path: str = ""

    @property
    def name(self) -> str:
        """Name in tables and sentences."""
        if self.iteration is not None:
            return f"iteration {self.iteration}"
        return _NAMES.get(self.label, self.label)


def summarize(
    models: Sequence[Model],
    limits: Mapping[str, Sequence[ClipFigures]],
    truth: Sequence[Moments],
    metrics: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the rows of the table: floor, models in order, ceiling.

    Each has ``model``, ``name``, ``iteration``, ``path`` and, by metric, ``value`` with ``low`` and
    ``high`` (None with too few clips). A checkpoint's metrics also have ``difference`` from base,
    an interval of the paired difference.

    Args:
        models: base first.
        limits: the figures of :data:`FLOOR` and :data:`CEILING`.
        truth: moments of the ground truth, by clip.
        metrics: keys of :data:`METRICS` to show, of which every clip has a value.
    """
    floor = Model("floor", limits[FLOOR])
    ceiling = Model("ceiling", limits[CEILING])
    base = _statistics(models[0], truth, metrics)
    rows = []
    for model in (floor, *models, ceiling):
        own = _statistics(model, truth, metrics)
        row: dict[str, Any] = {
            "model": model.label,
            "name": model.name,
            "iteration": model.iteration,
            "path": model.path,
            "metrics": {name: _estimate(own[name], len(truth)) for name in metrics},
        }
        if model in models[1:]:
            for name in metrics:
                difference = _minus(own[name], base[name])
                row["metrics"][name]["difference"] = _estimate(difference, len(truth))
        rows.append(row)
    return rows


Statistic = Callable[[np.ndarray], float]


def _statistics(
    model: Model, truth: Sequence[Moments], metrics: Sequence[str]
) -> dict[str, Statistic]:
    """Return, by metric, its value for how often each clip counts."""
    found: dict[str, Statistic] = {}
    for name in metrics:
        if name == "latent_frechet":
            moments = [clip.moments for clip in model.clips]
            found[name] = functools.partial(_frechet, moments, truth)
        else:
            values = np.array([clip.values[name] for clip in model.clips])
            found[name] = functools.partial(_mean, values)
    return found


def _mean(values: np.ndarray, counts: np.ndarray) -> float:
    return float(counts @ values / counts.sum())


def _frechet(clips: Sequence[Moments], truth: Sequence[Moments], counts: np.ndarray) -> float:
    return frechet_distance(pooled(clips, counts), pooled(truth, counts))


def _minus(a: Statistic, b: Statistic) -> Statistic:
    return lambda counts: a(counts) - b(counts)


def _estimate(statistic: Statistic, clips: int) -> dict[str, float | None]:
    low, high = interval(statistic, clips) or (None, None)
    return {"value": statistic(np.ones(clips)), "low": low, "high": high}


def answer(rows: Sequence[Mapping[str, Any]], metric: str, clips: int) -> dict[str, Any]:
    """Say whether post-training helped, by one metric of the last checkpoint in the table.

    Returns:
        ``verdict`` (Better, Worse, or Unclear if the interval of the difference includes 0 or there
        are too few clips for one), ``text``, ``metric``, ``clips``, ``checkpoint``, ``iteration``,
        and the values ``base``, ``value``, ``difference``, ``low`` and ``high``.
    """
    kind = METRICS[metric]
    base = next(row for row in rows if row["model"] == BASE)["metrics"][metric]["value"]
    row = [row for row in rows if "difference" in row["metrics"][metric]][-1]
    value, difference = row["metrics"][metric]["value"], row["metrics"][metric]["difference"]
    low, high = difference["low"], difference["high"]
    better = (difference["value"] > 0) == kind.more_is_better
    clear = low is not None and (low > 0 or high < 0)
    verdict = ("Better" if better else "Worse") if clear else "Unclear"
    opening = {
        "Better": "Post-training helped",
        "Worse": "Post-training made it worse",
        "Unclear": "No clear difference",
    }[verdict]
    counted = f"{clips} held-out clip{'s' if clips > 1 else ''}"
    trust = f"too few for an interval, which takes {FEWEST_CLIPS}"
    if low is not None:
        trust = f"95 % interval {kind.text(low, sign=True)} to {kind.text(high, sign=True)}"
    text = (
        f"{opening}: {kind.label} {kind.text(base)} (base weights) to {kind.text(value)} "
        f"({row['name']}), {kind.text(difference['value'], sign=True)} on {counted} ({trust})."
    )
    return {
        "verdict": verdict,
        "text": text,
        "metric": metric,
        "clips": clips,
        "checkpoint": row["model"],
        "iteration": row["iteration"],
        "base": base,
        "value": value,
        "difference": difference["value"],
        "low": low,
        "high": high,
    }
