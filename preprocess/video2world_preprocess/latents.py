"""Encode clips of every window with the VAE once, instead of in every step (the latents stage)."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from video2world_common.events import ProgressReporter, emit, say
from video2world_common.exit_codes import UserError
from video2world_common.files import NAME_BYTES, atomic_write, name_bytes
from video2world_common.folder_locks import owned_in_splits
from video2world_common.latent_folders import LATENTS, latents_folder
from video2world_common.markers import Provenance
from video2world_common.stage_runner import run_stage
from video2world_preprocess.device_pool import devices, process_items
from video2world_preprocess.item_faults import failed_items, nothing_left, reason_for
from video2world_preprocess.stage_report import Report, write_report
from video2world_preprocess.vae.vae import VideoVAE, load_vae
from video2world_preprocess.video.reader import probe, read_fitted
from video2world_preprocess.video.resize import Geometry

__all__ = ["clip_starts", "main", "parser"]

CONTENT = "source_sha256"  # metadata key of the digest of the encoded video file


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.latents", description=__doc__
    )
    flags.add_argument(
        "--dataset_path",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders with videos/*.mp4, the one for training first",
    )
    flags.add_argument("--vae_path", type=Path, required=True, help="folder of the VAE")
    flags.add_argument("--num_frames", type=int, default=93, help="frames per clip (default: 93)")
    flags.add_argument(
        "--video_size",
        type=int,
        nargs=2,
        action="append",
        metavar=("HEIGHT", "WIDTH"),
        help="size in pixels to which frames are resized (default: 704 1280); may be repeated for "
        "a run of several phases: the first size is the final one, whose latents are in latents/, "
        "those of others in latents_HEIGHTxWIDTH/",
    )
    flags.add_argument("--geometry", choices=get_args(Geometry), default="crop")
    flags.add_argument(
        "--clips_per_window",
        type=int,
        default=4,
        help="clips per window, with different first frames (default: 4)",
    )
    flags.add_argument("--seed", type=int, default=0, help="seed of the first frames (default: 0)")
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument(
        "--processes", type=int, help="number of worker processes (default: one per GPU)"
    )
    return flags


def clip_starts(stem: str, frames: int, num_frames: int, clips: int, seed: int) -> list[int]:
    """Return the sorted first frames of ``clips`` different clips in a window of ``frames`` frames.

    They depend only on ``seed`` and the window's name, not on the rest of the dataset. A window
    with fewer different clips has all of them.
    """
    offsets = frames - num_frames + 1
    digest = hashlib.sha256(f"{seed}:{stem}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return sorted(int(n) for n in rng.choice(offsets, min(clips, offsets), replace=False))


@dataclass(frozen=True)
class _Window:
    """A window to encode at ``size``: clips of ``num_frames`` frames from each of ``starts``."""

    video: Path
    target: Path
    size: tuple[int, int]  # height, width in pixels
    frames: int
    starts: list[int]
    metadata: dict[str, str]


def _windows(
    split: Path, args: argparse.Namespace, vae_name: str, report: Report
) -> Iterator[_Window]:
    """Yield the usable windows of ``split``, each at every size; report the others."""
    for video in sorted((split / "videos").glob("[!.]*.mp4")):
        try:
            info = probe(video)
        except Exception as error:
            report.drop("window", str(video), reason_for(error, split / LATENTS))
            continue
        if info.frames < args.num_frames:
            report.drop(
                "window",
                str(video),
                f"has {info.frames} frames, but a clip has {args.num_frames}",
            )
            continue
        if name_bytes(f"{video.stem}.safetensors") > NAME_BYTES:
            report.drop("window", str(video), "its name is too long for the name of its latents")
            continue
        starts = clip_starts(
            video.stem, info.frames, args.num_frames, args.clips_per_window, args.seed
        )
        metadata = {
            "num_frames": args.num_frames,
            "geometry": args.geometry,
            "vae": vae_name,
            "seed": args.seed,
            "clips": len(starts),
            "source_frames": info.frames,
            "source_bytes": video.stat().st_size,
        }
        for folder, (height, width) in _folders(args).items():
            known = metadata | {"height": height, "width": width}
            yield _Window(
                video,
                split / folder / f"{video.stem}.safetensors",
                (height, width),
                info.frames,
                starts,
                {key: str(value) for key, value in known.items()},
            )


def _folders(args: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """Return the frame size of each folder of latents, the final one first."""
    sizes = [(height, width) for height, width in args.video_size]
    return {latents_folder(size, sizes[0]): size for size in sizes}


def _is_done(window: _Window) -> bool:
    """Whether the latents are up to date; if the video is newer, its content decides."""
    try:
        with safe_open(window.target, "pt") as file:
            metadata = dict(file.metadata() or {})
        digest = metadata.pop(CONTENT, "")
        if metadata != window.metadata:
            return False
        newer = window.video.stat().st_mtime_ns > window.target.stat().st_mtime_ns
        return not newer or digest == _content(window.video)
    except (OSError, SafetensorError):
        return False


def _content(video: Path) -> str:
    with video.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _clips(window: _Window, args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yield the uint8 clips [T, H, W, 3] of ``window``, resized for training."""
    fitted = functools.partial(read_fitted, window.video, window.size, args.geometry)
    if window.frames <= args.num_frames * len(window.starts):
        frames = fitted()  # the clips of a short window overlap: decode it once
        if len(frames) < window.frames:
            raise UserError(f"{window.video} ends before its header says: cut it again")
        yield from (frames[start : start + args.num_frames] for start in window.starts)
    else:
        yield from (fitted(start, args.num_frames) for start in window.starts)


def _load(args: argparse.Namespace, device: str) -> Callable[[_Window], None]:
    """Return the function that a process applies to each window."""
    vae = load_vae(args.vae_path, device)
    vae.prepare_for_batches()

    return functools.partial(_encode, args, vae)


