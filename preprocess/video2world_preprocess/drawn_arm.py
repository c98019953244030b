"""Draw a two-link robot arm whose joint angles are known, and move it at random.

A frame shows the pose without ambiguity: each link has its own color, and both are drawn in every
pose within the limits. The motion is smooth but random, so that a frame does not determine the
next ones: only the actions do.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["LIMITS", "ArmScene", "render", "trajectory"]

# Degrees. The shoulder is 0 when the upper link points up, and positive to the right; the elbow is
# relative to the upper link, 0 when straight. The gripper is the angle of each finger, 0 closed.
LIMITS: dict[str, tuple[float, float]] = {
    "shoulder": (-50.0, 50.0),
    "elbow": (-105.0, 105.0),
    "gripper": (0.0, 40.0),
}
HOLD = 0.15  # probability that a joint rests until its next waypoint
CHUNK = 32  # frames to draw at once, so that they stay in the cache
STEPS = (6, 14)  # frames between a joint's waypoints, more for a long way
FASTEST = 8.0  # degrees per frame between two waypoints, on average
UPPER, FORE, FINGER = 0.38, 0.27, 0.07  # lengths, in units of the picture's size
RADII = {"upper": 0.065, "fore": 0.055, "finger": 0.022, "joint": 0.035}
BASE = (0.5, 0.86)  # of width and height


@dataclass(frozen=True)
class ArmScene:
    """What differs between episodes. Colors are RGB in [0, 1], ``base`` is the shoulder (x, y).

    The picture has ``height`` x ``width`` pixels; all lengths are relative to :attr:`unit`.
    """

    height: int
    width: int
    gripper: bool
    base: tuple[float, float]
    background: tuple[float, float, float]
    upper: tuple[float, float, float]
    fore: tuple[float, float, float]

    @classmethod
    def of(
        cls, seed: int, height: int = 96, width: int = 128, *, gripper: bool = False
    ) -> ArmScene:
        """Return the scene of a seed, which depends only on the arguments."""
        random = np.random.default_rng([seed, 1])
        unit = min(height, 0.8 * width)
        shift = random.uniform(-0.015, 0.015, 2) * unit
        return cls(
            height=height,
            width=width,
            gripper=gripper,
            base=(BASE[0] * width + shift[0], BASE[1] * height + shift[1]),
            background=colorsys.hsv_to_rgb(
                random.uniform(0.08, 0.16), 0.12, random.uniform(0.75, 0.9)
            ),
            upper=colorsys.hsv_to_rgb(
                random.uniform(0.99, 1.03) % 1, 0.9, random.uniform(0.75, 0.9)
            ),
            fore=colorsys.hsv_to_rgb(random.uniform(0.58, 0.64), 0.9, random.uniform(0.75, 0.9)),
        )

    @property
    def joints(self) -> tuple[str, ...]:
        """The names of the joints."""
        return ("shoulder", "elbow", "gripper") if self.gripper else ("shoulder", "elbow")

    @property
    def unit(self) -> float:
        """The number of pixels of length 1."""
        return min(self.height, 0.8 * self.width)


def trajectory(
    seed: int, frames: int, joints: tuple[str, ...] = ("shoulder", "elbow")
) -> np.ndarray:
    """Return joint angles in degrees [frames, J]: smooth, within the limits, and random.

    Each joint moves from waypoint to waypoint, independently of the others. The first frame is at
    any point of a motion.
    """
    columns = []
    for number, name in enumerate(joints):
        random = np.random.default_rng([seed, 2, number])  # more frames or joints change no others
        low, high = LIMITS[name]
        skipped = int(random.integers(STEPS[1]))
        points, times = [random.uniform(low, high)], [0]
        while times[-1] < frames + skipped:
            rests = random.uniform() < HOLD
            points.append(points[-1] if rests else random.uniform(low, high))
            least = int(np.ceil(abs(points[-1] - points[-2]) / FASTEST))
            times.append(times[-1] + max(int(random.integers(STEPS[0], STEPS[1] + 1)), least))
        parts = []
        for (start, stop), (begin, end) in zip(pairwise(times), pairwise(points), strict=True):
            share = np.arange(stop - start) / (stop - start)
            parts.append(begin + (end - begin) * (0.5 - 0.5 * np.cos(np.pi * share)))
        columns.append(np.concatenate(parts)[skipped : skipped + frames])
    return np.stack(columns, axis=-1)


def render(scene: ArmScene, joints: np.ndarray) -> np.ndarray:
    """Return the frames of joint angles in degrees [T, J], uint8 RGB [T, H, W, 3].

    Raises:
        ValueError: ``joints`` has another number of columns than the scene has joints.
    """
    angles = np.asarray(joints, dtype=np.float64)
    if angles.ndim != 2 or angles.shape[1] != len(scene.joints):
        raise ValueError(f"joints [T, {len(scene.joints)}] are expected, got {angles.shape}")
    frames = np.empty((len(angles), scene.height, scene.width, 3), np.uint8)
    for start in range(0, len(angles), CHUNK):
        frames[start : start + CHUNK] = _rendered(scene, angles[start : start + CHUNK])
    return frames


def _rendered(scene: ArmScene, angles: np.ndarray) -> np.ndarray:
    unit = scene.unit
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    shade = (1.04 - 0.08 * y / scene.height)[..., None]
    image = np.empty((len(angles), scene.height, scene.width, 3), np.float32)
    image[:] = np.asarray(scene.background, np.float32) * shade
    shoulder, whole = np.radians(angles[:, 0]), np.radians(angles[:, 0] + angles[:, 1])
    base = np.broadcast_to(np.asarray(scene.base), (len(angles), 2))
    elbow = base + UPPER * unit * _direction(shoulder)
    tip = elbow + FORE * unit * _direction(whole)
    dark = (0.12, 0.12, 0.14)
    foot = base + np.array([0.0, unit])  # below the picture
    _paint(image, x, y, base, foot, 1.5 * RADII["upper"] * unit, (0.45, 0.45, 0.47))
    _paint(image, x, y, base, elbow, RADII["upper"] * unit, scene.upper)
    if scene.gripper:
        opening = np.radians(angles[:, 2])
        for side in (-1, 1):
            root = tip + side * 0.5 * RADII["fore"] * unit * _direction(whole + np.pi / 2)
            end = root + FINGER * unit * _direction(whole + side * opening)
            _paint(image, x, y, root, end, RADII["finger"] * unit, (0.1, 0.6, 0.2))
    _paint(image, x, y, elbow, tip, RADII["fore"] * unit, scene.fore)
    for joint in (base, elbow):
        _paint(image, x, y, joint, joint, RADII["joint"] * unit, dark)
    rounded: np.ndarray = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return rounded


def _direction(angle: np.ndarray) -> np.ndarray:
    """Return the unit vector [T, 2] of an angle from upwards, clockwise, in pixels (x, y)."""
    return np.stack([np.sin(angle), -np.cos(angle)], axis=-1)


def _paint(
    image: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    radius: float,
    color: tuple[float, float, float],
) -> None:
    """Paint the segments ``start``-``end`` [T, 2] with soft edges, within their bounding box."""
    reach = radius + 1
    low = np.floor(np.minimum(start, end).min(0) - reach).astype(int)
    high = np.ceil(np.maximum(start, end).max(0) + reach).astype(int) + 1
    rows = slice(max(low[1], 0), max(high[1], 0))
    columns = slice(max(low[0], 0), max(high[0], 0))
    part = image[:, rows, columns]
    along = (end - start)[:, :, None, None].astype(np.float32)
    left = x[rows, columns] - start[:, 0, None, None].astype(np.float32)
    top = y[rows, columns] - start[:, 1, None, None].astype(np.float32)
    squared = np.maximum(along[:, 0] ** 2 + along[:, 1] ** 2, 1e-6)
    share = np.clip((left * along[:, 0] + top * along[:, 1]) / squared, 0, 1)
    distance = np.hypot(left - share * along[:, 0], top - share * along[:, 1])
    cover = np.clip(np.float32(radius) - distance + 0.5, 0, 1)[..., None]
    part += cover * (np.asarray(color, np.float32) - part)
