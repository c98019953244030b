"""A run's results on one page: ``results/<name>/index.html``, to be opened as a file.

It shows what lies on the volume: curves of training, samples by checkpoint beside the truth, what
the data stages did, settings. There is no script in it and nothing from elsewhere; videos and
pictures are named relative to the page, so that the folder can be copied (``kubectl cp``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.files import cut_name, read_json, write_text
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.generation.conditioning import read_condition
from video2world_trainer.results.line_chart import curve
from video2world_trainer.training.history import is_number, read_records

__all__ = ["Results", "Sample", "collect", "page", "write_page"]

NAME = "index.html"
TRUTH = "ground-truth"  # folder of the truth's videos, beside the samples
REPORTS = {  # file in the data set's folder: what it is about
    "report.json": "Videos",
    "report-embeddings.json": "Embeddings",
    "report-latents.json": "Latents",
}
PLAYING = 24  # samples at most that play by themselves: more would be a burden
DROPPED = 20  # of what a stage left out, shown
METRICS = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}"}
SHOWN_APART = ("prompt", "metrics", "psnr", "psnr_frames", "psnr_of_repeating_the_input")

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee3;
  --paper: #fff; --card: #f5f7f9; --accent: #0b62c4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #343b43;
  --paper: #14181c; --card: #1d2329; --accent: #6cb2ff } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 78rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem;
  border-bottom: 1px solid var(--line); padding-bottom: .3rem } h3 { font-size: 1rem; margin: 0 }
p { margin: .3rem 0 } .warning { border-left: 4px solid #c62828; padding: .4rem .8rem;
  background: var(--card) } a { color: var(--accent) } small, .soft { color: var(--soft) }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0 0; padding: 0 }
.facts div { background: var(--card); border-radius: 8px; padding: .5rem .9rem; min-width: 8rem }
.facts dt { color: var(--soft); font-size: .8rem }
.facts dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem }
figure { margin: 0 } .curve figcaption { font-weight: 600 } .curve small { font-weight: 400 }
svg { width: 100%; height: auto; display: block }
svg line { stroke: var(--line) } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 1.8 }
svg circle { fill: var(--accent) }
.sample { background: var(--card); border-radius: 10px; padding: 1rem; margin: 0 0 1.2rem }
.prompt { overflow-wrap: anywhere; white-space: pre-wrap; max-height: 9em; overflow-y: auto }
.row { display: grid; gap: 1rem; padding: .6rem 0 .2rem;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)) }
.sample .curve { max-width: 34rem; margin: .8rem 0 } figcaption { font-size: .9rem }
video { width: 100%; border-radius: 6px; background: #000; display: block }
details { margin: .5rem 0 0 } summary { cursor: pointer; color: var(--accent) }
details img { max-width: 100%; border-radius: 6px; margin: .4rem 0 1rem; display: block }
table { border-collapse: collapse; font-size: .92rem }
th, td { text-align: left; vertical-align: top; padding: .12rem 1.2rem .12rem 0;
  overflow-wrap: anywhere } th { font-weight: 400; color: var(--soft); white-space: nowrap }
.tables td { text-align: right; font-variant-numeric: tabular-nums }
.tables { display: flex; flex-wrap: wrap; gap: 1.5rem 3.5rem }
"""


