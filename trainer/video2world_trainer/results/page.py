"""Render a run's results as one page, ``results/<name>/index.html``, to be opened as a file.

The page loads nothing from elsewhere. Its only script is that of the replay of samples that follow
actions; without such samples there is none. Videos and pictures are named relative to the page, so
that the folder can be copied (``kubectl cp``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from video2world_common.events import say
from video2world_common.files import write_text
from video2world_trainer.results.evaluation_section import evaluation_section
from video2world_trainer.results.line_chart import line_chart
from video2world_trainer.results.rendering import render, script
from video2world_trainer.results.replay import replays
from video2world_trainer.results.run_results import GeneratedSample, RunResults, collect
from video2world_trainer.results.validation_table import (
    loss_series,
    summary,
    write_tables,
)
from video2world_trainer.results.validation_table import rows as validation_rows
from video2world_trainer.training.history import is_number

__all__ = ["render_page", "write_page"]

NAME = "index.html"
MAX_AUTOPLAY = 24  # with more samples than this, videos wait for a click
MAX_DROPPED = 20  # dropped items listed per report
SHOWN_ELSEWHERE = ("prompt", "metrics", "actions")  # facts left out of a sample's table

Rows = list[tuple[str, str, bool]]  # label, value, whether the value is a number


def write_page(results: Path, job_folder: Path) -> None:
    """Write a run's page into its results folder.

    A failure is logged and not raised: the page must not fail a run that succeeded.
    """
    try:
        collected = collect(results, job_folder)
        write_text(results / NAME, render_page(collected))
        write_tables(results, collected.validations)
        say(f"results page: {results / NAME}")
    except Exception as error:  # a full volume, or a defect here
        say(f"note: the results page {results / NAME} could not be written ({error!r})")


def render_page(results: RunResults) -> str:
    """Return the HTML of the page; every text in it is escaped."""
    shown_in_step = replays(results.samples)
    code, allowed = script("replay.js") if shown_in_step else ("", "'none'")
    page = render(
        "page.html.jinja",
        name=results.name,
        facts=_facts(results),
        charts=_training_charts(results),
        diverged_after=_diverged_after(results),
        validations=validation_rows(results.validations, results.checkpoints),
        validated=results.validations[-1] if results.validations else None,
        evaluation=evaluation_section(results.evaluation),
        groups=_sample_groups(results.samples),
        uneven=_is_uneven(results.samples),
        autoplay=len(results.samples) <= MAX_AUTOPLAY and not shown_in_step,
        replays=shown_in_step,
        script=code,
        allowed_script=allowed,
        reports=_report_tables(results.reports),
        configuration=_configuration(results),
    )
    return page.encode(errors="replace").decode()  # a lone surrogate cannot be written as UTF-8


def _facts(results: RunResults) -> list[tuple[str, str]]:
    """The headline figures: label and value."""
    facts: list[tuple[str, str]] = []
    if results.settings.get("size"):
        facts.append(("model", str(results.settings["size"])))
    if results.records:
        last = results.records[-1]
        facts.append(("iterations", f"{last['iteration']:,}"))
        if is_number(last.get("loss")):
            facts.append(("loss", f"{last['loss']:.4g}"))
        seconds = sorted(y for _, y in _series(results, "seconds_per_iteration"))
        if seconds:
            facts.append(("seconds/iteration, median", f"{seconds[len(seconds) // 2]:.3g}"))
    facts += summary(results.validations)
    if results.checkpoints:
        facts.append(("checkpoints kept", ", ".join(map(str, results.checkpoints[-5:]))))
    facts.append(("samples", str(len(results.samples))))
    return facts


def _series(results: RunResults, key: str) -> list[tuple[float, float]]:
    """(iteration, value) of the records that have a number for ``key``."""
    return [(r["iteration"], r[key]) for r in results.records if is_number(r.get(key))]


def _training_charts(results: RunResults) -> list[Markup]:
    validations = results.validations
    total, low, middle, high = (
        loss_series(validations, loss)
        for loss in (
            lambda one: one.loss,
            lambda one: one.low,
            lambda one: one.middle,
            lambda one: one.high,
        )
    )
    charts = [
        line_chart(
            _series(results, "loss"),
            title="Loss" if validations else "Training loss",
            x_label="iteration",
            y_label="mean since the last report",
            name="training",
            others={"validation": total},
        )
        # a run of few iterations reports its training loss once, but was validated
        or line_chart(
            total, title="Validation loss", x_label="iteration", y_label="", markers=True
        ),
        line_chart(
            low,
            title="Validation loss by noise level",
            x_label="iteration",
            y_label="",
            markers=True,
            name="low",
            others={"middle": middle, "high": high},
        ),
        line_chart(
            _series(results, "seconds_per_iteration"),
            title="Iteration time",
            x_label="iteration",
            y_label="seconds",
        ),
    ]
    return [chart for chart in charts if chart]


def _diverged_after(results: RunResults) -> str | None:
    after = results.records[-1].get("diverged_after") if results.records else None
    return f"{after:,}" if is_number(after) else None


def _by_name(samples: Sequence[GeneratedSample]) -> dict[str, list[GeneratedSample]]:
    groups: dict[str, list[GeneratedSample]] = {}
    for sample in samples:
        groups.setdefault(sample.name, []).append(sample)
    return groups


def _is_uneven(samples: Sequence[GeneratedSample]) -> bool:
    """Whether some samples are missing for some checkpoints."""
    return len({len(group) for group in _by_name(samples).values()}) > 1


def _sample_groups(samples: Sequence[GeneratedSample]) -> list[dict[str, Any]]:
    return [_sample_group(name, group) for name, group in _by_name(samples).items()]


def _sample_group(name: str, samples: Sequence[GeneratedSample]) -> dict[str, Any]:
    """One sample from all checkpoints, as the template's variables."""
    latest = samples[-1]
    psnr = [
        (float(sample.iteration), sample.metrics["psnr"])
        for sample in samples
        if sample.iteration is not None and "psnr" in sample.metrics
    ]
    return {
        "name": name,
        "prompts": [prompt for prompt in dict.fromkeys(s.prompt for s in samples) if prompt],
        "ground_truth": next((s.ground_truth for s in samples if s.ground_truth), None),
        "samples": samples,
        "latest": latest,
        "chart": line_chart(
            psnr, title="PSNR by checkpoint", x_label="iteration", y_label="dB", markers=True
        ),
        "settings": _rows({k: v for k, v in latest.facts.items() if k not in SHOWN_ELSEWHERE}),
    }


