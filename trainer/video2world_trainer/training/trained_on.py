"""Which files a run was trained on: a finished run is not repeated for new data, but says so."""

from __future__ import annotations

from pathlib import Path

from video2world_common.files import read_json, write_json
from video2world_common.markers import Listings, Provenance, changes
from video2world_trainer.training.dataset import LatentDataset

__all__ = ["TrainedOn"]


class TrainedOn:
    """The record beside a run's checkpoints of the data set's files, with sizes and times."""

    def __init__(self, checkpoints: Path, dataset: LatentDataset) -> None:
        self._path = checkpoints / "trained_on.json"
        self.now = Provenance.of(
            *(dataset.folder / part for part in (dataset.part, "t5_xxl"))
        ).inputs
        try:
            self._before: Listings | None = read_json(self._path)
        except ValueError:
            self._before = None

    @property
    def recorded(self) -> Listings:
        """The files that the run was trained on, as far as that is known."""
        return self._before or self.now

    def changed(self) -> str:
        """Say what is different since; empty if nothing is."""
        return changes(self.recorded, self.now)

    def record(self) -> None:
        """Remember that the run trains on what is there now."""
        if self._before != self.now:
            write_json(self._path, self.now)
            self._before = self.now