def _encode(args: argparse.Namespace, vae: VideoVAE, window: _Window) -> None:
    digest, latents = _content(window.video), []
    for clip in _clips(window, args):
        video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].to(vae.device)
        pixels = video.float().div_(127.5).sub_(1)  # in place: it is four times the clip
        latents.append(vae.encode_latents(pixels)[0].cpu())
    tensors = {
        "latents": torch.stack(latents).contiguous(),
        "starts": torch.tensor(window.starts, dtype=torch.int64),
    }
    # not save_file(), which hides a full disk behind an error of its own
    content = save(tensors, metadata=window.metadata | {CONTENT: digest})
    atomic_write(window.target, lambda stream: stream.write(content))


def _check_space(windows: list[_Window], args: argparse.Namespace, itemsize: int) -> None:
    """Print how much will be written, with ``itemsize`` bytes per number.

    Raises:
        UserError: the volume does not have as much free space.
    """
    frames = 1 + (args.num_frames - 1) // 4
    clips = sum(len(window.starts) for window in windows)
    cells = sum(
        len(window.starts) * frames * math.prod(side // 8 for side in window.size)
        for window in windows
    )
    size = VideoVAE.channels * cells * itemsize
    of_windows = f"{len({window.video for window in windows})} windows"
    sizes = len({window.size for window in windows})
    also = f" at {sizes} sizes" if sizes > 1 else ""
    say(f"latents: {clips} clips of {of_windows}{also}, {size / 2**20:.1f} MiB on disk")
    emit("size", "latents", bytes=size, clips=clips)
    for window in windows[:1]:
        folder = window.target.parent
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size:
            raise UserError(
                f"latents need {size / 2**20:,.1f} MiB, the volume has {free / 2**20:,.1f} MiB "
                "free: enlarge spec.storage.size, or lower --clips_per_window"
            )


def _check_flags(args: argparse.Namespace) -> None:
    if args.num_frames < 1 or (args.num_frames - 1) % 4:
        raise UserError(f"--num_frames {args.num_frames}: the VAE takes 1 + 4k frames, e.g. 93")
    for height, width in args.video_size:
        if min(height, width) < 8 or height % 8 or width % 8:
            raise UserError(f"--video_size {height} {width}: both must be multiples of 8")
    if args.clips_per_window < 1:
        raise UserError(f"--clips_per_window {args.clips_per_window}: at least 1 is needed")
    if not (args.dataset_path[0] / "videos").is_dir():
        raise UserError(
            f"--dataset_path {args.dataset_path[0]}: the folder videos/ is missing: run the "
            "dataset stage first"
        )


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]]:
    made = Provenance.of(*(split / "videos" for split in args.dataset_path), args.vae_path)
    _check_flags(args)
    vae = load_vae(args.vae_path, "cpu", torch.float32)  # for its name; each process loads its own
    names = ("num_frames", "geometry", "seed", "clips_per_window")
    settings = {name: getattr(args, name) for name in names}
    remedy = "give the dataset another name (spec.dataset), or use the same settings"
    with contextlib.ExitStack() as stack:
        for folder, size in _folders(args).items():
            own = settings | {"size": list(size), "vae": vae.name}
            made.owned |= stack.enter_context(
                owned_in_splits(args.dataset_path, "videos", folder, own, remedy)
            )
        files, report = _encode_all(args, vae.name)
        made.failed = failed_items(report)
        return made.left(files), report.summary()


def _encode_all(args: argparse.Namespace, vae_name: str) -> tuple[list[Path], Report]:
    report = Report("latents")
    splits = {split: list(_windows(split, args, vae_name, report)) for split in args.dataset_path}
    for split, windows in splits.items():
        targets = {window.target for window in windows}
        for folder in _folders(args):
            for path in (split / folder).glob("[!.]*.safetensors"):
                if path not in targets:
                    path.unlink()
                    report.note("latents", str(path), "has no usable window and is removed")
    todo = [w for windows in splits.values() for w in windows if not _is_done(w)]
    gpu = str(args.device).startswith("cuda")
    _check_space(todo, args, 2 if gpu else 4)
    progress = ProgressReporter("latents", len(todo), "windows")
    failed: set[Path] = set()  # videos: a window is used at every size, or at none
    load = functools.partial(_load, args)
    folder = args.dataset_path[0].parent
    processes = devices(args.device, args.processes)
    for window, _, problem in process_items(load, todo, processes, folder) if todo else ():
        if problem is not None and window.video not in failed:
            report.drop("window", str(window.video), problem)
            failed.add(window.video)
        progress.advance()
    for window in (w for windows in splits.values() for w in windows if w.video in failed):
        window.target.unlink(missing_ok=True)
    good = {s: [w for w in ws if w.video not in failed] for s, ws in splits.items()}
    kept = [window for windows in good.values() for window in windows]
    videos = list(dict.fromkeys(window.video for window in kept))
    made = sum(window.video not in failed for window in todo)
    report.counts |= {
        "windows": len(videos),
        "clips": sum(len(w.starts) for w in kept),
        "made": made,
        "kept": len(kept) - made,
        "bytes_kept": sum(w.target.stat().st_size for w in kept),
    }
    write_report(args.dataset_path[0].parent, report, videos)
    report.show()
    first = args.dataset_path[0]
    if not good[first]:
        message = (
            f"--dataset_path {first}: none of its windows can be used (see above); a window needs "
            f"at least {args.num_frames} readable frames"
        )
        raise nothing_left(message, report)
    return [window.target for window in kept], report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    args.video_size = args.video_size or [(704, 1280)]
    return run_stage(lambda: _work(args), stage="latents")


if __name__ == "__main__":
    sys.exit(main())
