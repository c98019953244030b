"""The download stage: the base weights of the chosen models, at pinned revisions.

Flags and places are the guide's: a repository's files lie in ``<checkpoint_dir>/<repo_id>``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .events import Progress, emit, say
from .stage import UserError, run_stage

__all__ = ["Repository", "main", "parser", "repositories"]


@dataclass(frozen=True)
class Repository:
    """What to fetch of a Hub repository.

    ``files`` must be there afterwards; with ``only`` nothing else is fetched, without it all but
    what matches ``ignore``.
    """

    repo_id: str
    revision: str
    files: tuple[str, ...] = ()
    only: bool = False
    ignore: tuple[str, ...] = ()


# pinned as upstream pins them (facts sheet 6)
_MODELS = {
    "2B": ("nvidia/Cosmos-Predict2-2B-Video2World", "f50c09f5d8ab133a90cac3f4886a6471e9ba3f18"),
    "14B": ("nvidia/Cosmos-Predict2-14B-Video2World", "03b03a377fede782647afac998f674d9f358e319"),
}
_TEXT_ENCODER = Repository(
    "google-t5/t5-11b", "90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3",
    files=("config.json", "pytorch_model.bin", "spiece.model"), ignore=("tf_model.h5",),
)  # fmt: skip
_GUARDRAIL = (
    Repository("nvidia/Cosmos-Guardrail1", "d6d4bfa899a71454a700907664f3e88f503950cf"),
    Repository(
        "meta-llama/Llama-Guard-3-8B", "7327bd9f6efbbe6101dc6cc4736302b3cbb6e425",
        ignore=("original/*",),
    ),
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command's flags: the guide's, and ``--guardrail``."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.download", description=__doc__
    )
    flags.add_argument("--model_sizes", nargs="*", choices=("Tiny", "2B", "14B"),
                       default=["2B", "14B"], help="models to fetch (2B 14B)")  # fmt: skip
    flags.add_argument("--model_types", nargs="*", choices=("video2world",),
                       default=["video2world"])  # fmt: skip
    flags.add_argument("--fps", nargs="*", choices=("10", "16"), default=["16"])
    flags.add_argument("--resolution", nargs="*", choices=("480", "720"), default=["720"])
    flags.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"))
    flags.add_argument("--natten", action="store_true", help="the sparse-attention variant too")
    flags.add_argument("--guardrail", action="store_true", help="upstream's guardrail models too")
    flags.add_argument("--dry-run", action="store_true", help="only say what would be fetched")
    return flags


def repositories(args: argparse.Namespace) -> list[Repository]:
    """What the flags ask for from the Hub; nothing for Tiny."""
    if args.natten and "720" not in args.resolution:
        raise UserError("--natten: the sparse-attention weights exist for --resolution 720 only")
    found = []
    sizes = [size for size in dict.fromkeys(args.model_sizes) if size in _MODELS]
    for size in sizes if args.model_types else ():
        names = [f"model-{res}p-{fps}fps.pt" for res in args.resolution for fps in args.fps]
        if args.natten:
            names += [f"model-720p-{fps}fps-natten.pt" for fps in args.fps]
        repo_id, revision = _MODELS[size]
        found.append(Repository(repo_id, revision, (*names, "tokenizer/tokenizer.pth"), only=True))
    if found:
        found.append(_TEXT_ENCODER)
    return [*found, *(_GUARDRAIL if args.guardrail else ())]


def _fetch(repository: Repository, folder: Path) -> None:
    from huggingface_hub import errors, snapshot_download

    name = repository.repo_id
    try:
        snapshot_download(
            name, revision=repository.revision, local_dir=folder,
            allow_patterns=list(repository.files) if repository.only else None,
            ignore_patterns=list(repository.ignore) or None,
        )  # fmt: skip
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            _explain_status(name, error.__cause__)
        _explain_absence(name, folder, error)
    except errors.HfHubHTTPError as error:
        _explain_status(name, error)
        raise
    missing = [file for file in repository.files if not (folder / file).is_file()]
    if missing:
        # where the Hub cannot be reached, snapshot_download settles for what lies there already
        _explain_absence(name, folder, f"{', '.join(missing)} missing after the download")


def _explain_status(name: str, error: Any) -> None:
    """Raise what the user can mend; other answers (overload, ...) are worth another attempt."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{name}"
    status = error.response.status_code if error.response is not None else None
    token = "the token in use" if get_token() else "no token is set, and anonymous access"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        raise UserError(
            f"{name} is gated and {token} has no access to it: accept the licence on {page} with "
            "your account, then give a read token (HF_TOKEN, or "
            "spec.credentials.huggingFaceTokenSecret)"
        ) from None
    if status == 401:
        raise UserError(
            f"{name}: the Hub refused the request (401), {token} is not valid for it: make a read "
            "token on https://huggingface.co/settings/tokens and give it as HF_TOKEN, or in "
            "spec.credentials.huggingFaceTokenSecret"
        ) from None
    if status == 404:
        raise UserError(
            f"{name}: the repository, its pinned revision or a file is not on the Hub ({page}); "
            "if you use a mirror (HF_ENDPOINT), bring it up to date"
        ) from None


def _explain_absence(name: str, folder: Path, reason: object) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        raise UserError(
            f"{name} is not complete in {folder} and HF_HUB_OFFLINE forbids fetching it: unset "
            "HF_HUB_OFFLINE, or copy the files there"
        ) from None
    first = str(reason).strip().splitlines()[0]
    raise ConnectionError(
        f"{name}: the Hub cannot be reached or did not answer in full ({first}): check the "
        f"network and HF_ENDPOINT, or copy the files to {folder}"
    ) from None


def _work(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    wanted = repositories(args)
    tiny = "Tiny" in args.model_sizes
    folders = [args.checkpoint_dir / repository.repo_id for repository in wanted]
    for repository, folder in zip(wanted, folders, strict=True):
        what = ", ".join(repository.files) if repository.only else "all files"
        if repository.ignore:
            what += f" but {', '.join(repository.ignore)}"
        say(f"download: {repository.repo_id}@{repository.revision[:12]} -> {folder}: {what}")
    if tiny:
        say(f"download: Tiny is made here, in {args.checkpoint_dir / 'video2world'}")
    if args.dry_run:
        emit("dryrun", "download", repositories=[r.repo_id for r in wanted], tiny=tiny)
        return [], {"repositories": 0, "dryRun": True}
    progress = Progress("download", len(wanted) + tiny, "repositories")
    for repository, folder in zip(wanted, folders, strict=True):
        _fetch(repository, folder)
        progress.advance()
    if tiny:
        from .tiny_weights import TINY_T5, TINY_VAE, write_tiny_t5, write_tiny_vae

        folders += [args.checkpoint_dir / TINY_VAE, args.checkpoint_dir / TINY_T5]
        write_tiny_vae(folders[-2])
        write_tiny_t5(folders[-1])
        progress.advance()
    return [str(folder) for folder in folders], {"repositories": len(folders)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    if args.dry_run:
        os.environ.pop("V2W_INPUTS_HASH", None)  # a stage that was not done is not marked as done
    return run_stage(lambda: _work(args), stage="download")


if __name__ == "__main__":
    sys.exit(main())
