"""Test the inference stage: selecting checkpoints, sharding, keeping existing samples."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from video2world_trainer import checkpoint_runs, sweep
from video2world_trainer.checkpoint.folder import CheckpointFolder, pin_checkpoint
from video2world_trainer.checkpoint.validation_record import ValidationResult, write_results

# Stands in for the generator, which has its own tests: writes what behave.json says of an input.
INFERENCE = """
import json, os, sys, time
from pathlib import Path
argv = sys.argv
checkpoint = argv[argv.index("--dit_path") + 1]
entries = json.loads(Path(argv[argv.index("--batch_input_json") + 1]).read_text())
behave = json.loads(Path("behave.json").read_text()) if Path("behave.json").exists() else {}
assert "V2W_INPUTS_HASH" not in os.environ
for entry in entries:
    what = behave.get(entry["input_video"], "make")
    if what == "refuse":
        print(json.dumps({"event": "failed", "stage": "inference", "message": "no video"}))
        sys.exit(2)
    if what == "crash":
        sys.exit(1)
    if what == "wait":
        Path("waiting").write_text("x")
        time.sleep(60)
    with open("made.txt", "a") as made:
        made.write(f"{entry['output_video']}\\n")
    target = Path(entry["output_video"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("video")
    target.with_suffix(".json").write_text(json.dumps({"checkpoint": checkpoint}))
    print(json.dumps({"event": "progress", "stage": "inference", "done": 1, "total": 2}))
    print(json.dumps({"event": "sample", "stage": "inference", "path": str(target), "psnr": 9}))
"""
RUN = Path("checkpoints/p/g/run/checkpoints")
FLAGS = ["--run_folder", str(RUN), "--batch_input_json", "samples.json"]


@pytest.fixture(autouse=True)
def volume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inference.py").write_text(INFERENCE)
    monkeypatch.setattr(
        checkpoint_runs, "INFERENCE", (sys.executable, str(tmp_path / "inference.py"))
    )
    for name in [n for n in os.environ if n.startswith(("V2W_", "JOB_"))]:
        monkeypatch.delenv(name)
    before = signal.getsignal(signal.SIGTERM)
    Path("samples.json").write_text(
        json.dumps(
            [
                {"input_video": f"{n}.mp4", "prompt": "", "output_video": f"results/run/{n}.mp4"}
                for n in "ab"
            ]
        )
    )
    folder = CheckpointFolder(RUN)
    for iteration in (500, 1000):
        folder.save(iteration, {part: {} for part in ("model", "optim", "scheduler", "trainer")})
    yield folder
    signal.signal(signal.SIGTERM, before)


def run(capsys, *flags):
    code = sweep.main([*FLAGS, *flags, "--", "--seed", "0"])
    out = capsys.readouterr()
    events = [json.loads(line) for line in out.out.splitlines() if line.startswith("{")]
    return code, events, out.out + out.err


def made():
    path = Path("made.txt")
    return path.read_text().splitlines() if path.exists() else []


BOTH = ["--checkpoints", "all", "--by_checkpoint"]
ALL = [f"results/run/iter_{i:09d}/{n}.mp4" for i in (500, 1000) for n in "ab"]


@pytest.mark.parametrize(
    ("flags", "outputs"),
    [
        ([], ["results/run/a.mp4", "results/run/b.mp4"]),
        (["--checkpoints", "500"], ["results/run/a.mp4", "results/run/b.mp4"]),
        (BOTH, ALL),
        (["--checkpoints", "latest", "1000", "--by_checkpoint"], ALL[2:]),
        (["--checkpoints", "500", "latest", "--by_checkpoint"], ALL),
    ],
)
def test_selected_checkpoints_and_the_paths_of_their_samples(capsys, flags, outputs):
    code, events, _ = run(capsys, *flags)
    assert code == 0
    assert made() == outputs
    assert Path("results/run/index.html").exists()
    last = {e["checkpoint"]: (e["done"], e["total"]) for e in events if e["event"] == "samples"}
    assert set(last.values()) == {(2, 2)}
    assert [e["stage"] for e in events] == ["inference"] * len(events)


def test_the_checkpoint_with_the_least_validation_loss(capsys):
    code, _, out = run(capsys, "--checkpoints", "best")
    assert code == 2
    assert "no checkpoint in checkpoints/p/g/run/checkpoints was validated" in out
    results = [
        ValidationResult(iteration, loss, loss, loss, loss, 2, 4, "regular", "d")
        for iteration, loss in ((0, 3.0), (250, 0.5), (500, 1.0), (1000, 2.0))  # 250: not saved
    ]
    write_results(RUN, results)
    code, events, out = run(capsys, "--checkpoints", "best")
    assert code == 0
    assert "best checkpoint: iteration 500, validation loss 1 with its regular weights" in out
    assert {e["checkpoint"] for e in events if e["event"] == "samples"} == {"iter_000000500"}
    table = Path("results/run/validation.csv").read_text().splitlines()
    assert table[0] == "iteration,loss,low,middle,high,clips,levels,weights,draws"
    assert table[2] == "250,0.5,0.5,0.5,0.5,2,4,regular,d"
    assert json.loads(Path("results/run/validation.json").read_text())["best_iteration"] == 250


def test_a_weights_file_as_checkpoint(capsys):
    Path("mine").mkdir()
    Path("mine/w.pt").write_text("x")
    code, _, _ = run(capsys, "--checkpoints", "mine/w.pt", "latest", "--by_checkpoint")
    assert code == 0
    folders = sorted(p.name for p in Path("results/run").iterdir() if p.is_dir())
    assert folders[0] == "iter_000001000"
    assert folders[1].startswith("w-")


def test_alpha_is_for_weights_files_only_and_regenerates_samples(capsys):
    Path("w.pt").write_text("x")
    seen = Path("inference.py").read_text() + "\nprint(*argv)\n"
    Path("inference.py").write_text(seen)
    flags = ["--checkpoints", "w.pt", "latest", "--by_checkpoint"]
    _, _, out = run(capsys, *flags, "--lora_alpha", "32")
    (of_file, of_run) = (line for line in out.splitlines() if "--dit_path" in line)
    assert of_file.endswith("--seed 0 --lora_alpha 32")
    assert of_run.endswith("--seed 0")
    count = len(made())
    run(capsys, *flags, "--lora_alpha", "8")
    assert len(made()) == count + 2
    assert "--lora_alpha has no effect" in run(capsys, "--lora_alpha", "8")[2]


def test_an_entry_without_an_output_is_named(capsys):
    Path("samples.json").write_text(json.dumps([{"input_video": "a.mp4", "prompt": ""}]))
    code, _, text = run(capsys)
    assert code == 2
    assert "samples.json: entry 0: output_video is missing" in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--checkpoints", "7"], "checkpoints: 7: there is no checkpoint of this iteration in"),
        (["--checkpoints", "7"], "(there is 500, 1000); name another, or raise spec.training."),
        (["--checkpoints", "x.pt"], "checkpoints: x.pt: there is no such file on the volume"),
        (["--checkpoints", "all"], "several need --by_checkpoint"),
        (["--run_folder", "none"], "latest: there is no checkpoint in none"),
        (["--batch_input_json", "none.json"], "none.json cannot be read"),
        (["--", "--dit_path", "x.pt"], "--dit_path after --: it is set for each checkpoint"),
    ],
)
def test_user_errors_are_explained(capsys, flags, expected):
    code, _, text = run(capsys, *flags)
    assert code == 2
    assert expected in text
    assert "Traceback" not in text


def test_existing_samples_are_kept_unless_their_settings_change(capsys, volume):
    run(capsys, *BOTH)
    assert run(capsys, *BOTH)[0] == 0
    assert made() == ALL
    Path(ALL[1]).unlink()
    run(capsys, *BOTH)
    assert made() == [*ALL, ALL[1]]
    assert sweep.main([*FLAGS, *BOTH, "--", "--seed", "1"]) == 0
    assert made()[5:] == ALL
    time.sleep(0.02)
    volume.save(1000, {part: {"new": 1} for part in ("model", "optim", "scheduler", "trainer")})
    sweep.main([*FLAGS, *BOTH, "--", "--seed", "1"])
    assert made()[9:] == ALL[2:]


def test_more_gpus_and_offload_keep_existing_samples(capsys):
    run(capsys)
    assert sweep.main([*FLAGS, "--", "--seed", "0", "--num_gpus=2", "--offload"]) == 0
    assert "all samples of this share exist" in capsys.readouterr().out
    assert len(made()) == 2
    Path("inference.py").write_text(f"{INFERENCE}\nprint(*argv)\n")
    assert sweep.main([*FLAGS, "--", "--seed", "1", "--num_gpus=2", "--offload"]) == 0
    assert "--seed 1 --num_gpus=2 --offload" in capsys.readouterr().out


def test_a_changed_input_regenerates_its_samples(capsys, monkeypatch):
    monkeypatch.setenv("V2W_INPUTS_HASH", "abc")
    monkeypatch.setenv("V2W_STAGE", "inference")
    for folder in ("videos", "metas"):
        Path("val", folder).mkdir(parents=True)
    Path("val/videos/a.mp4").write_text("a video")
    entries = [
        {"input_video": f"val/videos/{n}.mp4", "prompt": "", "output_video": f"out/{n}.mp4"}
        for n in "ab"
    ]
    Path("samples.json").write_text(json.dumps(entries))
    assert run(capsys)[0] == 0
    for change, file, again in (
        ("1 changed video: a.mp4", "val/videos/a.mp4", ["out/a.mp4"]),
        ("1 new caption: b.txt", "val/metas/b.txt", ["out/b.mp4"]),
        ("1 missing video: b.mp4", None, ["out/b.mp4"]),
    ):
        if file:
            Path(file).write_text("another one")
        else:
            Path("out/b.mp4").unlink()
        before = len(made())
        text = run(capsys)[2]
        assert f"inference: run again: {change}" in text
        assert made()[before:] == again
        assert "nothing to do" in run(capsys)[2]


def test_work_is_sharded_and_the_last_pod_finishes_the_stage(capsys, monkeypatch):
    monkeypatch.setenv("V2W_INPUTS_HASH", "abc")
    monkeypatch.setenv("V2W_STAGE", "inference")
    marker = Path(".video2world/stages/inference-abc.json")
    for index, (share, ended) in enumerate(((ALL[:1], 0), (ALL[1:2], 0), (ALL[2:], 1))):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        before = len(made())
        code, events, _ = run(capsys, *BOTH, "--shards=3")
        assert code == 0
        assert made()[before:] == share
        assert marker.exists() == bool(ended)
        reported = [(e["done"], e["total"]) for e in events if e["event"] == "samples"]
        assert reported[-1][1] == 2  # of the whole checkpoint, not of the share
    assert json.loads(marker.read_text())["summary"] == {"samples": 4, "checkpoints": 2}


def test_one_bad_input_fails_only_its_checkpoint_and_is_named(capsys):
    Path("behave.json").write_text('{"b.mp4": "refuse"}')
    code, events, text = run(capsys, *BOTH)
    assert code == 2
    assert made() == [ALL[0], ALL[2]]
    assert "iter_000000500: no video; iter_000001000: no video" in text
    assert [e["event"] for e in events].count("failed") == 1
    Path("behave.json").unlink()
    assert run(capsys, *BOTH)[0] == 0
    assert made() == [ALL[0], ALL[2], ALL[1], ALL[3]]


def test_after_a_crash_the_next_attempt_continues(capsys):
    Path("behave.json").write_text('{"b.mp4": "crash"}')
    with pytest.raises(SystemExit) as caught:
        run(capsys, *BOTH)
    assert caught.value.code == 1
    assert Path("results/run/index.html").exists()
    Path("behave.json").unlink()
    run(capsys, *BOTH)
    assert made() == [ALL[0], ALL[1], *ALL[2:]]


def test_sigterm_ends_inference_and_finished_samples_are_kept(volume):
    Path("behave.json").write_text('{"b.mp4": "wait"}')
    script = (
        "import sys; from video2world_trainer import checkpoint_runs, sweep\n"
        f"checkpoint_runs.INFERENCE = ({sys.executable!r}, 'inference.py')\n"
        f"sys.exit(sweep.main({[*FLAGS, *BOTH]!r}))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not Path("waiting").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # meanwhile its checkpoint cannot be pruned, though nobody else may be at work on it
    volume.save(1500, {p: {} for p in ("model", "optim", "scheduler", "trainer")}, keep=1)
    assert volume.iterations() == [1500, 500]
    child.terminate()
    assert child.wait(30) == 143
    assert made() == ALL[:1]
    volume.save(2000, {p: {} for p in ("model", "optim", "scheduler", "trainer")}, keep=1)
    assert volume.iterations() == [2000]


def test_deleted_checkpoints_are_skipped_if_allowed(capsys):
    flags = ["--checkpoints", "250", "--by_checkpoint", "--pass_over_missing"]
    code, events, text = run(capsys, *flags)
    assert code == 0
    assert made() == []
    (_, reported) = [e for e in events if e["event"] == "samples"]
    assert reported["message"] == "the checkpoint was deleted before its samples were generated"
    assert "raise spec.training.checkpoint.keep" in text


def test_pinning_yields_whether_the_file_exists(tmp_path):
    (tmp_path / "w.pt").write_text("x")
    with pin_checkpoint(tmp_path / "w.pt") as there:
        assert there
    with pin_checkpoint(tmp_path / "none.pt") as there:
        assert not there
    with pin_checkpoint(tmp_path) as there:
        assert there
