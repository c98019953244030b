"""Tests for archives on a Hub: read by ranges, resumed after interruptions, shared by pods.

The server (tools/hub_server.py) has the Hub's protocol, so that the real client is tested.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agibot_archives import TASK, make_archives
from hub_server import Faults, HubServer, Repository, client_environment, folder_files, serving
from video2world_common.exit_codes import UserError
from video2world_common.sharding import Shard
from video2world_preprocess.archives.archive import local_archive
from video2world_preprocess.archives.extract import Extraction
from video2world_preprocess.hub import range_reader
from video2world_preprocess.hub.range_reader import Address, RangeReader, RemoteFile, SourceChanged
from video2world_preprocess.stage_report import Report
from video2world_preprocess.video.reader import read_frames

REPO = "agibot-world/AgiBotWorld-Alpha"
CAMERA = "head_center_fisheye_color"


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives of about 3 MB."""
    root = tmp_path_factory.mktemp("alpha")
    make_archives(root, 6_000_000, size=(64, 96), frames=(120, 155), fps=10, depth_share=0.4)
    return root


@pytest.fixture
def hub(alpha: Path) -> Iterator[HubServer]:
    with serving(HubServer({REPO: Repository(folder_files(alpha), gated=True)})) as server:
        yield server


def environment(hub: HubServer, volume: Path, **more: str) -> dict[str, str]:
    more = {"HF_TOKEN": "hf_good", "OMP_NUM_THREADS": "1"} | more
    return client_environment(hub, volume / ".hf", **more)


FLAGS = ("--prepare", "--min_frames", "30", "--val_episode_ids", "648643", "--workers", "1")


