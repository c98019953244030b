"""The replay of the results page in a real browser, opened as a file."""

import asyncio
import json

import numpy as np
import pytest

from browser import CHROMIUM, opened
from video2world_preprocess.video.writer import write_video
from video2world_trainer.generation.action_trace import ActionTrace
from video2world_trainer.results.page import write_page

FPS, LENGTHS = 8, {"left": 25, "right": 17}
TIMES = "[...document.querySelectorAll('.replay video')].map((one) => one.currentTime)"
STILL = "[...document.querySelectorAll('.replay video')].every((v) => v.paused && !v.seeking)"


@pytest.fixture
def page(tmp_path):
    """Two motions from one first frame, of different length."""
    results = tmp_path / "results"
    results.mkdir()
    for name, length in LENGTHS.items():
        frames = np.full((length, 64, 80, 3), 90, np.uint8)
        write_video(results / f"{name}.mp4", frames, FPS)
        rows = np.arange(length - 1, dtype=np.float32)[:, None]
        trace = ActionTrace(("<elbow>",), rows, np.zeros(1), np.full(1, 24))
        facts = {"input": "w.mp4", "fps": FPS, "checkpoint": "x.pt", "actions": trace.to_json()}
        (results / f"{name}.json").write_text(json.dumps(facts))
    write_page(results, tmp_path / "job")
    return results / "index.html"


async def shown(tab):
    """Return the frame that the slider, each video, each cursor and each value shows."""
    await tab.until(STILL)
    times = await tab.value(TIMES)
    query = "[...document.querySelectorAll('{}')].map((one) => Number({}))".format
    return {
        "slider": await tab.value("Number(document.querySelector('.transport input').value)"),
        "videos": [int(time * FPS) for time in times],
        "cursors": await tab.value(query(".cursor", "one.getAttribute('x1')")),
        "values": await tab.value(query(".values b", "one.textContent")),
    }


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_videos_and_plots_move_in_step(page, tmp_path):
    async def use():
        async with opened(page.as_uri(), tmp_path / "profile") as tab:
            await tab.call(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-reduced-motion", "value": "reduce"}],
            )
            await tab.call("Page.reload")
            await tab.until("document.querySelector('.transport')?.hidden === false")
            # reduced motion: nothing plays on its own
            await tab.until("document.querySelectorAll('.replay video')[1].readyState >= 2")
            assert await tab.value(TIMES) == [0, 0]
            await tab.value("document.querySelector('.transport input').focus()")
            for _ in range(3):
                await tab.press("ArrowRight", 39)
            assert await shown(tab) == {
                "slider": 3,
                "videos": [3, 3],
                "cursors": [3, 3],
                "values": [3, 3],
            }
            await tab.press("End", 35)
            assert await shown(tab) == {  # the shorter video stays at its last frame
                "slider": 24,
                "videos": [24, 16],
                "cursors": [24, 16],
                "values": [23, 15],
            }
            await tab.value("document.querySelector('.actions').scrollIntoView({block: 'center'})")
            box = await tab.value(
                "(b => [b.x, b.y, b.width, b.height])"
                "(document.querySelector('.actions').getBoundingClientRect())"
            )
            middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
            await tab.drag((box[0] + 2, middle[1]), middle)
            assert (await shown(tab))["videos"] == [12, 12]
            await tab.value("document.querySelector('.transport button').click()")
            await tab.until(f"{TIMES}.every((time) => time > 13 / {FPS})")
            await tab.value("document.querySelector('.transport button').click()")
            found = await shown(tab)
            assert len({found["slider"], *found["cursors"], *found["videos"]}) == 1

    asyncio.run(use())
