"""Compare the data stages with the plain method on this machine.

Run as ``python -m benchmarks.preprocess``. Prints a table and writes
``benchmarks/results/preprocess.json``. The archives are written by tools/agibot_archives.py and
served by tools/hub_server.py to the Hub's own client. The plain method is that of the original
script: download everything, untar everything, then run one ``ffmpeg`` process (on the PATH, or of
the package imageio-ffmpeg) per window. Without a GPU, rows that need one keep their earlier
figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .host import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools")]

from agibot_archives import footage, make_archives  # noqa: E402
from video2world_preprocess.dataset.windows import Window  # noqa: E402
from video2world_preprocess.video.cut import cut  # noqa: E402
from video2world_preprocess.video.reader import read_frames  # noqa: E402
from video2world_preprocess.video.writer import write_video  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "preprocess.json"
REPO, CAMERA = "agibot-world/AgiBotWorld-Alpha", "head_center_fisheye_color"
MIB = 2**20


def _ffmpeg() -> str:
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg
    except ImportError:
        raise SystemExit(
            "error: no ffmpeg to compare with; install it, or pip install imageio-ffmpeg"
        ) from None
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _disk(folder: Path) -> int:
    """Return the bytes on disk of the files below ``folder``."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += Path(root, name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _rss(root: int) -> dict[str, int]:
    """Return the peak resident bytes of ``root`` and its descendants, by PID."""
    parents, found = {root}, {}
    for _ in range(4):  # generations
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = dict(
                    line.split(":\t", 1)
                    for line in status.read_text().splitlines()
                    if ":\t" in line
                )
            except OSError:
                continue
            if int(lines["PPid"]) in parents or int(lines["Pid"]) == root:
                parents.add(int(lines["Pid"]))
                if "VmHWM" in lines:
                    found[lines["Pid"]] = int(lines["VmHWM"].split()[0]) * 1024
    return found


class _Watch:
    """Peak disk usage below a folder, and peak memory of the largest process of a command."""

    def __init__(self, folder: Path) -> None:
        self.disk = self.process = 0
        self._folder, self._done = folder, threading.Event()

    def _sample(self) -> None:
        while not self._done.wait(0.1):
            self.disk = max(self.disk, _disk(self._folder))
            self.process = max(self.process, *_rss(self.pid).values(), 0)

    def run(self, command: list[str], **options: Any) -> float:
        """Run ``command`` and return its seconds."""
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, **options) as process:
            self.pid = process.pid
            sampler = threading.Thread(target=self._sample)
            sampler.start()
            code = process.wait()
            seconds = time.monotonic() - started
            self._done.set()
            sampler.join()
        if code:
            raise SystemExit(f"error: {' '.join(command)} ended with {code}")
        return seconds