@dataclass(frozen=True)
class Sample:
    """A whole sample: its video (a path relative to the page's folder) and what its .json says."""

    video: str
    facts: Mapping[str, Any]
    sheet: str | None = None  # contact sheet
    truth: str | None = None  # the input's own continuation

    @property
    def name(self) -> str:
        """The same for all checkpoints."""
        return self.video.rpartition("/")[2].removesuffix(".mp4")

    @property
    def checkpoint(self) -> str:
        """What made it, for people."""
        path = Path(str(self.facts.get("checkpoint") or "?"))
        iteration = self.iteration
        shown = path.stem if iteration is None else f"iteration {iteration}"
        return f"{shown} (EMA)" if self.facts.get("ema") is True else shown

    @property
    def iteration(self) -> int | None:
        """Of its checkpoint, where that has one."""
        value = self.facts.get("iteration")
        if value is None:  # written before this key was
            stem = Path(str(self.facts.get("checkpoint") or "")).stem
            digits = stem.removeprefix("iter_")
            value = int(digits) if digits.isascii() and digits.isdigit() else None
        return value if type(value) is int else None

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers against the truth, by name."""
        facts = self.facts.get("metrics")
        facts = facts if isinstance(facts, Mapping) else self.facts
        return {name: facts[name] for name in METRICS if is_number(facts.get(name))}


@dataclass(frozen=True)
class Results:
    """All that the page shows."""

    name: str
    records: Sequence[Mapping[str, Any]] = ()  # see records.py
    samples: Sequence[Sample] = ()
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by title
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Sequence[int] = ()  # iterations that are on the volume


# ---------------------------------------------------------------------- what lies on the volume


def write_page(results: Path, job_folder: Path) -> None:
    """Write the page of a run into its folder of results, anew.

    The page is no result of its own: where it cannot be written this is said and nothing else.
    """
    try:
        made = page(collect(results, job_folder))
        write_text(results / NAME, made)
        say(f"results page: {results / NAME}")
    except Exception as error:  # a volume that is full, or a defect: neither may cost the run
        say(f"note: the results page {results / NAME} could not be written ({error!r})")


def collect(results: Path, job_folder: Path) -> Results:
    """What there is of a run; damaged files are passed over."""
    folder = CheckpointFolder(job_folder / "checkpoints")
    settings = _object(folder.config_path)
    run = settings.get("run")
    reports = {}
    if isinstance(run, Mapping) and isinstance(run.get("dataset_dir"), str):
        dataset = Path(run["dataset_dir"]).parent
        found = {title: _object(dataset / name) for name, title in REPORTS.items()}
        reports = {title: report for title, report in found.items() if report}
    return Results(
        name=results.name,
        records=read_records(job_folder),
        samples=_samples(results, settings),
        reports=reports,
        settings=settings,
        checkpoints=sorted(i for i in folder.iterations() if folder.path("model", i).is_file()),
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _samples(results: Path, settings: Mapping[str, Any]) -> list[Sample]:
    """The samples in ``results`` and one folder below, by checkpoint."""
    found = []
    for path in sorted([*results.glob("*.json"), *results.glob("*/*.json")]):
        video, facts = path.with_suffix(".mp4"), _object(path)
        if not facts or not video.is_file():
            continue
        sheet = path.with_suffix(".png")
        found.append(
            Sample(
                video=video.relative_to(results).as_posix(),
                facts=facts,
                sheet=sheet.relative_to(results).as_posix() if sheet.is_file() else None,
                truth=_truth(results, facts, settings),
            )
        )
    return sorted(found, key=lambda s: (s.name, s.iteration is not None, s.iteration or 0, s.video))


def _truth(results: Path, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The video of the input's own continuation, cut as the samples are; made once for each."""
    if "psnr_of_repeating_the_input" not in facts:  # as inference says: there is none
        return None
    try:
        source = Path(str(facts["input"]))
        frames, (height, width), fps = int(facts["frames"]), facts["size"], float(facts["fps"])
        name = f"{cut_name(source.stem, 80)}-{frames}x{int(height)}x{int(width)}.mp4"
        target = results / TRUTH / name
        if not target.is_file():
            condition = read_condition(
                source,
                count=1,
                clip_frames=frames,
                size=(int(height), int(width)),
                geometry="stretch" if settings.get("geometry") == "stretch" else "crop",
            )
            if condition.truth is None:
                return None
            write_video(target, condition.truth, fps)
    except (UserError, KeyError, TypeError, ValueError):  # the input has gone, or is another now
        return None
    return target.relative_to(results).as_posix()


# ---------------------------------------------------------------------- the page, pure


def page(results: Results) -> str:
    """The whole page; every text in it is escaped."""
    name = escape(results.name)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # nothing here needs a script: a text that got through could not be one either
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"script-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'\">",
        f"<title>{name}: results</title><style>{_STYLE}</style></head>\n<body>",
        f'<h1>{name}</h1><p class="soft">Post-training of Cosmos-Predict2 Video2World</p>',
        _facts(results),
        _training(results),
        _all_samples(results.samples),
        _data(results.reports),
        _configuration(results),
        "</body></html>\n",
    ]
    text = "\n".join(filter(None, parts))
    return text.encode(errors="replace").decode()  # half a surrogate pair is no text


def _facts(results: Results) -> str:
    facts: list[tuple[str, str]] = []
    settings = results.settings
    if settings.get("size"):
        facts.append(("model", str(settings["size"])))
    if results.records:
        last = results.records[-1]
        facts.append(("iterations", f"{last['iteration']:,}"))
        if is_number(last.get("loss")):
            facts.append(("loss", f"{last['loss']:.4g}"))
        seconds = [
            r["seconds_per_iteration"]
            for r in results.records
            if is_number(r.get("seconds_per_iteration"))
        ]
        if seconds:
            facts.append(("seconds/iteration, median", f"{sorted(seconds)[len(seconds) // 2]:.3g}"))
    if results.checkpoints:
        facts.append(("checkpoints kept", ", ".join(map(str, results.checkpoints[-5:]))))
    facts.append(("samples", str(len(results.samples))))
    cells = "".join(f"<div><dt>{escape(k)}<dd>{escape(v)}</div>" for k, v in facts)
    return f'<dl class="facts">{cells}</dl>'


def _training(results: Results) -> str:
    charts = [
        curve(
            [(r["iteration"], r[key]) for r in results.records if is_number(r.get(key))],
            title=title,
            across="iteration",
            up=up,
        )
        for key, title, up in (
            ("loss", "Training loss", "mean since the last report"),
            ("seconds_per_iteration", "Iteration time", "seconds"),
        )
    ]
    warning = _divergence(results)
    if not any(charts):
        return "<h2>Training</h2><p class='soft'>There are no records of this run's training yet."
    return f'<h2>Training</h2>{warning}<div class="curves">{"".join(charts)}</div>'