def start(hub: HubServer, volume: Path, *flags: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "video2world_preprocess.agibot", *FLAGS, *flags],
        cwd=volume,
        env=environment(hub, volume, **more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(hub: HubServer, volume: Path, *flags: str, **more: str) -> tuple[int, str, str]:
    process = start(hub, volume, *flags, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def made(volume: Path) -> dict[str, str]:
    """Return the digests of the dataset's files by name."""
    root = volume / "datasets" / f"agibot_{CAMERA}"
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for split in ("train", "val")
        for p in (root / split).rglob("*.*")
    }


@pytest.fixture(scope="module")
def expected(alpha: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The result of a run without faults."""
    volume = tmp_path_factory.mktemp("expected")
    with serving(HubServer({REPO: Repository(folder_files(alpha), gated=True)})) as server:
        code, _, err = run(server, volume)
    assert code == 0, err
    return made(volume)


def report(volume: Path) -> dict:
    return json.loads((volume / f"datasets/agibot_{CAMERA}/report.json").read_text())


def test_only_the_videos_of_the_camera_are_transferred_and_kept(
    hub: HubServer, alpha: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    code, out, err = run(hub, tmp_path)
    assert code == 0, err
    assert made(tmp_path) == expected
    assert any(name.startswith("val/metas") for name in expected)
    assert not list((tmp_path / "datasets").rglob("*.tar"))
    assert not list((tmp_path / "datasets").rglob(f"{CAMERA}.mp4"))
    counts = report(tmp_path)["counts"]
    assert counts["windows"] == counts["new_windows"] == sum(".mp4" in name for name in expected)
    assert counts["bytes_kept"] < counts["bytes_in"] * 3
    sent = sum(n for name, n in hub.sent.items() if name.endswith(".tar"))
    assert 0.5 * sent < counts["transferred_bytes"] <= sent
    assert "hf_good" not in out + err
    page = (tmp_path / f"datasets/agibot_{CAMERA}/report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "The robot is in front of shelf 648642." in page
    # again: nothing of the archives is read
    hub.sent.clear()
    assert run(hub, tmp_path)[0] == 0
    assert not any(name.endswith(".tar") for name in hub.sent)
    # one lost window: only its own video is read
    victim = next(p for p in (tmp_path / "datasets").rglob("train/videos/*.mp4"))
    victim.unlink()
    assert run(hub, tmp_path)[0] == 0
    assert made(tmp_path) == expected
    total = sum(path.stat().st_size for path in alpha.rglob("*.tar"))
    sent = sum(n for name, n in hub.sent.items() if name.endswith(".tar"))
    assert 0 < sent < total / 4


@pytest.mark.slow
def test_kill_9_anywhere_and_run_again(
    hub: HubServer, tmp_path: Path, expected: dict[str, str]
) -> None:
    hub.faults = Faults(bytes_per_second=1_500_000)
    root = tmp_path / "datasets" / f"agibot_{CAMERA}"
    seen = 0
    for pause in (0.0, 0.3, 0.9):
        process = start(hub, tmp_path)
        deadline = time.monotonic() + 60
        while len(list(root.rglob("*.mp4"))) <= seen and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        whole = list(root.glob("*/videos/[!.]*.mp4"))
        for path in whole:
            assert len(read_frames(path)) >= 30
            assert (
                hashlib.sha256(path.read_bytes()).hexdigest()
                == expected[str(path.relative_to(root))]
            )
        seen = len(whole)
    times = {p: p.stat().st_mtime_ns for p in root.glob("*/videos/[!.]*.mp4")}
    hub.faults = Faults()
    code, _, err = run(hub, tmp_path)
    assert code == 0, err
    assert made(tmp_path) == expected
    assert {p: p.stat().st_mtime_ns for p in times} == times  # finished work is not redone
    assert not list((tmp_path / "datasets").rglob(".partial-*"))


@pytest.mark.slow
def test_two_resources_on_one_volume_share_the_work_or_are_refused(
    hub: HubServer, tmp_path: Path, expected: dict[str, str]
) -> None:
    hub.faults = Faults(bytes_per_second=3_000_000)
    both = [start(hub, tmp_path, V2W_RESOURCE=name) for name in ("a", "b")]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert made(tmp_path) == expected
    total = sum(hub.sent[name] for name in hub.sent if name.endswith(".tar"))
    size = sum(hub.repositories[REPO].size(n) for n in hub.sent if n.endswith(".tar"))
    assert total <= size  # nothing was fetched twice
    code, _, err = run(hub, tmp_path, "--window-size", "4", V2W_RESOURCE="c")
    assert code == 2
    assert "was made for resource" in err
    assert "window_seconds 5.0, here 4.0" in err
    assert "dataset.agibot.name" in err
    assert made(tmp_path) == expected


@pytest.mark.slow
def test_shards_make_together_what_one_makes(
    hub: HubServer, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [
        start(
            hub,
            tmp_path,
            "--shards",
            "3",
            JOB_COMPLETION_INDEX=str(index),
            V2W_INPUTS_HASH="h",
            V2W_RESOURCE="r",
        )
        for index in range(3)
    ]
    outputs = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    finished = [out for out, _ in outputs if '"event": "finished"' in out]
    assert finished
    assert made(tmp_path) == expected
    assert report(tmp_path)["counts"]["windows"] == sum(".mp4" in name for name in expected)
    marker = json.loads(next((tmp_path / ".video2world/stages").iterdir()).read_text())
    assert marker["summary"]["windows"] == report(tmp_path)["counts"]["windows"]


DRIVER = """
import json, os, sys
from video2world_preprocess import agibot
for name, environment, flags in json.load(sys.stdin):
    os.environ.update(environment)
    print(f"case {name}", file=sys.stderr)
    print(f"code {agibot.main(flags)}", file=sys.stderr)
"""


def test_refusals_say_what_to_do(hub: HubServer, tmp_path: Path) -> None:
    page = f"https://huggingface.co/datasets/{REPO}"
    cases = {
        "no token": ("", [], ["is gated and no token is set", page, "HF_TOKEN", "licence"]),
        "no licence": ("hf_unlicensed", [], ["is gated and the token in use", page, "licence"]),
        "bad token": ("hf_bad", [], ["refused the request (401)", "settings/tokens"]),
        "revision": ("hf_good", ["--revision", "e" * 40], ["requested revision is not on the Hub"]),
        "repository": ("hf_good", ["--repo_id", "a/b"], ["a/b", "is not on the Hub"]),
        "task": ("hf_good", ["--task_ids", "9"], ["--task_ids 9", "no archives"]),
        "validation": ("hf_good", ["--val_episode_ids", "1"], ["--val_episode_ids 1: not among"]),
    }
    script = [
        (name, {"HF_TOKEN": token}, [*FLAGS, *flags]) for name, (token, flags, _) in cases.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(script),
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=120,
        check=True,
        env=environment(hub, tmp_path),
    )
    parts = done.stderr.split("case ")[1:]
    assert len(parts) == len(cases)
    for part, (name, (token, _, words)) in zip(parts, cases.items(), strict=True):
        assert part.startswith(name)
        assert "code 2" in part, part
        assert part.count("error: ") == 1
        for word in words:
            assert word in part, part
        assert not token or token not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_keep_source_keeps_complete_verified_archives(
    hub: HubServer, alpha: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    code, _, err = run(hub, tmp_path, "--keep-source")
    assert code == 0, err
    assert made(tmp_path) == expected
    for archive in alpha.rglob("*.tar"):
        kept = tmp_path / "datasets/agibot" / archive.relative_to(alpha)
        assert kept.read_bytes() == archive.read_bytes()
    # with another checksum on the Hub, the download is not kept
    kept.unlink()
    name = str(archive.relative_to(alpha))
    hub.repositories[REPO].digests[name] = "0" * 64
    code, _, err = run(hub, tmp_path, "--keep-source")
    assert code == 1
    assert "was damaged during the download" in err
    assert not kept.exists()


# ---------------------------------------------------------------- faults of the network


CONTENT = os.urandom(3_000_000)


@pytest.fixture
def cdn(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    monkeypatch.setattr(range_reader, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    with serving(HubServer({"a/b": Repository({"x.tar": CONTENT})})) as server:
        yield server


def remote(cdn: HubServer, size: int = len(CONTENT)) -> RemoteFile:
    return RemoteFile("x.tar", size, lambda: Address(f"{cdn.cdn}/cdn/a/b/x.tar"))


TROUBLE = {
    "none": Faults(),
    "503": Faults(status=503, answers=4),
    "429": Faults(status=429, answers=2),
    "cut": Faults(cut_after=200_000, cuts=5),
    "cut at once": Faults(cut_after=1, cuts=4),
    "expired": Faults(expire=2),
    "stall": Faults(stalls=1),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_every_byte_arrives_despite_network_faults(cdn: HubServer, kind: str) -> None:
    cdn.faults = TROUBLE[kind]
    with RangeReader(remote(cdn)) as reader:
        assert reader.read() == CONTENT
        reader.seek(1_000_000)
        assert reader.read(10) == CONTENT[1_000_000:1_000_010]


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (Faults(status=500, answers=99), ConnectionError, "does not send the bytes from 0 on.*500"),
        (Faults(longer=1000), SourceChanged, "3001000 bytes instead of 3000000"),
        (Faults(ignore_ranges=True), UserError, "ignores byte ranges.*--keep_tar"),
        (Faults(status=418, answers=1), ConnectionError, "responds with 418"),
    ],
)
def test_permanent_network_faults_are_explained(
    cdn: HubServer, faults: Faults, error: type[Exception], words: str
) -> None:
    cdn.faults = faults
    with RangeReader(remote(cdn)) as reader:
        reader.seek(5 if faults.ignore_ranges else 0)
        with pytest.raises(error, match=words):
            reader.readall()


def test_a_wrong_content_length_is_noticed(cdn: HubServer) -> None:
    cdn.faults = Faults(longer=5000)  # in every response's headers, but not sent
    with (
        RangeReader(remote(cdn, len(CONTENT) + 5000)) as reader,
        pytest.raises(ConnectionError, match=r"does not send the bytes from \d+ on"),
    ):
        reader.readall()


def test_a_file_that_changes_while_it_is_read(cdn: HubServer) -> None:
    with RangeReader(remote(cdn)) as reader:
        reader.read(10)
        cdn.faults = Faults(etag='"another"')
        with pytest.raises(SourceChanged, match=r'x\.tar changed on the server.*"another"'):
            reader.readall()


def test_skipping_transfers_little(cdn: HubServer) -> None:
    content = os.urandom(12_000_000)  # skipped parts are longer than those read through
    cdn.repositories["a/b"].files["x.tar"] = content
    with RangeReader(remote(cdn, len(content))) as reader:
        for at in (0, 6_000_000, 11_600_000):
            reader.seek(at)
            assert reader.read(512) == content[at : at + 512]
    assert cdn.sent["x.tar"] <= 3 * 2 * range_reader.SMALLEST_RANGE


def test_short_distances_are_read_through_on_one_connection(cdn: HubServer) -> None:
    with RangeReader(remote(cdn)) as reader:
        for at in range(0, len(CONTENT) - 90_000, 90_000):  # like the headers of depth images
            reader.seek(at)
            assert reader.read(512) == CONTENT[at : at + 512]
    assert sum(path.startswith("/cdn/") for _, path, _ in cdn.seen) <= 7
    assert cdn.connections == 1


def test_a_damaged_video_in_the_index_does_not_hide_others(alpha: Path, tmp_path: Path) -> None:
    """Many small pieces, read by several threads: the same videos, each once."""
    archives = [
        local_archive(path, path.name)
        for path in sorted((alpha / f"observations/{TASK}").iterdir())
    ]

    def take(state: Path, piece: int) -> dict[int, str]:
        arrived: list[int] = []
        target = tmp_path / state.name / "videos"
        run = Extraction(
            [replace(archive, piece_size=piece) for archive in archives],
            state,
            CAMERA,
            lambda m: target / f"{m.episode}.mp4",
            lambda _, m: not (target / f"{m.episode}.mp4").exists(),
            Shard(),
            lambda _, m: arrived.append(m.episode),
        )
        run.run("dataset")
        members = run.members(Report("dataset"))
        assert sorted(arrived) == [m.episode for _, m in members]
        return {int(p.stem): hashlib.sha256(p.read_bytes()).hexdigest() for p in target.iterdir()}

    assert take(tmp_path / "small", 40_000) == take(tmp_path / "large", 1 << 30)