@contextmanager
def _hub(root: Path) -> Iterator[dict[str, str]]:
    """Run the server in a process of its own; yield the environment for its clients."""
    command = [sys.executable, str(ROOT / "tools" / "hub_server.py"), "--root", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            endpoint = server.stdout.readline().strip().partition("=")[2]
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "V2W_"))}
            yield {**kept, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        finally:
            server.kill()


PLAIN = """
import json, os, subprocess, sys, tarfile
from pathlib import Path
from huggingface_hub import snapshot_download
repo, camera, ffmpeg, window, rest = sys.argv[1:]
window, rest = float(window), float(rest)
os.environ["HF_HOME"] = str(Path("hf").resolve())
snapshot_download(repo, repo_type="dataset", local_dir="agibot",
                  allow_patterns=["observations/327/*.tar", "task_info/task_327.json"])
for archive in sorted(Path("agibot/observations/327").glob("*.tar")):
    with tarfile.open(archive) as members:
        members.extractall(archive.parent, filter="data")
    archive.unlink()
Path("out").mkdir()
for video in sorted(Path("agibot/observations/327").glob(f"*/videos/{camera}.mp4")):
    log = subprocess.run([ffmpeg, "-hide_banner", "-i", video], capture_output=True, text=True)
    hours, minutes, seconds = log.stderr.split("Duration: ")[1].split(",")[0].split(":")
    duration = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    begin = number = 0
    while begin < duration:
        length = duration - begin if duration - begin <= rest else window
        subprocess.run([ffmpeg, "-loglevel", "error", "-ss", str(begin), "-i", video, "-t",
                        str(length), "-c", "libx264", "-avoid_negative_ts", "make_zero", "-y",
                        f"out/{video.parts[-3]}_{number}.mp4"], check=True)
        begin, number = begin + length, number + 1
"""


def fetch_and_split(gigabytes: float, scratch: Path) -> dict[str, Any]:
    """Measure archives on a Hub to windows: ours, then the plain method on the same archives."""
    root = scratch / "alpha"
    archives = make_archives(root, int(gigabytes * 1e9))
    size = sum(path.stat().st_size for path in archives)
    (ours := scratch / "ours").mkdir()
    (plain := scratch / "plain").mkdir()
    with _hub(root) as environment:
        watch = _Watch(ours)
        # with the default number of workers: one per core
        command = [sys.executable, "-m", "video2world_preprocess.agibot", "--prepare"]
        seconds = watch.run(command, cwd=ours, env=environment)
        report = json.loads((ours / f"datasets/agibot_{CAMERA}/report.json").read_text())["counts"]
        kept = _disk(ours)
        other = _Watch(plain)
        arguments = [REPO, CAMERA, _ffmpeg(), "5", "7.5"]
        slow = other.run([sys.executable, "-c", PLAIN, *arguments], cwd=plain, env=environment)
        shutil.rmtree(plain / "agibot")
        plain_kept = _disk(plain)
    return {
        "archive_bytes": size,
        "archives": len(archives),
        "cameras": 8,
        "episodes": report["episodes"],
        "windows": report["windows"],
        "windows_plain": len(list((plain / "out").iterdir())),
        "copied_windows": report["copied_windows"],
        "seconds": round(seconds, 1),
        "seconds_plain": round(slow, 1),
        "ratio": round(seconds / slow, 3),
        "kept_bytes": kept,
        "kept_bytes_plain": plain_kept,
        "peak_extra_bytes": watch.disk - kept,
        "peak_extra_of_archives": round((watch.disk - kept) / size, 4),
        "peak_extra_of_kept": round((watch.disk - kept) / kept, 4),
        "peak_extra_bytes_plain": other.disk - plain_kept,
        "largest_process_mib": round(watch.process / MIB),
    }


def _cpu_seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and CPU seconds of ``work``, including ended child processes."""

    def used() -> float:
        both = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in both)

    wall, cpu = time.monotonic(), used()
    work()
    return time.monotonic() - wall, used() - cpu


def _psnr(video: Path, reference: np.ndarray) -> float:
    error = ((read_frames(video).astype(np.float32) - reference) ** 2).mean()
    return 10 * math.log10(255**2 / float(error))


def re_encode(scratch: Path) -> dict[str, Any]:
    """Measure windows (150 frames of 640x480 at 30 frames/s) per core-second."""
    source = scratch / "source.mp4"
    write_video(source, footage(901, 480, 640, 7), 30, crf=18)
    # from frame 1 on: a window that starts at a key frame would be copied
    windows = [Window(k, 1 + 150 * k, 151 + 150 * k) for k in range(6)]
    ours = [(w.start, w.stop, scratch / f"ours-{w.index}.mp4") for w in windows]
    plain = [scratch / f"plain-{w.index}.mp4" for w in windows]
    ffmpeg = _ffmpeg()

    def by_ffmpeg() -> None:
        for window, target in zip(windows, plain, strict=True):
            subprocess.run(
                [
                    ffmpeg,
                    "-loglevel",
                    "error",
                    "-ss",
                    str(window.start / 30),
                    "-i",
                    source,
                    "-t",
                    str(window.frames / 30),
                    "-c",
                    "libx264",
                    "-y",
                    target,
                ],
                check=True,
            )

    made: list[tuple[Path, bool]] = []
    wall, cpu = _cpu_seconds(lambda: made.extend(cut(source, ours)))
    assert not any(copied for _, copied in made)
    slow_wall, slow_cpu = _cpu_seconds(by_ffmpeg)
    reference = read_frames(source, windows[0].start, windows[0].frames).astype(np.float32)
    count = len(windows)
    return {
        "windows": count,
        "per_core_second": round(count / cpu, 3),
        "per_core_second_ffmpeg": round(count / slow_cpu, 3),
        "ratio": round(slow_cpu / cpu, 2),
        "wall_seconds_one_process": round(wall, 1),
        "wall_seconds_ffmpeg": round(slow_wall, 1),
        "psnr": round(_psnr(ours[0][2], reference), 2),
        "psnr_ffmpeg": round(_psnr(plain[0], reference), 2),
        "bytes": sum(target.stat().st_size for *_, target in ours),
        "bytes_ffmpeg": sum(target.stat().st_size for target in plain),
    }


# ---------------------------------------------------------------- rows that need a GPU


def _timed(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the median seconds of ``work`` on the GPU, after one warm-up run."""
    import torch

    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        started = time.monotonic()
        work()
        torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return float(np.median(times[1:]))


def _kernels(work: Callable[[], Any]) -> dict[str, float]:
    """Return the milliseconds of the ten kernels that take most of ``work``, by name prefix."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for one in profiler.key_averages():
        # with spaces: a long string without any looks like a secret to lint
        spent[one.key[:90].replace("_", " ")] += one.self_device_time_total / 1e3
    return {name: round(spent_ms, 2) for name, spent_ms in spent.most_common(10)}


class _Words:
    """Stand-in for T5's tokenizer, which is not available: four tokens per three words."""

    pad_token_id, end = 0, 1

    def __call__(self, texts: list[str], max_length: int, **_: Any) -> dict[str, list[list[int]]]:
        lengths = (min(round(len(text.split()) * 4 / 3), max_length - 1) for text in texts)
        return {"input_ids": [[*range(2, 2 + length), self.end] for length in lengths]}


def text_encoder(captions: Path | None) -> dict[str, Any]:
    """Compare T5-11B's encoder, batched by length and deduplicated, with one by one, padded."""
    import torch
    from transformers import T5Config, T5EncoderModel

    from video2world_preprocess.text.encoder import TextEncoder

    config = T5Config(
        d_model=1024, d_kv=128, num_heads=128, d_ff=65536, num_layers=24, vocab_size=32128
    )
    device = torch.device("cuda")
    with device:
        torch.set_default_dtype(torch.bfloat16)
        model = T5EncoderModel(config).eval()
        torch.set_default_dtype(torch.float32)
    texts = (
        [json.loads(line)["caption"] for line in captions.read_text().splitlines()]
        if captions
        else [f"The robot takes item {n} from the shelf. " * 14 for n in range(1714)]
    )
    few = texts[:32]

    def padded(some: list[str] = few) -> list[torch.Tensor]:
        found = []
        for row in _Words()(some, 512)["input_ids"]:
            ids = torch.zeros(1, 512, dtype=torch.long)
            ids[0, : len(row)] = torch.tensor(row)
            hidden = model(input_ids=ids.to(device), attention_mask=(ids != 0).long().to(device))
            found.append(hidden.last_hidden_state[0, : len(row)].cpu())
        return found

    def errors(found: list[torch.Tensor]) -> float:
        pairs = zip(found, exact, strict=True)
        worst = max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)
        return float(f"{worst:.2e}")

    with torch.no_grad():
        slow = _timed(padded) / len(few)  # before the encoder changes the model
        rounded = padded(texts[:8])
        model.float()
        exact = padded(texts[:8])
        model.bfloat16()
        encoder = TextEncoder(model, _Words(), device)
        fast = _timed(lambda: encoder.encode(texts)) / len(texts)
        ours = [torch.from_numpy(one) for one in encoder.encode(texts[:8])]
        batch = encoder.batches(texts)[1]
        kernels = _kernels(lambda: encoder.encode_batch(batch))
    return {
        "card": torch.cuda.get_device_name(),
        "captions": len(texts),
        "different": len({*texts}),
        "prompts_per_second": round(1 / fast, 1),
        "prompts_per_second_padded": round(1 / slow, 1),
        "ratio": round(slow / fast, 2),
        "error_against_float32": {"padded": errors(rounded), "ours": errors(ours)},
        "a_batch": {"captions": len(batch), "kernels_ms": kernels},
    }