def _divergence(results: Results) -> str:
    since = results.records[-1].get("diverged_after") if results.records else None
    if not is_number(since):
        return ""
    return (
        f'<p class="warning">Training has diverged after iteration {since:,}: the loss is '
        "far above its lowest, or above that of predicting nothing, and later checkpoints are of "
        "no use. Lower the learning rate, or lengthen its warm-up."
    )


def _all_samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return "<h2>Samples</h2><p class='soft'>There are no samples yet."
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.name, []).append(sample)
    note = ""
    if len({len(group) for group in groups.values()}) > 1:
        note = "<p class='soft'>Not every sample has been made from every checkpoint."
    playing = len(samples) <= PLAYING
    return f"<h2>Samples</h2>{note}" + "".join(_group(n, g, playing) for n, g in groups.items())


def _group(name: str, samples: Sequence[Sample], playing: bool) -> str:
    """One sample from all checkpoints, beside the truth."""
    first = samples[-1]
    prompts = dict.fromkeys(str(s.facts.get("prompt") or "") for s in samples)
    cells = []
    truth = next((s.truth for s in samples if s.truth), None)
    if truth:
        cells.append(_video(truth, "<strong>ground truth</strong>", playing))
    for sample in samples:
        metrics = "<br>".join(METRICS[k].format(v) for k, v in sample.metrics.items())
        caption = f"<strong>{escape(sample.checkpoint)}</strong>"
        caption += f"<br>{metrics}" if metrics else ""
        cells.append(_video(sample.video, caption, playing))
    held = first.facts.get("psnr_of_repeating_the_input")
    still = ""
    if is_number(held):
        still = f"<p class='soft'>Repeating the last given frame: PSNR {held:.2f} dB."
    metrics = first.facts.get("metrics")
    if isinstance(metrics, Mapping) and metrics.get("lpips_missing"):
        still += f"<p class='soft'>No LPIPS: {escape(str(metrics['lpips_missing']))}."
    gains = [(s.iteration, s.metrics["psnr"]) for s in samples if "psnr" in s.metrics]
    known = [(float(i), v) for i, v in gains if i is not None]
    chart = curve(known, title="PSNR by checkpoint", across="iteration", up="dB", dots=True)
    sheets = "".join(
        f"<p>{escape(s.checkpoint)}</p>"
        f'<img loading="lazy" alt="contact sheet" src="{_link(s.sheet)}">'
        for s in samples
        if s.sheet
    )
    sheets = f"<details><summary>contact sheets</summary>{sheets}</details>" if sheets else ""
    rest = {k: v for k, v in first.facts.items() if k not in SHOWN_APART}
    settings = f"<details><summary>settings and timings of {escape(first.checkpoint)}</summary>"
    settings += f"{_table(rest)}</details>"
    shown = "".join(f'<p class="prompt">{escape(text)}</p>' for text in prompts if text)
    return (
        f'<section class="sample"><h3>{escape(name)}</h3>{shown}'
        f'<div class="row">{"".join(cells)}</div>{still}'
        f"{chart}{sheets}{settings}</section>"
    )


def _video(path: str, caption: str, playing: bool) -> str:
    # side by side and at the same time they are compared best, and controls do not cover them
    start = "autoplay" if playing else 'preload="metadata"'
    return (
        f'<figure><video controls loop muted playsinline {start} src="{_link(path)}">'
        f'</video><figcaption>{caption} &middot; <a href="{_link(path)}">file</a>'
        "</figcaption></figure>"
    )


def _link(path: str) -> str:
    return quote(path, errors="replace")


def _data(reports: Mapping[str, Mapping[str, Any]]) -> str:
    tables = []
    for title, report in reports.items():
        counts = report.get("counts")
        if not isinstance(counts, Mapping):
            continue
        dropped = report.get("dropped")
        dropped = dropped if isinstance(dropped, list) else []
        left = "".join(
            f"<li>{escape(str(one.get('item')))}: {escape(str(one.get('reason')))}"
            for one in dropped[:DROPPED]
            if isinstance(one, Mapping)
        )
        if left:
            left = f"<details><summary>left out: {len(dropped)}</summary><ul>{left}</ul></details>"
        tables.append(f"<div><h3>{escape(title)}</h3>{_table(counts)}{left}</div>")
    if not tables:
        return ""
    return f'<h2>Data</h2><div class="tables">{"".join(tables)}</div>'


def _configuration(results: Results) -> str:
    run = results.settings.get("run")
    if not isinstance(run, Mapping):
        return ""
    rest = {k: v for k, v in results.settings.items() if k != "run"}
    return f"<h2>Configuration</h2>{_table(dict(run) | rest)}"


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(key).replace('_', ' '))}"
        f"<td{' class=n' if is_number(value) else ''}>{escape(_shown(value))}"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def _shown(value: Any) -> str:
    if is_number(value):
        return f"{value:,}" if type(value) is int else f"{value:,.6g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(v, (int, float, str)) for v in value):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping) and all(isinstance(v, (int, float, str)) for v in value.values()):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return json.dumps(value, ensure_ascii=False)
