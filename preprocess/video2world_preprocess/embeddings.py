"""Compute a T5 embedding of every caption of a dataset (the embeddings stage)."""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video2world_common.events import ProgressReporter, say
from video2world_common.exit_codes import UserError
from video2world_common.files import NAME_BYTES, name_bytes, read_json, write_json
from video2world_common.folder_locks import owned_in_splits
from video2world_common.markers import Provenance
from video2world_common.paths import on_volume
from video2world_common.stage_runner import run_stage
from video2world_common.user_text import caption_in
from video2world_preprocess.captioning.records import restore_own_captions
from video2world_preprocess.device_pool import devices, process_items
from video2world_preprocess.item_faults import failed_items, nothing_left, reason_for
from video2world_preprocess.listing import usable_files
from video2world_preprocess.stage_report import Report, write_report
from video2world_preprocess.text.embedding_files import read_embedding, write_embedding
from video2world_preprocess.text.encoder import TextEncoder, batches, load_tokenizer

__all__ = ["main", "parser"]

FOLDER = "t5_xxl"
RECORD = ".made.json"  # the encoder and the captions of the files that this stage wrote


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags: the guide's."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.embeddings", description=__doc__
    )
    flags.add_argument(
        "--dataset_path",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders with metas/*.txt, such as datasets/NAME/train datasets/NAME/val",
    )
    flags.add_argument(
        "--max_length",
        type=int,
        default=512,
        help="maximum number of tokens per caption (default: 512)",
    )
    flags.add_argument(
        "--cache_dir",
        default="checkpoints/google-t5/t5-11b",
        help="folder or Hub id of the T5 encoder (default: checkpoints/google-t5/t5-11b)",
    )
    flags.add_argument(
        "--captioned_by",
        metavar="MODEL",
        help="the model whose captions the captions stage put into metas/; without it, a stage "
        "puts the dataset's own captions back",
    )
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument(
        "--processes", type=int, help="number of worker processes (default: one per GPU)"
    )
    return flags


def _captions(split: Path, report: Report) -> dict[str, str]:
    """Return the captions of ``split`` by stem; report unusable ones and videos without one."""
    found = {}
    for meta in usable_files(split / "metas", str(split / "metas"), ".txt", "caption", report):
        try:
            caption = caption_in(on_volume(meta).read_bytes())
            if name_bytes(f"{meta.stem}.pickle") > NAME_BYTES:
                raise UserError(
                    "its name is too long for the name of its embedding; rename the video and its "
                    f"caption to at most {NAME_BYTES - len('.pickle')} bytes without extension"
                )
        except ValueError as error:
            problem = str(error)
            is_empty = problem.startswith("is empty")
            reason = problem if is_empty else f"cannot be read: it {problem}"
            report.drop("caption", str(meta), reason)
        except (OSError, UserError) as error:
            report.drop("caption", str(meta), reason_for(error, split / FOLDER))
        else:
            found[meta.stem] = caption
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
    except (UserError, OSError) as error:
        say(f"embeddings: computing again: {reason_for(error, path.parent)}")
        report.note("embedding", str(path), "was damaged and is computed again")
        return False
    return True


def _outdated(
    split: Path, captions: dict[str, str], made_by: dict[str, Any], report: Report
) -> list[str]:
    """Return the stems to embed; remove embeddings of other captions or encoders.

    Embeddings that another program wrote, such as upstream's script, are kept until their caption
    changes.
    """
    folder = split / FOLDER
    try:
        record = read_json(folder / RECORD) or {}
    except ValueError:
        record = {}
    digests, found = record.get("captions", {}), record.get("found", {})
    same_encoder = all(record.get(key) == value for key, value in made_by.items())
    for path in folder.glob("[!.]*.pickle"):
        stem = path.stem
        if stem not in captions:
            report.note("embedding", str(path), "has no caption and is removed")
            path.unlink()
            continue
        recorded = digests.get(stem) or found.get(stem)
        has_changed = recorded is not None and recorded != _digest(captions[stem])
        if has_changed or (stem in digests and not same_encoder):
            path.unlink()
    todo = [stem for stem in captions if not _is_valid(folder / f"{stem}.pickle", report)]
    ours = {stem: _digest(captions[stem]) for stem in captions if stem in digests or stem in todo}
    # written before the embeddings, so that it covers what a killed run leaves behind
    theirs = {stem: _digest(captions[stem]) for stem in captions if stem not in ours}
    write_json(folder / RECORD, {**made_by, "captions": ours, "found": theirs})
    return todo


@dataclass(frozen=True)
class _Batch:
    """Captions to embed in one pass, each with the files to write its embedding to."""

    texts: tuple[str, ...]
    targets: tuple[tuple[Path, ...], ...]


def _load(cache_dir: str, max_length: int, device: str) -> Callable[[_Batch], dict[Path, str]]:
    """Return the function that a process applies to each batch.

    It returns why files could not be written, by path.
    """
    encoder = TextEncoder.load(cache_dir, device)

    def embed(batch: _Batch) -> None:
        embeddings = encoder.encode_batch(batch.texts, max_length)
        for embedding, paths in zip(embeddings, batch.targets, strict=True):
            if not np.isfinite(embedding).all():
                raise UserError(
                    f"{paths[0]}: the T5 encoder in {cache_dir} returns non-finite numbers: its "
                    "weights are damaged, download them again"
                )
            for path in paths:
                write_embedding(path, embedding)

    def work(batch: _Batch) -> dict[Path, str]:
        try:
            embed(batch)
        except Exception as error:
            reason = reason_for(error, batch.targets[0][0].parent)
            if len(batch.texts) == 1:
                return dict.fromkeys(batch.targets[0], reason)
        else:
            return {}
        # one by one, so that a bad caption does not affect the others
        singles = zip(batch.texts, batch.targets, strict=True)
        return {k: v for text, paths in singles for k, v in work(_Batch((text,), (paths,))).items()}

    return work


def _warn_of_cpu(args: argparse.Namespace, tokenizer: Any, texts: list[str]) -> None:
    """Estimate how long the CPU will take: hours with a large encoder."""
    from transformers import T5Config

    config = T5Config.from_pretrained(args.cache_dir)
    attention = 4 * config.d_model * config.d_kv * config.num_heads
    dense = (3 if config.is_gated_act else 2) * config.d_model * config.d_ff
    weights = config.num_layers * (attention + dense)
    tokens = sum(map(len, tokenizer(texts, truncation=True, max_length=args.max_length).input_ids))
    side = torch.ones(1024, 1024)
    started = time.monotonic()
    for _ in range(4):
        side @ side
    rate = 4 * 2 * 1024**3 / (time.monotonic() - started)
    seconds = 2 * weights * tokens / rate
    say(
        f"embeddings: WARNING: no GPU is used; {len(texts)} captions of {tokens} tokens take "
        f"about {_duration(seconds)} on this CPU"
    )


def _duration(seconds: float) -> str:
    """Format a duration, for example ``90 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]]:
    if args.max_length < 1:
        raise UserError(f"--max_length {args.max_length}: at least 1 token is needed")
    made_by = {"encoder": str(args.cache_dir), "maxLength": args.max_length}
    remedy = "give the dataset another name (spec.dataset), or use the same settings"
    captioned_by = {"captionedBy": args.captioned_by} if args.captioned_by else {}
    settings = made_by | captioned_by
    with owned_in_splits(args.dataset_path, "metas", FOLDER, settings, remedy) as owned:
        if os.environ.get("V2W_STAGE") and not args.captioned_by:
            for split in args.dataset_path:
                if count := restore_own_captions(split):
                    say(
                        f"embeddings: {count} captions in {split}/metas are the dataset's own again"
                    )
        made = Provenance.of(*(split / "metas" for split in args.dataset_path))
        made.owned = owned
        embeddings, report = _embed(args, made_by)
        made.failed = failed_items(report)
        return made.left(embeddings), report.summary()


def _embed(args: argparse.Namespace, made_by: dict[str, Any]) -> tuple[list[Path], Report]:
    report = Report("embeddings")
    pickles: list[Path] = []
    by_caption: dict[str, list[Path]] = {}
    total = 0
    samples: list[Path] = []
    failed: dict[Path, str | None] = {}
    for split in args.dataset_path:
        captions = _captions(split, report)
        if not captions:
            say(f"embeddings: {split} has no captions")
            continue
        total += len(captions)
        pickles += [split / FOLDER / f"{stem}.pickle" for stem in captions]
        samples += [v for stem in captions if (v := split / "videos" / f"{stem}.mp4").is_file()]
        for stem in _outdated(split, captions, made_by, report):
            by_caption.setdefault(captions[stem], []).append(split / FOLDER / f"{stem}.pickle")
    if not total:
        paths = " ".join(map(str, args.dataset_path))
        raise UserError(
            f"--dataset_path {paths}: no captions in metas/*.txt: run the dataset stage first"
        )
    made = sum(map(len, by_caption.values()))
    if by_caption:
        tokenizer = load_tokenizer(args.cache_dir)
        texts = list(by_caption)
        if args.device == "cpu":
            _warn_of_cpu(args, tokenizer, texts)
        work = [
            _Batch(tuple(batch), tuple(tuple(by_caption[text]) for text in batch))
            for batch in batches(tokenizer, texts, args.max_length)
        ]
        progress = ProgressReporter("embeddings", made, "captions")
        load = functools.partial(_load, str(args.cache_dir), args.max_length)
        folder = args.dataset_path[0].parent
        processes = devices(args.device, args.processes)
        for batch, errors, reason in process_items(load, work, processes, folder):
            targets = [path for paths in batch.targets for path in paths]
            failed |= dict.fromkeys(targets, reason) if errors is None else errors
            progress.advance(len(targets))
        for path, why in failed.items():
            report.drop("caption", str(path), why or "")
        if len(failed) == total:
            raise nothing_left(f"no caption could be embedded: {why}", report)
    report.counts |= {
        "embeddings": total - len(failed),
        "made": made - len(failed),
        "kept": total - made,
        "different_captions_made": len(by_caption),
        "bytes_kept": sum(
            p.stat().st_size for s in args.dataset_path for p in (s / FOLDER).glob("[!.]*.pickle")
        ),
    }
    write_report(args.dataset_path[0].parent, report, samples)
    report.show()
    return [path for path in pickles if path not in failed], report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="embeddings")


if __name__ == "__main__":
    sys.exit(main())
