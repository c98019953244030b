"""The tree that v2w status shows: its lines, and how a terminal is updated in place."""

import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcile_world import NOW, World
from video2world_operator.api.status import parse_status
from video2world_operator.cli.snapshot import Snapshot, losses_of
from video2world_operator.cli.status_tree import tree
from video2world_operator.reconcile.observed_state import Pod
from video2world_operator.terminal import sparkline

AT = "2026-11-24T12:00:00Z"
STATUS = {
    "phase": "Running",
    "message": "Stage train is running (attempt 3).",
    "restarts": 2,
    "chargedRestarts": 1,
    "stages": [
        {
            "name": "dataset",
            "state": "Succeeded",
            "done": 812,
            "total": 812,
            "unit": "windows",
            "startTime": "2026-11-24T11:00:00Z",
            "completionTime": "2026-11-24T11:14:02Z",
        },
        {
            "name": "train",
            "state": "Running",
            "attempt": 3,
            "desired": 2,
            "ready": 1,
            "startTime": AT,
        },
        {"name": "inference", "state": "Pending"},
    ],
    "progress": {
        "iteration": 400,
        "iterations": 1000,
        "loss": 0.1234,
        "secondsPerIteration": 8.31,
        "etaSeconds": 4980,
    },
    "checkpoint": {"iteration": 300, "path": "x/iter_000000300.pt", "time": AT},
    "attempts": [
        {
            "number": 1,
            "startIteration": 0,
            "endIteration": 150,
            "endTime": AT,
            "charged": False,
            "reason": "NodeLost",
            "message": "pod run-train-1-0 was lost",
        },
        {
            "number": 2,
            "startIteration": 100,
            "endIteration": 300,
            "endTime": AT,
            "charged": True,
            "reason": "Crashed",
            "message": "exit code 1",
        },
        {"number": 3, "startIteration": 300, "endIteration": 400},
    ],
    "gpuSeconds": {"useful": 9000, "lost": 600, "idle": 400},
}


def pod(index, attempt=3, **fields):
    name = f"run-train-{attempt}-{index}"
    base = {"phase": "Running", "node": f"node-{index}", "ready": True}
    return Pod(name, name, "train", attempt, index, **base | fields)


def shown(status=STATUS, pods=(), losses=(), note="", **options):
    now = NOW + timedelta(minutes=10)
    return tree(Snapshot("run", parse_status(status), pods, losses, note), now, **options)


def test_the_complete_tree():
    pods = [
        pod(0),
        pod(1, ready=False, phase="Pending", waits="ErrImagePull: no such image"),
        pod(0, 2, exit_code=1),
    ]
    assert shown(pods=pods, losses=[4, 3, 2, 1]) == [
        "run: Running  Stage train is running (attempt 3).",
        "├─ dataset     Succeeded   812/812 windows  14m02s",
        "├─ train       Running     10m00s  1/2 pods ready",
        "│  ├─ progress    ██████████░░░░░░░░░░░░░░ 400/1000  loss 0.1234  8.31 s/iteration  "
        "1h23m left",
        "│  ├─ loss        █▆▃▁  4.0000 to 1.0000",
        "│  ├─ checkpoint  300  10m00s ago  x/iter_000000300.pt",
        "│  ├─ attempt 1: NodeLost: pod run-train-1-0 was lost (iterations 0 to 150)",
        "│  ├─ attempt 2: Crashed: exit code 1 (iterations 100 to 300, counted)",
        "│  ├─ run-train-3-1  node-1  Pending: ErrImagePull: no such image",
        "│  └─ run-train-3-0  node-0  Running",
        "├─ inference   Pending",
        "├─ restarts    2 (1 counted)",
        "└─ GPU time    2h30m useful, 10m00s lost, 6m40s idle (90% useful)",
    ]


def test_the_validation_loss_and_why_it_ended_training():
    validation = {
        "iteration": 400,
        "loss": 0.3,
        "lowNoise": 0.1,
        "middleNoise": 0.2,
        "highNoise": 0.6,
        "bestIteration": 200,
        "bestLoss": 0.25,
        "baseLoss": 0.9,
        "weights": "EMA",
        "stopped": "the validation loss was 0.25",
    }
    lines = shown(STATUS | {"validation": validation})
    assert (
        "│  ├─ validation  0.3000 at 400  by noise: low 0.1000, middle 0.2000, high 0.6000  "
        "best 0.2500 at 200  base weights 0.9000  EMA weights" in lines
    )
    assert "│  ├─ stopped     the validation loss was 0.25" in lines
    lines = shown(STATUS | {"validation": {"iteration": 400}})
    assert "│  ├─ validation  not finite at 400" in lines


