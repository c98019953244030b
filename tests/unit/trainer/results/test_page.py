"""The results page: its content, and the escaping of every text in it."""

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video2world_preprocess.video.reader import probe
from video2world_preprocess.video.writer import write_video
from video2world_trainer.checkpoint.validation_record import ValidationResult, write_results
from video2world_trainer.results.line_chart import line_chart
from video2world_trainer.results.page import render_page, write_page
from video2world_trainer.results.run_results import GeneratedSample, RunResults, collect
from video2world_trainer.training.history import HistoryWriter, read_history

HOSTILE = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "</title><script>x",
            '"><img src=x onerror=alert(1)>',
            "' onload='x",
            "</video></p></section>",
            "<!--",
            "]]>",
            "&lt;script&gt;",
            "javascript:x",
            "http://elsewhere.example/x.png",
            "half a pair \ud800",
            "\u202e\x00\x1b[2J",
            "{{x}}",
            "</style><style>*{}",
        ]
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)


class Read(HTMLParser):
    """Collect the tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text.append(data)


TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "h3",
    "p",
    "dl",
    "div",
    "dt",
    "dd",
    "figure",
    "figcaption",
    "svg",
    "line",
    "text",
    "polyline",
    "circle",
    "small",
    "section",
    "video",
    "strong",
    "br",
    "a",
    "details",
    "summary",
    "img",
    "table",
    "tr",
    "th",
    "td",
    "ul",
    "li",
}
REPLAY_TAGS = {"path", "b", "button", "input", "output", "script"}
ACTIONS = st.fixed_dictionaries(
    {
        "names": st.lists(HOSTILE, min_size=2, max_size=2),
        "range": st.just({"min": [-1, 0], "max": [1, 1]}),
        "rows": st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=3),
        "seams": st.lists(st.integers(-9, 9), max_size=2),
    }
)
FACTS = st.dictionaries(
    st.sampled_from(
        [
            "prompt",
            "checkpoint",
            "iteration",
            "ema",
            "metrics",
            "seed",
            "input",
        ]
    )
    | HOSTILE,
    VALUES,
)
PATHS = HOSTILE.map(lambda text: f"{text}.mp4")


@settings(max_examples=60, deadline=None)  # the machine may be busy
@given(
    name=HOSTILE,
    samples=st.lists(
        st.builds(
            GeneratedSample,
            video=PATHS,
            facts=FACTS,
            contact_sheet=st.none() | PATHS,
            ground_truth=st.none() | PATHS,
        ),
        max_size=4,
    ),
    reports=st.dictionaries(
        HOSTILE,
        st.fixed_dictionaries({}, optional={"counts": VALUES, "dropped": VALUES}),
        max_size=2,
    ),
    config=st.fixed_dictionaries({}, optional={"run": VALUES, "size": VALUES, "x": VALUES}),
)
def test_any_text_is_escaped(name, samples, reports, config):
    made = render_page(RunResults(name=name, samples=samples, reports=reports, settings=config))
    read = Read(made)
    assert read.tags <= TAGS
    for tag, attribute, value in read.attributes:
        assert not attribute.startswith("on")
        if attribute in ("src", "href"):
            assert ":" not in value  # relative, and no scheme
            assert not value.startswith("//")
        assert (attribute != "style") or tag == "svg"
    made.encode()


FIGURES = st.fixed_dictionaries(
    {"value": st.floats(allow_nan=False), "low": st.none(), "high": st.none()},
    optional={"difference": st.just({"value": 1.0, "low": -1.0, "high": 2.0})},
)


@settings(max_examples=40, deadline=None)
@given(
    answer=st.fixed_dictionaries({"text": HOSTILE, "verdict": HOSTILE, "checkpoint": HOSTILE}),
    rows=st.lists(st.tuples(HOSTILE, FIGURES), max_size=3),
    clips=st.lists(st.tuples(HOSTILE, HOSTILE, HOSTILE), max_size=6),
    damage=st.sampled_from(["", "rows", "clips", "windows", "left_out"]),
)
def test_any_text_of_an_evaluation_is_escaped(answer, rows, clips, damage):
    values = {"base": {"psnr": 1.0}, answer["checkpoint"]: {"psnr": 2.0}}
    table = {
        "answer": answer,
        "metrics": ["psnr", "unknown"],
        "rows": [{"name": name, "metrics": {"psnr": found}} for name, found in rows],
        "clips": [
            {"clip": a, "prompt": b, "strip": c, "videos": {a: b}, "values": values, "frames": 16}
            for a, b, c in clips
        ],
        "requested": 16,
        "windows": 40,
        "skipped_metrics": {"lpips": answer["text"]},
        "left_out": {answer["text"]: answer["verdict"]},
    }
    table = {key: value for key, value in table.items() if key != damage}
    read = Read(render_page(RunResults(name="x", evaluation=table)))
    assert read.tags <= TAGS
    assert ("Evaluation" in "".join(read.text)) == (not damage and bool(clips))
    for tag, attribute, value in read.attributes:
        assert not attribute.startswith(("on", "style")) or tag == "svg"
        if attribute in ("src", "href"):
            assert ":" not in value
            assert not value.startswith("//")


@pytest.mark.parametrize("text", ["<b>bold</b> & \"quoted\" 'single'", "línea\nnueva"])
def test_a_caption_is_shown_verbatim(text):
    sample = GeneratedSample("iter_000000005/sample-0.mp4", {"prompt": text, "checkpoint": "x"})
    assert text in "".join(Read(render_page(RunResults("run", samples=[sample]))).text)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def volume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (30, 96, 128, 3), np.uint8)
    source = Path("datasets/d/val/videos/w.mp4")
    source.parent.mkdir(parents=True)
    write_video(source, frames, 30)
    job, results = Path("checkpoints/p/g/run"), Path("results/run")
    described = {"size": "Tiny", "geometry": "crop", "run": {"dataset_dir": "datasets/d/train"}}
    put(job / "checkpoints/model/config.json", described)
    put(
        Path("datasets/d/report.json"),
        {
            "counts": {"windows": 24},
            "dropped": [{"kind": "window", "item": "w<9>", "reason": "too short"}],
        },
    )
    put(job / "checkpoints/model/iter_000000500.pt", "x")
    for iteration in (500, 1000):
        folder = results / f"iter_{iteration:09d}"
        folder.mkdir(parents=True)
        write_video(folder / "sample-0.mp4", frames[:17], 16)
        (folder / "sample-0.png").write_bytes(b"png")
        put(
            folder / "sample-0.json",
            {
                "prompt": "The arm reaches.",
                "input": str(source),
                "frames": 17,
                "fps": 16,
                "size": [96, 128],
                "checkpoint": f"checkpoints/x/iter_{iteration:09d}.pt",
                "iteration": iteration,
                "ema": False,
                "seed": 3,
                "metrics": {
                    "psnr": iteration / 50,
                    "ssim": 0.5,
                    "lpips": None,
                    "lpips_missing": "weights <w>",
                    "repeating_the_input": {"psnr": 9.5, "ssim": 0.4},
                },
            },
        )
    records = HistoryWriter(job)
    for iteration in range(10, 110, 10):
        records.append(iteration, loss=1 / iteration, seconds=0.5)
    return results, job


def test_the_page_shows_everything_by_relative_paths(volume):
    results, job = volume
    write_page(results, job)
    read = Read((results / "index.html").read_text())
    videos = [value for tag, name, value in read.attributes if (tag, name) == ("video", "src")]
    truth = "ground-truth/w-17x96x128.mp4"
    assert videos == [truth, "iter_000000500/sample-0.mp4", "iter_000001000/sample-0.mp4"]
    assert all((results / video).is_file() for video in videos)
    assert (probe(results / truth).frames, probe(results / truth).fps) == (17, 16)
    text = " ".join("".join(read.text).split())
    for expected in (
        "ground truth",
        "iteration 500PSNR 10.00 dBSSIM 0.500",
        "iteration 1000PSNR 20.00 dB",
        "Repeating the last given frame: PSNR 9.50 dB",
        "The arm reaches.",
        "windows24",
        "w<9>: too short",
        "dataset dirdatasets/d/train",
        "Training loss",
        "Iteration time",
        "PSNR by checkpoint",
        "No LPIPS: weights <w>.",
    ):
        assert expected in text, expected
    assert "script" not in read.tags


def test_samples_next_to_the_page_are_read_like_those_in_folders_of_checkpoints(volume):
    results, job = volume
    facts = json.loads((results / "iter_000000500/sample-0.json").read_text())
    for suffix in (".mp4", ".png"):
        (results / "iter_000000500/sample-0").with_suffix(suffix).rename(
            (results / "sample-0").with_suffix(suffix)
        )
    put(results / "sample-0.json", facts)
    seen = collect(results, job).samples
    assert [(s.video, s.iteration, s.metrics.get("psnr")) for s in seen] == [
        ("sample-0.mp4", 500, 10.0),
        ("iter_000001000/sample-0.mp4", 1000, 20.0),
    ]


@pytest.mark.parametrize("damage", ["", "[1]", "{", '{"frames": "many"}', "[" * 100_000])
def test_damaged_files_are_skipped(volume, damage):
    results, job = volume
    put(results / "iter_000000500/sample-0.json", damage)
    put(Path("datasets/d/report.json"), damage)
    put(job / "checkpoints/model/config.json", damage)
    with (job / "progress.jsonl").open("a") as stream:
        stream.write(damage)
    write_page(results, job)
    assert "iteration 1000" in (results / "index.html").read_text()


def test_an_empty_volume_has_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_page(Path("results/run"), Path("checkpoints/p/g/run"))
    text = Path("results/run/index.html").read_text()
    assert "no samples yet" in text
    assert "no records" in text


def test_a_page_that_cannot_be_written_is_logged(tmp_path, capsys):
    (tmp_path / "results").write_text("a file")
    write_page(tmp_path / "results/run", tmp_path / "job")
    assert "could not be written" in capsys.readouterr().out


def test_repeated_iterations_of_a_restart_count_once(tmp_path):
    records = HistoryWriter(tmp_path)
    for iteration, loss in ((10, 3.0), (20, 2.0), (30, 1.0)):
        records.append(iteration, loss=loss, seconds=1.0)
    with records.path.open("a") as stream:
        stream.write('{"iteration": 40, "lo')  # killed while writing
    again = HistoryWriter(tmp_path)
    again.append(20, loss=2.5, seconds=1.0)
    again.append(30, loss=None, seconds=1.0, gradient_norm=4.0)
    assert [(r["iteration"], r.get("loss")) for r in read_history(tmp_path)] == [
        (10, 3.0),
        (20, 2.5),
        (30, None),
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12)), max_size=900))
def test_a_line_chart_stays_inside_its_frame(points):
    points = sorted(points)
    made = line_chart(points, title="<t>", x_label="x", y_label="y")
    if len(points) < 2:
        assert made == ""
        return
    read = Read(made)
    (line,) = [v for tag, name, v in read.attributes if (tag, name) == ("polyline", "points")]
    places = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert 2 <= len(places) <= 300
    for x, y in places:
        assert math.isfinite(x)
        assert 57 <= x <= 551
        assert 9 <= y <= 187


def validation(iteration, loss, weights="regular"):
    parts = (None,) * 3 if loss is None else (loss / 2, loss, loss * 1.5)
    return ValidationResult(iteration, loss, *parts, 16, 4, weights, "d")


def test_the_validation_loss_is_drawn_beside_the_training_loss(tmp_path):
    job = tmp_path / "job"
    history = HistoryWriter(job)
    for iteration in (10, 20, 30):
        history.append(iteration, loss=1 / iteration, seconds=1.0)
    results = [validation(0, 2.0), validation(10, 0.5), validation(20, None), validation(30, 0.75)]
    write_results(job / "checkpoints", results)
    write_page(tmp_path / "results", job)
    page = (tmp_path / "results/index.html").read_text()
    text = " ".join(Read(page).text)
    for shown in ("0.5 at 10", "-75.0 %", "16 held-out clips", "not finite", "best", "by noise"):
        assert shown in text, shown
    assert page.count("<polyline") == 6  # training, validation; low, middle, high; time
    table = (tmp_path / "results/validation.csv").read_text().splitlines()
    assert table[3] == "20,,,,,16,4,regular,d"
    record = json.loads((tmp_path / "results/validation.json").read_text())
    assert record["best_iteration"] == 10
    assert [one["iteration"] for one in record["results"]] == [0, 10, 20, 30]


def test_the_validation_loss_of_a_short_run_is_drawn_alone(tmp_path):
    job = tmp_path / "job"
    HistoryWriter(job).append(4, loss=1.0, seconds=1.0)
    write_results(job / "checkpoints", [validation(0, 2.0), validation(4, 0.5)])
    write_page(tmp_path / "results", job)
    page = (tmp_path / "results/index.html").read_text()
    assert page.count("<polyline") == 4  # validation; low, middle, high
    assert "<figcaption>Validation loss <small>" in page


def test_a_damaged_record_of_validations_does_not_lose_the_page(tmp_path):
    job = tmp_path / "job"
    (job / "checkpoints").mkdir(parents=True)
    (job / "checkpoints/validation.json").write_text('[{"iteration": NaN}]')
    write_page(tmp_path / "results", job)
    assert "There are no records" in (tmp_path / "results/index.html").read_text()
    assert not (tmp_path / "results/validation.csv").exists()


@given(weights=HOSTILE, draws=HOSTILE)
@settings(max_examples=20, deadline=None)
def test_texts_of_the_record_are_escaped(weights, draws):
    result = ValidationResult(5, 1.0, 1.0, 1.0, 1.0, 1, 3, weights, draws)
    page = render_page(RunResults("x", validations=[result, result]))
    assert Read(page).tags <= TAGS


def policy_of(read):
    (policy,) = [v for _, name, v in read.attributes if name == "content" and "script-src" in v]
    return policy


@settings(max_examples=30, deadline=None)
@given(
    actions=ACTIONS,
    inputs=st.lists(HOSTILE, min_size=1, max_size=3),
    path=PATHS,
    truth=st.none() | PATHS,
)
def test_any_text_of_a_replay_is_escaped_and_only_its_own_script_may_run(
    actions, inputs, path, truth
):
    samples = [
        GeneratedSample(
            f"{path}/{number}.mp4",
            {"input": one, "fps": 16, "checkpoint": one, "actions": actions},
            ground_truth=truth,
        )
        for number, one in enumerate(inputs)
    ]
    page = render_page(RunResults(name=path, samples=samples))
    read = Read(page)
    assert read.tags <= TAGS | REPLAY_TAGS
    for tag, attribute, value in read.attributes:
        assert not attribute.startswith("on")
        if attribute in ("src", "href"):
            assert ":" not in value
            assert not value.startswith("//")
        assert (attribute != "style") or tag == "svg"
    code = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert [one for tag, one, _ in read.attributes if tag == "script"] == []
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in code]
    assert [f"script-src 'sha256-{one}';" in policy_of(read) for one in digests] == [True]
    rows = [json.loads(value) for _, name, value in read.attributes if name == "data-rows"]
    assert [len(one) for one in rows] == [len(actions["rows"])] * len(samples)


def motions(results, facts, names, iterations=(500,)):
    """Write samples that follow actions from the first frame of ``w``."""
    rows = [[np.sin(step / 5), step > 8] for step in range(16)]
    actions = {
        "names": ["elbow", "gripper"],
        "range": {"min": [-2, 0], "max": [2, 1]},
        "rows": [[float(x) for x in row] for row in rows],
        "seams": [8],
    }
    for iteration in iterations:
        for number, name in enumerate(names):
            path = results / f"iter_{iteration:09d}/{name}.mp4"
            shutil.copy(results / "iter_000000500/sample-0.mp4", path)
            metrics = facts["metrics"] if number == 0 else None
            more = {"iteration": iteration, "metrics": metrics, "actions": actions}
            put(path.with_suffix(".json"), facts | more)


def test_motions_from_one_first_frame_are_replayed_next_to_each_other(volume):
    results, job = volume
    facts = json.loads((results / "iter_000000500/sample-0.json").read_text())
    motions(results, facts, ["left", "right", "up", "down"], (500, 1000))
    write_page(results, job)
    page = (results / "index.html").read_text()
    replay = page[page.index('<section class="sample replay') : page.index("<h2>Samples")]
    read = Read(replay)
    videos = [value for tag, name, value in read.attributes if (tag, name) == ("video", "src")]
    newest = [f"iter_000001000/{name}.mp4" for name in ("down", "left", "right", "up")]
    assert videos == ["ground-truth/w-17x96x128.mp4", *newest]
    assert ("input", "max", "16") in read.attributes  # the last of 17 frames
    text = " ".join("".join(read.text).split())
    assert "4 motions from one first frame" in text
    assert "elbow 0" in text
    (path,) = {v for tag, name, v in read.attributes if tag == "path" and v.startswith("M0 100")}
    assert path.endswith("H9V0H10V0H11V0H12V0H13V0H14V0H15V0H16")  # the gripper closes at frame 9
    assert page.count("<script>") == 1
    assert "autoplay" not in page


def test_damaged_actions_leave_the_sample_on_the_page(volume):
    results, job = volume
    path = results / "iter_000000500/sample-0.json"
    put(path, json.loads(path.read_text()) | {"actions": {"names": ["a"], "rows": "x"}})
    write_page(results, job)
    page = (results / "index.html").read_text()
    assert "iter_000000500/sample-0.mp4" in page
    assert "<script>" not in page
    assert "script-src 'none';" in policy_of(Read(page))
