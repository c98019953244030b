"""Download the base weights of the selected models at pinned revisions (the download stage).

Flags and folders are those of the guide: a repository's files are in <checkpoint_dir>/<repo_id>.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_common import per_clip_actions
from video2world_common.actions_kind import actions_kind_of
from video2world_common.attention_pattern import pattern_of
from video2world_common.events import ProgressReporter, emit, say
from video2world_common.exit_codes import UserError
from video2world_common.files import read_json, write_json
from video2world_common.folder_locks import locked
from video2world_common.markers import Provenance
from video2world_common.stage_runner import run_stage
from video2world_preprocess.flags import note_unused_flags
from video2world_preprocess.hub.client import Hub, digest_of, digest_of_file, explained
from video2world_preprocess.stage_report import Report, write_report

__all__ = ["Repository", "main", "parser", "repositories"]


@dataclass(frozen=True)
class Repository:
    """What to download from a repository on the Hub.

    ``files`` must exist afterwards. With ``only`` nothing else is downloaded; otherwise everything
    except files that match the patterns ``ignore``.
    """

    repo_id: str
    revision: str
    files: tuple[str, ...] = ()
    only: bool = False
    ignore: tuple[str, ...] = ()


# the revisions that scripts/download_checkpoints.py of the cosmos-predict2 repository pins
_MODELS = {
    "2B": ("nvidia/Cosmos-Predict2-2B-Video2World", "f50c09f5d8ab133a90cac3f4886a6471e9ba3f18"),
    "14B": ("nvidia/Cosmos-Predict2-14B-Video2World", "03b03a377fede782647afac998f674d9f358e319"),
}
_ACTION_CONDITIONED = Repository(  # upstream pins no revision of it
    per_clip_actions.REPOSITORY, "main", files=(per_clip_actions.WEIGHTS_FILE,), only=True
)
_TEXT_ENCODER = Repository(
    "google-t5/t5-11b",
    "90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3",
    files=("config.json", "pytorch_model.bin", "spiece.model"),
    ignore=("tf_model.h5",),
)
_GUARDRAIL = (
    Repository("nvidia/Cosmos-Guardrail1", "d6d4bfa899a71454a700907664f3e88f503950cf"),
    Repository(
        "meta-llama/Llama-Guard-3-8B",
        "7327bd9f6efbbe6101dc6cc4736302b3cbb6e425",
        ignore=("original/*",),
    ),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags: the guide's, and ``--guardrail``."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.download", description=__doc__
    )
    flags.add_argument(
        "--model_sizes",
        nargs="*",
        choices=("Tiny", "2B", "14B"),
        default=["2B", "14B"],
        help="models to download (default: 2B 14B)",
    )
    flags.add_argument(
        "--model_types",
        nargs="*",
        choices=("video2world", "sample_action_conditioned"),
        default=["video2world"],
        help="video2world: the base weights; sample_action_conditioned: those of the published "
        "action-conditioned network of size 2B, which has one file and no text "
        "(default: video2world)",
    )
    flags.add_argument(
        "--fps", nargs="*", choices=("10", "16"), default=["16"], help="of video2world"
    )
    flags.add_argument(
        "--resolution", nargs="*", choices=("480", "720"), default=["720"], help="of video2world"
    )
    flags.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"))
    flags.add_argument(
        "--natten", action="store_true", help="also download the sparse-attention variant"
    )
    flags.add_argument(
        "--natten_only",
        action="store_true",
        help="download the sparse-attention variant instead of the dense one",
    )
    flags.add_argument(
        "--guardrail", action="store_true", help="also download upstream's guardrail models"
    )
    flags.add_argument(
        "--weights", type=Path, help="own weights to train from; checked if they exist already"
    )
    flags.add_argument(
        "--attention_pattern",
        choices=("dense", "sparse"),
        default="dense",
        help="attention that --weights must have been trained with (default: dense)",
    )
    flags.add_argument(
        "--action_conditioning",
        choices=("none", "per_frame", "per_clip"),
        default="none",
        help="how the model in training reads actions, which --weights must fit (default: none)",
    )
    flags.add_argument("--dry-run", action="store_true", help="only print what would be downloaded")
    return flags


def repositories(args: argparse.Namespace) -> list[Repository]:
    """Return what the flags select from the Hub; nothing for Tiny.

    Raises:
        UserError: the flags contradict each other.
    """
    for name in ("natten", "natten_only"):
        if getattr(args, name) and "720" not in args.resolution:
            raise UserError(
                f"--{name}: the sparse-attention weights exist for --resolution 720 only"
            )
    found = []
    sizes = [size for size in dict.fromkeys(args.model_sizes) if size in _MODELS]
    base = "video2world" in args.model_types
    conditioned = "sample_action_conditioned" in args.model_types and "2B" in sizes
    for size in sizes:
        if not base and not (conditioned and size == "2B"):
            continue
        names = []
        if base and not args.natten_only:
            names = [f"model-{res}p-{fps}fps.pt" for res in args.resolution for fps in args.fps]
        if base and (args.natten or args.natten_only):
            names += [f"model-720p-{fps}fps-natten.pt" for fps in args.fps]
        repo_id, revision = _MODELS[size]
        # the action-conditioned network has the same VAE
        found.append(Repository(repo_id, revision, (*names, "tokenizer/tokenizer.pth"), only=True))
    if conditioned:
        found.append(_ACTION_CONDITIONED)
    if base and found:
        found.append(_TEXT_ENCODER)
    return [*found, *(_GUARDRAIL if args.guardrail else ())]


def _fetch(repository: Repository, folder: Path) -> list[Path]:
    """Download a repository's files to ``folder``, verify them and return their paths.

    This is done once for all resources on a volume: others wait, and then find the files.

    Raises:
        UserError: no access, or offline and incomplete.
        ConnectionError: the download failed.
    """
    name = repository.repo_id
    with locked(folder / ".download-lock"):
        verified = _Verified(folder, repository)
        if verified.is_complete():
            say(f"download: {name} is complete")
            return verified.paths
        if _is_offline():
            _require(repository, folder)
            say(f"download: {name} is used unverified: checksums cannot be fetched offline")
            return [folder / file for file in repository.files]
        # list the files first: without access, snapshot_download() accepts existing files
        listed = Hub(name, "model", repository.revision, otherwise=_by_hand(folder)).files(
            recursive=True
        )
        for attempt in (1, 2):
            _snapshot(repository, folder)
            _require(repository, folder)
            damaged = verified.check(listed)
            if not damaged:
                return verified.paths
            say(f"download: {name}: {', '.join(damaged)} damaged (attempt {attempt})")
    raise ConnectionError(
        f"{name}: {', '.join(damaged)} did not have the Hub's checksum twice; check the disk and "
        "the mirror (HF_ENDPOINT), and run it again"
    )


def _by_hand(folder: Path) -> str:
    return f"copy the files to {folder} and set HF_HUB_OFFLINE=1"


def _snapshot(repository: Repository, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    with explained(repository.repo_id, otherwise=_by_hand(folder)):
        snapshot_download(
            repository.repo_id,
            revision=repository.revision,
            local_dir=folder,
            allow_patterns=list(repository.files) if repository.only else None,
            ignore_patterns=list(repository.ignore) or None,
        )


def _require(repository: Repository, folder: Path) -> None:
    """Check that no required file is missing in ``folder``.

    Raises:
        UserError: one is, and HF_HUB_OFFLINE is set.
        ConnectionError: one is.
    """
    name = repository.repo_id
    missing = ", ".join(file for file in repository.files if not (folder / file).is_file())
    if missing and _is_offline():
        raise UserError(
            f"{name} is incomplete in {folder}, {missing} missing, and HF_HUB_OFFLINE forbids "
            "downloading it: unset HF_HUB_OFFLINE, or copy the files there"
        )
    if missing:
        raise ConnectionError(
            f"{name}: {missing} missing after the download: check HF_ENDPOINT (a mirror may lack "
            f"it), or {_by_hand(folder)}"
        )


class _Verified:
    """The files of a repository that were verified against the Hub's checksums."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self._folder, self._revision, self._needed = folder, repository.revision, repository.files
        self._path = folder / ".verified.json"
        try:
            record = read_json(self._path) or {}
        except ValueError:
            record = {}
        same = record.get("revision") == repository.revision
        self._files: dict[str, list[int]] = record["files"] if same else {}

    @property
    def paths(self) -> list[Path]:
        """The paths of all verified files."""
        return [self._folder / file for file in self._files]

    def _stamp(self, file: str) -> list[int] | None:
        try:
            status = (self._folder / file).stat()
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def is_complete(self) -> bool:
        """Whether all required files were verified and have not changed since."""
        intact = all(self._stamp(file) == stamp for file, stamp in self._files.items())
        return bool(self._files) and intact and set(self._needed) <= set(self._files)

    def check(self, listed: Sequence[Any]) -> list[str]:
        """Verify the ``listed`` files of the Hub; remove damaged ones and return their names."""
        folder = self._folder
        existing = [f for f in listed if (folder / f.path).is_file()]
        new = [f for f in existing if self._files.get(f.path) != self._stamp(f.path)]
        with ThreadPoolExecutor() as threads:  # hashing releases the GIL
            digests = threads.map(lambda f: digest_of_file(folder / f.path, digest_of(f)[0]), new)
            damaged = [f for f, found in zip(new, digests, strict=True) if found != digest_of(f)[1]]
        for file in damaged:
            (folder / file.path).unlink()
            (folder / f".cache/huggingface/download/{file.path}.metadata").unlink(missing_ok=True)
        names = {file.path for file in damaged}
        stamps = {f.path: self._stamp(f.path) for f in existing if f.path not in names}
        self._files = {path: stamp for path, stamp in stamps.items() if stamp}
        write_json(self._path, {"revision": self._revision, "files": self._files})
        return sorted(names)


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")