def video_encoder() -> dict[str, Any]:
    """Measure a clip of 93 frames of 704x1280 in the Wan VAE with random weights."""
    import torch
    from diffusers import AutoencoderKLWan

    from video2world_preprocess.vae.vae import VideoVAE

    torch.manual_seed(0)
    model = AutoencoderKLWan()
    vae = VideoVAE(model, "AutoencoderKLWan", torch.device("cuda"), torch.bfloat16)
    video = torch.rand(1, 3, 93, 704, 1280, device="cuda", dtype=torch.bfloat16) * 2 - 1
    plain = vae.encode_latents(video)
    slow = _timed(lambda: vae.encode_latents(video))
    rows = {}
    vae.prepare_for_batches()
    for frames in (4, 8, 16, 32):
        vae.frames_per_pass = frames
        torch.cuda.reset_peak_memory_stats()
        seconds = _timed(lambda: vae.encode_latents(video))
        error = (vae.encode_latents(video) - plain).abs()
        rows[str(frames)] = {
            "seconds": round(seconds, 3),
            "of_diffusers": round(seconds / slow, 3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
            "relative_error": round(float(error.mean() / plain.abs().mean()), 5),
        }
    vae.prepare_for_batches()
    return {
        "card": torch.cuda.get_device_name(),
        "seconds_diffusers": round(slow, 3),
        "by_frames_per_pass": rows,
        "kernels_ms": _kernels(lambda: vae.encode_latents(video)),
    }


# ---------------------------------------------------------------- the table


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    if stage := results.get("fetch_and_split"):
        times = f"{stage['seconds']} and {stage['seconds_plain']} s"
        size = f"{stage['archive_bytes'] / 1e9:.1f} GB of archives"
        yield (
            f"peak extra disk, {size}",
            "<= 2 %",
            f"{stage['peak_extra_of_archives']:.1%} of the archives, "
            f"{stage['peak_extra_of_kept']:.0%} of what is kept",
        )
        yield (
            f"wall time against the plain way, {size}",
            "<= 0.25 x",
            f"{stage['ratio']:.2f} x ({times})",
        )
        yield (
            "largest process of the dataset stage",
            "<= 1024 MiB",
            (f"{stage['largest_process_mib']} MiB"),
        )
    if row := results.get("re_encode"):
        yield (
            "windows per core-second against ffmpeg",
            ">= 1.5 x",
            f"{row['ratio']:.2f} x ({row['per_core_second']} against "
            f"{row['per_core_second_ffmpeg']}; PSNR {row['psnr']} against "
            f"{row['psnr_ffmpeg']} dB)",
        )
    if row := results.get("text_encoder"):
        yield (
            "T5 prompts a second against one by one",
            ">= 8 x",
            f"{row['ratio']:.1f} x ({row['prompts_per_second']})",
        )
    else:
        yield "T5 prompts a second against one by one", ">= 8 x", "not run: no GPU"
    if row := results.get("video_encoder"):
        best = min(row["by_frames_per_pass"].values(), key=lambda r: r["seconds"])
        yield "VAE against diffusers", "<= 0.6 x", f"{best['of_diffusers']} x ({best['seconds']} s)"
    else:
        yield "VAE against diffusers", "<= 0.6 x", "not run: no GPU"


CASES = ("re_encode", "fetch_and_split", "text_encoder", "video_encoder")


def main() -> None:
    """Measure, print the table, and write the file."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--gigabytes", type=float, default=10.0, help="of archives (10)")
    flags.add_argument("--captions", type=Path, help="a caption file, for the T5 row")
    flags.add_argument("--scratch", type=Path, help="where to work (a temporary folder)")
    flags.add_argument("--only", nargs="*", choices=CASES, default=CASES)
    flags.add_argument("--commit", default="", help="where git cannot tell it")
    args = flags.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        free, needed = shutil.disk_usage(folder).free, 3.2e9 * args.gigabytes
        if "fetch_and_split" in args.only and free < needed:
            raise SystemExit(
                f"error: {free / 1e9:.0f} GB are free, {needed / 1e9:.0f} GB are needed: give "
                "fewer --gigabytes, or another --scratch"
            )
        cases: dict[str, Callable[[], dict[str, Any]]] = {
            "re_encode": lambda: re_encode(Path(folder)),
            "fetch_and_split": lambda: fetch_and_split(args.gigabytes, Path(folder)),
        }
        import torch

        if torch.cuda.is_available():
            cases["text_encoder"] = lambda: text_encoder(args.captions)
            cases["video_encoder"] = video_encoder
        for name in args.only:
            if name in cases:
                command = " ".join(["python -m benchmarks.preprocess", *sys.argv[1:]])
                machine = facts(command, args.commit)
                results[name] = cases[name]() | {"machine": machine}
                print(f"{name}: {json.dumps(results[name])}", flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for what, goal, value in _rows(results):
        print(f"{what:<62} {goal:<12} {value}")


if __name__ == "__main__":
    main()
