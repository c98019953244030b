"""tools/training_demo.py: its verdict, its memory meter, and how it stops."""

import importlib
import json
import os
import signal
import subprocess
import sys

import pytest

from repository import ROOT

PATH = ROOT / "tools/training_demo.py"


@pytest.fixture(scope="module")
def demo():
    return importlib.import_module("training_demo")


@pytest.mark.parametrize(
    ("trained", "untrained", "held", "code"),
    [(24.0, 20.9, 23.9, 0), (24.0, 21.1, 20.0, 1), (24.0, 10.0, 24.1, 1)],
)
def test_learning_is_3_db_and_better_than_a_still_picture(
    demo, capsys, trained, untrained, held, code
):
    psnr = {"floor": held, "base": untrained, "iter_000001000": trained, "ceiling": 29.0}
    rows = [{"model": name, "metrics": {"psnr": {"value": value}}} for name, value in psnr.items()]
    table = {"rows": rows, "clips": [{}, {}], "answer": {"checkpoint": "iter_000001000"}}
    assert demo._show(table, 12.3, 2048.0) == code
    out = capsys.readouterr().out
    assert ("NOT LEARNED" in out) == bool(code)
    assert "12 s" in out
    assert "2.00 GiB" in out
    assert out.splitlines()[-1].endswith("/.demo/results/demo/index.html")


def test_the_meter_sees_what_children_hold(demo):
    code = "import time; held = b'x' * (300 << 20); time.sleep(2)"
    with demo.Meter() as meter:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert 300 << 10 < meter.peak_kib < 6 << 20


# The child takes longer to save than subprocess.run would wait for it after a Ctrl-C.
CHILD = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(1)
    print('saved', flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["^C", "TERM"]
)
def test_a_stop_waits_for_the_child_to_save(tmp_path, send, number):
    (tmp_path / "slow_child.py").write_text(CHILD)
    script = (
        f"import sys; sys.path.insert(0, {str(PATH.parent)!r}); import training_demo\n"
        "with training_demo.run_child('slow_child'):\n    pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    send(process.pid, number)  # ^C goes to the whole group, as a terminal sends it
    out, error = process.communicate(timeout=30)
    assert out == "saved\n"
    assert process.returncode == 128 + number
    assert "Traceback" not in error


def test_a_worker_is_shown_like_a_stage_and_its_failure_explained(demo, tmp_path, capsys):
    event = {"event": "progress", "stage": "x", "done": 3, "total": 3, "unit": "episodes"}
    (tmp_path / "good.py").write_text(f"print({json.dumps(event)!r})\nprint('plain')\n")
    (tmp_path / "bad.py").write_text("import sys; print('because'); sys.exit(2)\n")
    demo.VOLUME = tmp_path
    display = demo.Display(sys.stdout)
    demo.run_worker(display, "demo data", "good")
    out = capsys.readouterr().out
    assert "demo data   3/3 episodes" in out
    assert "plain" not in out
    with pytest.raises(SystemExit) as caught:
        demo.run_worker(display, "demo data", "bad")
    assert caught.value.code == 2
    assert "because" in capsys.readouterr().out
