"""Draw the chart's Grafana dashboard from a Prometheus, without Grafana.

    uv run --no-project --with matplotlib tools/draw_dashboard.py \\
        --prometheus http://127.0.0.1:9090 --minutes 30 --output docs/images/dashboard.png

Panels are placed as in the dashboard, with its titles, units and legends. Every panel is a time
series.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.dates
import matplotlib.pyplot as plt

BOARD = (
    Path(__file__).resolve().parents[1]
    / "charts/video2world-operator/files/dashboards/video2world.json"
)
COLUMNS, ROW = 24, 0.28  # Grafana's grid: columns per page, and height of a row in inches
POINTS = 240


def series(prometheus: str, expr: str, begin: float, end: float) -> list[dict[str, Any]]:
    """Query ``expr`` from ``begin`` to ``end`` (seconds since the epoch)."""
    query = {"query": expr, "start": begin, "end": end, "step": max((end - begin) / POINTS, 1)}
    address = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(address, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern).strip()


def draw(board: dict[str, Any], prometheus: str, minutes: float, output: Path) -> None:
    """Query and draw every panel of ``board`` and save the figure to ``output``."""
    end = time.time()
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    figure = plt.figure(figsize=(14, rows * ROW), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    figure.suptitle(board["title"])
    for panel in board["panels"]:
        at = panel["gridPos"]
        axes = figure.add_subplot(grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]])
        unit = panel["fieldConfig"]["defaults"]["unit"]
        axes.set_title(panel["title"] + (f" [{unit}]" if unit != "short" else ""), fontsize=9)
        for target in panel["targets"]:
            for line in series(prometheus, target["expr"], end - 60 * minutes, end):
                times = [datetime.fromtimestamp(moment, UTC) for moment, _ in line["values"]]
                values = [float(value) for _, value in line["values"]]
                label = _legend(target.get("legendFormat", ""), line["metric"])
                axes.plot(times, values, label=label, linewidth=1.2)
        if axes.lines:
            axes.legend(fontsize=6, loc="upper left")
        axes.set_xlim(*(datetime.fromtimestamp(at, UTC) for at in (end - 60 * minutes, end)))
        axes.xaxis.set_major_formatter(
            matplotlib.dates.ConciseDateFormatter(axes.xaxis.get_major_locator(), show_offset=False)
        )
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=100)


def main() -> None:
    """Draw the dashboard."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--prometheus", required=True, help="its URL")
    flags.add_argument("--minutes", type=float, default=30, help="time range up to now (30)")
    flags.add_argument("--output", type=Path, required=True)
    args = flags.parse_args()
    draw(json.loads(BOARD.read_text()), args.prometheus, args.minutes, args.output)


if __name__ == "__main__":
    main()