def _check_weights(args: argparse.Namespace) -> None:
    """Refuse weights that do not fit the model now, when no stage holds a GPU yet.

    Raises:
        UserError: the weights were trained with the other attention pattern, or with actions that
            the model does not read in the same way.
    """
    if args.weights is None:
        return
    try:
        found, kind = pattern_of(args.weights), actions_kind_of(args.weights)
    except ValueError:
        return  # training reports a damaged record
    if found not in (None, args.attention_pattern):
        raise UserError(
            f"spec.training.attentionPattern: {args.weights} (spec.model.weights) was trained with "
            f"{found} attention; use {found.capitalize()}, or other weights"
        )
    if kind not in (None, "none", args.action_conditioning):
        variant = "".join(part.capitalize() for part in kind.split("_"))
        raise UserError(
            f"spec.training.conditioning: {args.weights} (spec.model.weights) was trained with "
            f"actions; use actions: {{variant: {variant}}}, or other weights"
        )


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]]:
    _check_weights(args)
    wanted = repositories(args)
    tiny = "Tiny" in args.model_sizes
    folders = [args.checkpoint_dir / repository.repo_id for repository in wanted]
    for repository, folder in zip(wanted, folders, strict=True):
        what = ", ".join(repository.files) if repository.only else "all files"
        if repository.ignore:
            what += f" except {', '.join(repository.ignore)}"
        say(f"download: {repository.repo_id}@{repository.revision[:12]} -> {folder}: {what}")
    if tiny:
        say(f"download: Tiny is created in {args.checkpoint_dir / 'video2world'}")
    if args.dry_run:
        emit("dryrun", "download", repositories=[r.repo_id for r in wanted], tiny=tiny)
        return Provenance(), {"repositories": 0, "dryRun": True}
    progress = ProgressReporter("download", len(wanted) + tiny, "repositories")
    report = Report("download", {"repositories": len(folders) + 2 * tiny})
    report.counts["bytes_kept"] = 0
    made = Provenance()
    for repository, folder in zip(wanted, folders, strict=True):
        files = _fetch(repository, folder)
        made.left(files)
        size = sum(file.stat().st_size for file in files)
        report.note("repository", repository.repo_id, f"{size / 1e9:.2f} GB in {folder}")
        report.counts["bytes_kept"] += size
        progress.advance()
    if tiny:
        from video2world_preprocess.tiny_weights import (
            TINY_T5,
            TINY_VAE,
            write_tiny_t5,
            write_tiny_vae,
        )

        vae, t5 = args.checkpoint_dir / TINY_VAE, args.checkpoint_dir / TINY_T5
        write_tiny_vae(vae)
        write_tiny_t5(t5)
        made.left(path for folder in (vae, t5) for path in folder.iterdir() if path.is_file())
        progress.advance()
    write_report(args.checkpoint_dir, report)
    report.show()
    return made, report.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    if not set(args.model_sizes) & set(_MODELS):
        note_unused_flags(
            args, parser(), ("fps", "resolution", "natten", "natten_only"), "for Tiny"
        )
    if args.dry_run:
        os.environ.pop("V2W_INPUTS_HASH", None)  # a dry run must not mark the stage as finished
    return run_stage(lambda: _work(args), stage="download")


if __name__ == "__main__":
    sys.exit(main())
