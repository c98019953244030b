"""The progress of a run: a bar on a real terminal, plain lines in a pipe."""

import os
import pty
import re
import subprocess
import sys

import pytest

from video2world_common.progress_events import (
    Evaluated,
    Failed,
    ItemProgress,
    TrainProgress,
    duration,
)
from video2world_operator.terminal import Display

# One stage of 40 steps, shown by the engine and by a worker that is run by hand.
ENGINE = """
import sys
from video2world_common.progress_events import ItemProgress
from video2world_operator.terminal import Display
display = Display(sys.stdout)
display.start("latents")
for done in range(1, 41):
    display.event(ItemProgress("latents", done, 40, "windows", 1.0))
display.end("latents", "done")
"""
WORKER = """
from video2world_common.events import ProgressReporter
progress = ProgressReporter("latents", 40, "windows")
for _ in range(40):
    progress.advance()
"""


def on_a_terminal(code):
    main, side = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=side, stderr=side)
    os.close(side)
    shown = b""
    while True:
        try:
            data = os.read(main, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(main)
    assert process.wait() == 0, shown
    return shown.decode()


@pytest.mark.parametrize("code", [ENGINE, WORKER], ids=["engine", "worker"])
def test_a_bar_on_a_terminal_and_plain_lines_in_a_pipe(code):
    shown = on_a_terminal(code)
    bars = re.findall(r"\r(?:\x1b\[K)?latents +\[(#*)(\.*)\] ?(\d+)/40 windows", shown)
    assert len(bars) == 40  # drawn over each other, in one line
    assert [int(count) for *_, count in bars] == list(range(1, 41))
    lengths = [len(full) for full, *_ in bars]
    assert lengths == sorted(lengths)
    assert (bars[-1][1], len({len(full) + len(rest) for full, rest, _ in bars})) == ("", 1)
    assert '{"event"' not in shown

    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text = piped.stdout + piped.stderr
    assert "\r" not in text
    assert "\x1b" not in text
    assert "[#" not in text
    assert "40" in text.splitlines()[-2 if code == ENGINE else -1]
    assert len(text.splitlines()) <= 3  # not one line for each of the 40 steps


class Pipe:
    """A stream that is no terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return False

    def write(self, text):
        self.text += text

    def flush(self):
        pass


STAGES = """
import sys
from video2world_common.progress_events import ItemProgress, TrainProgress
from video2world_operator.terminal import Display
display = Display(sys.stdout)
display.expect(["download", "dataset", "train", "inference"])
display.skip("download")
display.start("dataset")
display.event(ItemProgress("dataset", 4, 4, "pieces"))
display.end("dataset", "done")
display.start("train", "2 pods")
for iteration in (250, 500, 750):
    display.event(TrainProgress("train", iteration, 1000, 1000.0 / iteration, 0.1, 60.0))
    if iteration == 500:
        display.say("a line that stays")
"""


def what_is_left(shown):
    """The lines on a terminal that has been sent ``shown``."""
    lines, row, column = [""], 0, 0
    for part in re.finditer(r"\x1b\[(\d*)([AKJ])|\r|\n|[^\x1b\r\n]+", shown):
        text, command = part[0], part[2]
        if command == "A":
            row -= int(part[1])
        elif command in ("K", "J"):
            lines[row] = lines[row][:column]
            del lines[row + 1 if command == "J" else len(lines) :]
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return lines


def test_a_terminal_shows_every_stage_below_the_lines_that_stay():
    full, none = "#" * 24, "." * 24
    assert what_is_left(on_a_terminal(STAGES)) == [
        "a line that stays",
        f"download    [{full}] already done, skipped",
        f"dataset     [{full}] done in 0s",
        "train       [##################......] 750/1000  loss 1.3333  0.1 s/iteration  ",  # cut
        "            loss █▃▁  4.0000 to 1.3333",
        f"inference   [{none}]",
        "",
    ]


def test_training_shows_loss_speed_and_time_left():
    out = Pipe()
    display = Display(out)
    display.start("train", "2 pods")
    display.event(TrainProgress("train", 100, 100, 0.25, 1.5, 0.0))
    display.event(TrainProgress("train", 100, 100, 0.25, 1.5, 0.0, phase="2/2 at 704x1280"))
    display.event(Failed("train", "UserError", "reported elsewhere"))
    display.line("train-0", "a worker's own words")
    answer = "Post-training helped: PSNR 18.00 dB (base weights) to 21.00 dB"
    display.event(Evaluated("evaluation", "Better", answer, "psnr", "x", 9, 18.0, 21.0, 3.0))
    display.skip("inference")
    display.skip("train", "its data changed since: 1 new video: b.mp4")
    assert out.text.splitlines() == [
        "train       started (2 pods)",
        "train       100/100  loss 0.2500  1.5 s/iteration",
        "train       100/100  phase 2/2 at 704x1280  loss 0.2500  1.5 s/iteration",
        f"evaluation  {answer}",
        "inference   already done, skipped",
        "train       already done, skipped; its data changed since: 1 new video: b.mp4",
    ]


def test_verbose_shows_every_line():
    out = Pipe()
    display = Display(out, verbose=True)
    display.start("dataset")
    display.line("dataset", "a worker's own words")
    display.event(ItemProgress("dataset", 2, 2, "windows"))
    assert out.text.splitlines() == [
        "dataset     started",
        "dataset | a worker's own words",
        "dataset     2/2 windows",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (59.4, "59s"), (60, "1m00s"), (192, "3m12s"), (18420, "5h07m"), (183600, "2d03h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
