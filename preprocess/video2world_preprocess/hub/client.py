"""Access the Hugging Face Hub: list repositories, read files, explain errors."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from video2world_common.exit_codes import UserError
from video2world_preprocess.hub.range_reader import (
    FIRST_PAUSE,
    Address,
    RemoteFile,
    is_transport_error,
)

__all__ = ["Hub", "NoSuchEntry", "digest_of", "digest_of_file", "explained"]

ATTEMPTS = 4
Result = TypeVar("Result")


class NoSuchEntry(Exception):
    """The repository has no such file or folder."""


def digest_of(file: Any) -> tuple[str, str]:
    """Return the kind and the hexadecimal digits of the checksum that the Hub lists for ``file``.

    The kind is ``sha256`` for large files (LFS), else ``git`` for the SHA-1 of git's blob object.
    """
    return ("sha256", file.lfs.sha256) if file.lfs is not None else ("git", file.blob_id)


def digest_of_file(path: Path, kind: str) -> str:
    """Return the hexadecimal digest of a file on disk; for ``kind`` see :func:`digest_of`."""
    with path.open("rb") as stream:
        if kind == "sha256":
            return hashlib.file_digest(stream, "sha256").hexdigest()
        return _git_digest(stream.read())


def _git_digest(content: bytes) -> str:
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def _page(repo_id: str, repo_type: str) -> str:
    return f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


@contextlib.contextmanager
def explained(repo_id: str, repo_type: str = "model", *, otherwise: str = "") -> Iterator[None]:
    """Turn the Hub's errors into messages that say what to do.

    Args:
        otherwise: how to do without the Hub.

    Raises:
        UserError: no access, or no such repository or revision.
        NoSuchEntry: no such file or folder.
        ConnectionError: the Hub cannot be reached or fails; another attempt may succeed.
    """
    from huggingface_hub import errors, get_token

    page = _page(repo_id, repo_type)
    token = "the token in use" if get_token() else "no token is set, and anonymous access"
    give = "HF_TOKEN, or spec.credentials.huggingFaceTokenSecret"
    unreachable = (
        f"{repo_id}: the Hub cannot be reached or did not respond completely ({{}}): check the "
        f"network and HF_ENDPOINT{f', or {otherwise}' if otherwise else ''}"
    )
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            with explained(repo_id, repo_type, otherwise=otherwise):
                raise error.__cause__ from None
        raise ConnectionError(unreachable.format(str(error).strip().splitlines()[0])) from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"{repo_id}: HF_HUB_OFFLINE forbids downloading it: unset HF_HUB_OFFLINE"
            f"{f', or {otherwise}' if otherwise else ''}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{repo_id}: the requested revision is not on the Hub ({page}); correct it, or update "
            "the mirror (HF_ENDPOINT)"
        ) from None
    except errors.EntryNotFoundError as error:
        raise NoSuchEntry(str(error)) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if isinstance(error, errors.GatedRepoError) or status == 403:
            raise UserError(
                f"{repo_id} is gated and {token} has no access to it: accept the licence on "
                f"{page} with your account, then set a read token of that account ({give})"
            ) from None
        if status == 401:
            raise UserError(
                f"{repo_id}: the Hub refused the request (401), {token} is not valid for it: "
                f"create a read token on https://huggingface.co/settings/tokens and set it ({give})"
            ) from None
        if status == 404:
            raise UserError(
                f"{repo_id}: the repository or a file of it is not on the Hub ({page}); correct "
                "its name, or update the mirror (HF_ENDPOINT)"
            ) from None
        raise ConnectionError(f"{repo_id}: the Hub responds with {status}; run it again") from None
    except Exception as error:
        if is_transport_error(error):
            raise ConnectionError(unreachable.format(error or type(error).__name__)) from None
        raise


class Hub:
    """A repository at one commit. For ``otherwise`` see :func:`explained`."""

    def __init__(
        self,
        repo_id: str,
        repo_type: Literal["model", "dataset"] = "model",
        revision: str | None = None,
        *,
        otherwise: str = "",
    ) -> None:
        from huggingface_hub import HfApi

        self.repo_id, self.repo_type, self._otherwise = repo_id, repo_type, otherwise
        self._api = HfApi()
        info = self._retry(
            lambda: self._api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        )
        assert info.sha is not None  # absent only if other fields are requested
        self.commit: str = info.sha

    def _retry(self, request: Callable[[], Result]) -> Result:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with explained(self.repo_id, self.repo_type, otherwise=self._otherwise):
                    return request()
            except ConnectionError:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError

    def files(self, folder: str = "", *, recursive: bool = False) -> list[Any]:
        """Return the files in ``folder`` as huggingface_hub's RepoFile (path, size, lfs, blob_id).

        Raises:
            NoSuchEntry: no such folder.
        """
        found = self._retry(
            lambda: list(
                self._api.list_repo_tree(
                    self.repo_id,
                    folder or None,
                    recursive=recursive,
                    revision=self.commit,
                    repo_type=self.repo_type,
                )
            )
        )
        return [entry for entry in found if hasattr(entry, "blob_id")]

    def remote(self, path: str, size: int) -> RemoteFile:
        """Return a file of ``size`` bytes, to be read by ranges."""
        return RemoteFile(f"{self.repo_id}/{path}", size, lambda: self._locate(path))

    def _locate(self, path: str) -> Address:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # lazy

        url = hf_hub_url(self.repo_id, path, repo_type=self.repo_type, revision=self.commit)
        found = self._retry(lambda: get_hf_file_metadata(url))
        is_hub = urlsplit(found.location).netloc == urlsplit(constants.ENDPOINT).netloc
        # the token is for the Hub: a signed address on another host must not receive it
        return Address(found.location, build_hf_headers() if is_hub else {})

    def download(self, file: Any, folder: Path) -> Path:
        """Download one of :meth:`files` to ``folder``, resuming an earlier attempt; verify it.

        Raises:
            ConnectionError: the download failed, or does not have the Hub's checksum.
        """
        from huggingface_hub import hf_hub_download

        def fetch() -> str:
            return hf_hub_download(
                self.repo_id,
                file.path,
                repo_type=self.repo_type,
                revision=self.commit,
                local_dir=folder,
            )

        path = Path(self._retry(fetch))
        kind, expected = digest_of(file)
        if (found := digest_of_file(path, kind)) != expected:
            path.unlink()
            raise ConnectionError(
                f"{self.repo_id}/{file.path}: the checksum is {found}, on the Hub it is "
                f"{expected}; it has been removed, run it again"
            )
        return path

    def read(self, path: str, limit: int = 64 << 20) -> bytes:
        """Return the content of a small file, verified against the Hub's checksum.

        Raises:
            NoSuchEntry: no such file.
            UserError: the file is larger than ``limit`` bytes.
            ConnectionError: the content does not have the Hub's checksum.
        """
        folder = path.rpartition("/")[0]
        entry = next((file for file in self.files(folder) if file.path == path), None)
        if entry is None:
            raise NoSuchEntry(path)
        if entry.size > limit:
            raise UserError(f"{self.repo_id}/{path}: {entry.size} bytes, far more than expected")
        content = b"".join(self.remote(path, entry.size).fetch(0, entry.size))
        kind, expected = digest_of(entry)
        sha256 = kind == "sha256"
        found = hashlib.sha256(content).hexdigest() if sha256 else _git_digest(content)
        if found != expected:
            raise ConnectionError(
                f"{self.repo_id}/{path}: the checksum is {found}, on the Hub it is {expected}; "
                "run it again"
            )
        return content
