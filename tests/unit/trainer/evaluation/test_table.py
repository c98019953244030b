"""The table of an evaluation, its answer, and the windows that it is made of."""

import csv

import numpy as np
import pytest

from video2world_common.exit_codes import UserError
from video2world_trainer.evaluation.clip_meter import CEILING, FLOOR
from video2world_trainer.evaluation.held_out import choose_windows
from video2world_trainer.evaluation.latent_moments import Moments
from video2world_trainer.evaluation.report import read_table, write_table
from video2world_trainer.evaluation.table import ClipFigures, Model, answer, summarize

METRICS = ["psnr", "ssim", "latent_l2", "latent_frechet"]


def moments(mean):
    return Moments(50, np.full(2, float(mean)), np.eye(2) + mean**2)


def clip(psnr, mean=0.0):
    return ClipFigures({"psnr": psnr, "ssim": psnr / 40, "latent_l2": 1 / psnr}, moments(mean))


def rows_of(base, trained, metrics=METRICS):
    models = [
        Model("base", [clip(value, 2) for value in base]),
        Model("iter_000000500", [clip(value, 1) for value in trained], 500, "x.pt"),
    ]
    limits = {FLOOR: [clip(5, 3)] * len(base), CEILING: [clip(40)] * len(base)}
    return summarize(models, limits, [moments(0)] * len(base), metrics)


CLIPS = [20.0, 21, 22, 23, 24, 25, 26, 27]


def test_rows_have_means_intervals_and_paired_differences():
    rows = rows_of(CLIPS, [value + 1 for value in CLIPS])
    assert [row["model"] for row in rows] == ["floor", "base", "iter_000000500", "ceiling"]
    base, trained = (row["metrics"] for row in rows[1:3])
    assert base["psnr"]["value"] == pytest.approx(23.5)
    assert 20 < base["psnr"]["low"] < 23.5 < base["psnr"]["high"] < 27
    difference = trained["psnr"]["difference"]
    # every clip gains the same: clips differ far more than that, and pairs know better
    assert [difference[name] for name in ("value", "low", "high")] == pytest.approx([1, 1, 1])
    assert base["latent_frechet"]["value"] == pytest.approx(2 * 2**2)
    assert trained["latent_frechet"]["difference"]["value"] == pytest.approx(2 - 8)
    assert "difference" not in base["psnr"]


@pytest.mark.parametrize(
    ("gain", "metric", "verdict", "text"),
    [
        (
            1,
            "psnr",
            "Better",
            "Post-training helped: PSNR 23.50 dB (base weights) to 24.50 dB "
            "(iteration 500), +1.00 dB on 8 held-out clips (95 % interval +1.00 dB to +1.00 dB).",
        ),
        (-1, "psnr", "Worse", "Post-training made it worse: PSNR 23.50 dB (base weights) to"),
        (1, "latent_l2", "Better", "Post-training helped: latent L2"),  # less is better
        (-1, "latent_l2", "Worse", "Post-training made it worse: latent L2"),
        (0, "psnr", "Unclear", "No clear difference: PSNR 23.50 dB (base weights) to 23.50 dB"),
    ],
)
def test_the_answer_names_the_figures(gain, metric, verdict, text):
    found = answer(rows_of(CLIPS, [value + gain for value in CLIPS]), metric, 8)
    assert (found["verdict"], found["iteration"], found["clips"]) == (verdict, 500, 8)
    assert found["text"].startswith(text)


def test_a_difference_that_some_clips_contradict_is_unclear():
    trained = [value + (2 if number % 2 else -1.9) for number, value in enumerate(CLIPS)]
    found = answer(rows_of(CLIPS, trained), "psnr", 8)
    assert found["verdict"] == "Unclear"
    assert found["low"] < 0 < found["difference"] < found["high"]


def test_few_clips_have_figures_but_no_verdict():
    found = answer(rows_of(CLIPS[:2], CLIPS[2:4]), "psnr", 2)
    assert (found["verdict"], found["difference"], found["low"]) == ("Unclear", 2, None)
    assert "+2.00 dB on 2 held-out clips (too few for an interval, which takes 6)" in found["text"]


def test_equal_videos_have_a_finite_psnr():
    metrics = {"psnr": None, "ssim": 1, "lpips": None, "latent_l2": 0}
    found = ClipFigures.of_json(metrics | {"latent_moments": moments(0).to_json()})
    assert found.values == {"psnr": 100, "ssim": 1, "latent_l2": 0}


def test_tables_are_written_for_spreadsheets_too(tmp_path):
    rows = rows_of(CLIPS, CLIPS, ["psnr", "latent_frechet"])
    clips = [{"clip": "a", "values": {"base": {"psnr": 20.5}, "floor": {"psnr": 5}}}]
    table = {"rows": rows, "clips": clips, "metrics": ["psnr", "latent_frechet"], "answer": {}}
    write_table(tmp_path / "evaluation", table)
    assert read_table(tmp_path) == table
    with (tmp_path / "evaluation/evaluation.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 4 * 2
    assert lines[4]["model"] == "iter_000000500"
    assert (lines[4]["iteration"], float(lines[4]["difference_value"])) == ("500", 0)
    assert lines[0]["difference_value"] == ""
    text = (tmp_path / "evaluation/clips.csv").read_text()
    assert text == "clip,model,psnr\na,base,20.5\na,floor,5\n"
    (tmp_path / "evaluation/evaluation.json").write_text("[]")
    assert read_table(tmp_path) == {}


def put(folder, name, caption="a robot"):
    for part in ("videos", "metas"):
        (folder / "val" / part).mkdir(parents=True, exist_ok=True)
    (folder / f"val/videos/{name}.mp4").touch()
    if caption:
        (folder / f"val/metas/{name}.txt").write_text(caption)


def test_windows_are_spread_evenly_and_keep_their_noise(tmp_path):
    for number in range(10):
        put(tmp_path, f"episode_{number}_window_0", caption="" if number == 3 else "a robot")
    found = choose_windows(tmp_path, 3)
    assert [path.stem[8] for path in found.chosen] == ["0", "4", "7"]
    assert found.available == 9
    assert choose_windows(tmp_path, 3, needs_captions=False).available == 10
    assert "no caption" in found.left_out["episode_3_window_0"]
    everything = choose_windows(tmp_path, 99)
    assert len(everything.chosen) == 9
    few, many = (
        {entry["input_video"]: entry["seed"] for entry in one.entries(tmp_path / "out", 5)}
        for one in (found, everything)
    )
    assert few.items() <= many.items()  # noise depends on the window, not on the choice
    assert len(set(many.values())) == 9
    assert many != {e["input_video"]: e["seed"] for e in everything.entries(tmp_path / "out", 6)}


def test_no_held_out_windows_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no held-out windows in .*val/videos \(there is no video"):
        choose_windows(tmp_path, 3)
    put(tmp_path, "a", caption="")
    with pytest.raises(UserError, match="none of the 1 has a caption"):
        choose_windows(tmp_path, 3)
