"""Write a run's validation losses as CSV and JSON, and format them for the results page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from video2world_common.files import write_json, write_text
from video2world_trainer.checkpoint.validation_record import ValidationResult, best_result

__all__ = ["loss_series", "rows", "summary", "write_tables"]

COLUMNS = ("iteration", "loss", "low", "middle", "high", "clips", "levels", "weights", "draws")


def write_tables(folder: Path, results: Sequence[ValidationResult]) -> None:
    """Write ``validation.csv`` and ``validation.json`` into ``folder``; nothing without results."""
    if not results:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.plain() for one in results)
    write_text(folder / "validation.csv", text.getvalue())
    best = best_result(results)
    write_json(
        folder / "validation.json",
        {
            "best_iteration": best.iteration if best else None,
            "results": [one.plain() for one in results],
        },
    )


def loss_series(
    results: Sequence[ValidationResult], loss: Callable[[ValidationResult], float | None]
) -> list[tuple[float, float]]:
    """Return (iteration, loss) of the results that have it."""
    return [(one.iteration, value) for one in results if (value := loss(one)) is not None]


def summary(results: Sequence[ValidationResult]) -> list[tuple[str, str]]:
    """Return the headline figures: label and value."""
    best = best_result(results)
    if best is None or best.loss is None:
        return []
    newest, first = results[-1], results[0]
    facts = [("validation loss, best", f"{best.loss:.4g} at {best.iteration:,}")]
    if newest.loss is not None:
        facts.insert(0, ("validation loss", f"{newest.loss:.4g}"))
    if first.iteration == 0 and first.loss:
        change = 100 * (best.loss / first.loss - 1)
        facts.append(("best against base weights", f"{change:+.1f} %"))
    return facts


def rows(results: Sequence[ValidationResult], kept: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows of the page's table.

    Args:
        results: comparable results, oldest first.
        kept: iterations whose checkpoints are on the volume.
    """

    def shown(loss: float | None) -> str:
        return "not finite" if loss is None else f"{loss:.4f}"

    best = best_result(results)
    return [
        {
            "iteration": f"{one.iteration:,}",
            "losses": [shown(loss) for loss in (one.loss, one.low, one.middle, one.high)],
            "kept": one.iteration in kept,
            "best": best is not None and one.iteration == best.iteration,
        }
        for one in results
    ]
