"""Record the files that a run is trained on, to report when they have changed.

A finished run is not repeated for new data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from video2world_common.files import read_json, write_json
from video2world_common.markers import Listings, Provenance, changes
from video2world_trainer.training.dataset import LatentDataset

__all__ = ["TrainingDataRecord"]


class TrainingDataRecord:
    """Sizes and times of the data set's files, recorded alongside a run's checkpoints.

    Args:
        checkpoints: the run's checkpoints folder.
        datasets: the data sets as they are now, one for each frame size.
    """

    def __init__(self, checkpoints: Path, datasets: Sequence[LatentDataset]) -> None:
        self._path = checkpoints / "trained_on.json"
        self.now = Provenance.of(
            *(one.folder / part for one in datasets for part in one.parts)
        ).inputs
        try:
            self._before: Listings | None = read_json(self._path)
        except ValueError:
            self._before = None

    @property
    def recorded(self) -> Listings:
        """The recorded files of the run; the current ones if there is no record."""
        return self._before or self.now

    def changed(self) -> str:
        """Describe what has changed since; empty if nothing has."""
        return changes(self.recorded, self.now)

    def record(self) -> None:
        """Record the current files as those that the run is trained on."""
        if self._before != self.now:
            write_json(self._path, self.now)
            self._before = self.now
