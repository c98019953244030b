"""The embeddings stage: every caption of a dataset as a T5 embedding beside its video."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .events import Progress, say
from .files import PARTIAL_PREFIX, read_json, write_json
from .pickles import read_embedding, write_embedding
from .report import Report
from .stage import UserError, run_stage
from .text import TextEncoder

__all__ = ["main", "parser"]

FOLDER = "t5_xxl"
RECORD = ".made.json"  # which encoder and which captions our own pickles come from


def parser() -> argparse.ArgumentParser:
    """The command's flags: the guide's."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.embeddings", description=__doc__
    )
    flags.add_argument(
        "--dataset_path", type=Path, nargs="+", required=True, metavar="FOLDER",
        help="folders with metas/*.txt, as datasets/NAME/train datasets/NAME/val",
    )  # fmt: skip
    flags.add_argument("--max_length", type=int, default=512, help="tokens of a caption (512)")
    flags.add_argument(
        "--cache_dir", default="checkpoints/google-t5/t5-11b",
        help="folder or Hub id of the T5 encoder (checkpoints/google-t5/t5-11b)",
    )  # fmt: skip
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return flags


def _captions(split: Path, report: Report) -> dict[str, str]:
    """The captions of ``split`` by stem; videos without one are named in ``report``."""
    found = {}
    for meta in sorted((split / "metas").glob("[!.]*.txt")):
        try:
            caption = meta.read_text(encoding="utf-8").strip()
        except (UnicodeDecodeError, OSError) as error:
            report.drop("caption", str(meta), f"cannot be read ({error})")
            continue
        if caption:
            found[meta.stem] = caption
        else:
            report.drop("caption", str(meta), "is empty: write one sentence about the video")
    for video in sorted((split / "videos").glob("[!.]*.mp4")):
        if not (split / "metas" / f"{video.stem}.txt").exists():
            report.drop(
                "caption", str(video), f"has no caption: write it to metas/{video.stem}.txt"
            )
    return found


def _digest(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:16]


def _is_valid(path: Path, report: Report) -> bool:
    try:
        read_embedding(path)
    except FileNotFoundError:
        return False
    except UserError as error:
        say(f"embeddings: made anew: {error}")
        report.note("embedding", str(path), "was damaged and is made anew")
        return False
    return True


def _outdated(
    split: Path, captions: dict[str, str], made_by: dict[str, Any], report: Report
) -> list[str]:
    """The stems to embed. Removes what belongs to no caption, another caption or encoder.

    Pickles that are not in our record (made by upstream's script) are kept as they are.
    """
    folder = split / FOLDER
    try:
        record = read_json(folder / RECORD) or {}
    except ValueError:
        record = {}
    digests = record.get("captions", {})
    same_encoder = all(record.get(key) == value for key, value in made_by.items())
    for path in folder.glob("[!.]*.pickle"):
        stem = path.stem
        if stem not in captions:
            report.note("embedding", str(path), "belonged to no caption and is removed")
            path.unlink()
        elif stem in digests and not (same_encoder and digests[stem] == _digest(captions[stem])):
            path.unlink()
    for path in folder.glob(f"{PARTIAL_PREFIX}*"):
        path.unlink()
    todo = [stem for stem in captions if not _is_valid(folder / f"{stem}.pickle", report)]
    ours = {stem: _digest(captions[stem]) for stem in captions if stem in digests or stem in todo}
    # written before the pickles: what a killed run leaves behind is judged by it
    write_json(folder / RECORD, {**made_by, "captions": ours})
    return todo


def _work(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    if args.max_length < 1:
        raise UserError(f"--max_length {args.max_length}: at least 1 token is needed")
    report = Report("embeddings")
    made_by = {"encoder": str(args.cache_dir), "maxLength": args.max_length}
    by_caption: dict[str, list[Path]] = {}
    total = 0
    for split in args.dataset_path:
        captions = _captions(split, report)
        if not captions:
            say(f"embeddings: {split} has no captions")
            continue
        total += len(captions)
        for stem in _outdated(split, captions, made_by, report):
            by_caption.setdefault(captions[stem], []).append(split / FOLDER / f"{stem}.pickle")
    if not total:
        paths = " ".join(map(str, args.dataset_path))
        raise UserError(
            f"--dataset_path {paths}: no captions in metas/*.txt: run the dataset stage first"
        )
    made = sum(map(len, by_caption.values()))
    if by_caption:
        encoder = TextEncoder.load(args.cache_dir, args.device)
        progress = Progress("embeddings", made, "captions")
        for texts, embeddings in encoder.batches(list(by_caption), args.max_length):
            for text, embedding in zip(texts, embeddings, strict=True):
                if not np.isfinite(embedding).all():
                    raise UserError(
                        f"{by_caption[text][0]}: the T5 encoder in {args.cache_dir} gives "
                        "non-finite numbers: its weights are damaged, download them again"
                    )
                for path in by_caption[text]:
                    write_embedding(path, embedding)
                progress.advance(len(by_caption[text]))
    report.counts |= {"embeddings": total, "made": made, "kept": total - made}
    report.show()
    outputs = [str(p / FOLDER) for p in args.dataset_path if (p / FOLDER).is_dir()]
    return outputs, report.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="embeddings")


if __name__ == "__main__":
    sys.exit(main())