def test_plain_is_ascii_and_the_same_tree():
    plain = shown(pods=[pod(0)], losses=[1, 2], plain=True)
    assert all(line.isascii() for line in plain)
    assert len(plain) == len(shown(pods=[pod(0)], losses=[1, 2]))


def test_of_a_thousand_pods_failing_ones_are_listed():
    pods = [pod(n) for n in range(1000)]
    pods[700] = pod(700, phase="Pending", ready=False, unschedulable="Insufficient nvidia.com/gpu")
    lines = [line for line in shown(pods=pods) if "run-train" in line or "more:" in line]
    assert len(lines) == 1 + 8 + 1  # one of them is an attempt's message
    assert "run-train-3-700  node-700  Pending: Insufficient" in lines[1]
    assert "... and 992 more: 992 Running" in lines[-1]


def test_before_an_operator_has_handled_it():
    assert shown({}) == ["run: Pending  no operator has handled it yet; is one running?"]


def test_a_note_stands_below_the_head():
    assert shown(note="its process is gone")[1] == "  its process is gone"


def test_every_status_that_reconciling_makes_can_be_shown():
    world = World()
    statuses = []
    world.settle()
    statuses.append(world.status)
    world.to_training()
    world.round()
    statuses.append(world.status)
    world.pod("run-train-1-1", phase="Failed", exit_code=1, ended=world.now)
    world.settle()
    statuses.append(world.status)
    for status in statuses:
        lines = tree(Snapshot("run", parse_status(status), list(world.pods.values())), world.now)
        assert lines[0].startswith(f"run: {status['phase']}")
        assert sum("inference" in line for line in lines) == 1
    assert "attempt 1: Crashed: pod run-train-1-1 ended with exit code 1" in "\n".join(lines)


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 40))
def test_a_sparkline_is_as_long_as_it_may_be_and_ordered_as_its_values(values, width):
    line = sparkline(values, "01234567", width)
    assert len(line) == min(len(values), width)
    if 0 < len(values) <= width:
        pairs = sorted(zip(values, line, strict=True))
        assert [mark for _, mark in pairs] == sorted(line)
        assert line[values.index(min(values))] == "0"


def test_losses_are_read_from_a_log():
    lines = [
        b"words",
        b'{"event":"progress","stage":"train","iteration":1,"iterations":2,"loss":3}',
        b'{"event":"progress","stage":"train","iteration":2,"iterations":2,"loss":NaN}',
        b"{",
    ]
    assert losses_of(lines) == [3.0]


@pytest.mark.parametrize("size", [(24, 80), (4, 20)])
def test_on_a_terminal_the_tree_is_drawn_over_itself(size):
    code = (
        "import sys\nfrom video2world_operator.terminal import Screen\n"
        "screen = Screen(sys.stdout)\n"
        "screen.show(['a' * 50, 'b', 'c', 'd'])\nscreen.show(['x', 'y'], changed=False)\n"
    )
    main, side = pty.openpty()
    environment = os.environ | {"LINES": str(size[0]), "COLUMNS": str(size[1])}
    done = subprocess.run([sys.executable, "-c", code], stdout=side, env=environment, timeout=30)
    os.close(side)
    assert done.returncode == 0
    text = os.read(main, 1 << 16).decode()
    os.close(main)
    drawn = 4 if size[0] > 4 else 3  # the last line says how many do not fit
    assert text.count(f"\x1b[{drawn}A") == 1  # up to the first line, once
    first = re.split(r"\r?\n", text)[0]
    assert len(first.strip("\r").removesuffix("\x1b[K")) == min(50, size[1] - 1)
    assert text.rstrip().endswith("y\x1b[K\r\n\x1b[J")
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert piped.stdout == "a" * 50 + "\nb\nc\nd\n"


def test_now_is_only_used_for_ages():
    early, late = (
        tree(Snapshot("run", parse_status(STATUS)), datetime(2026, 11, day, tzinfo=UTC))
        for day in (25, 26)
    )
    different = [(a, b) for a, b in zip(early, late, strict=True) if a != b]
    assert len(different) == 2  # the running stage and the checkpoint