def _report_tables(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The counts of each report of a data stage, and the first of the items that it dropped."""
    tables = []
    for title, report in reports.items():
        counts = report.get("counts")
        if not isinstance(counts, Mapping):
            continue
        dropped = report.get("dropped")
        dropped = dropped if isinstance(dropped, list) else []
        shown = [
            (str(one.get("item")), str(one.get("reason")))
            for one in dropped[:MAX_DROPPED]
            if isinstance(one, Mapping)
        ]
        tables.append(
            {"title": title, "counts": _rows(counts), "dropped": len(dropped), "shown": shown}
        )
    return tables


def _configuration(results: RunResults) -> Rows | None:
    run = results.settings.get("run")
    if not isinstance(run, Mapping):
        return None
    rest = {k: v for k, v in results.settings.items() if k != "run"}
    return _rows(dict(run) | rest)


def _rows(values: Mapping[str, Any]) -> Rows:
    return [
        (str(key).replace("_", " "), _format(value), is_number(value))
        for key, value in values.items()
    ]


def _format(value: Any) -> str:
    """Format a value from a JSON file for a table."""
    if is_number(value):
        return f"{value:,}" if type(value) is int else f"{value:,.6g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(v, (int, float, str)) for v in value):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping) and all(isinstance(v, (int, float, str)) for v in value.values()):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return json.dumps(value, ensure_ascii=False)
