"""List and read the files of a data set on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from video2world_operator.preflight.machine import SECONDS, token

__all__ = ["Listing", "NotThere", "Repository"]

MOST_PAGES = 20  # of a listing; the Hub's have up to 1,000 entries
LARGEST = 16 << 20  # bytes of an answer


class NotThere(LookupError):
    """The repository has no such revision, folder or file."""


@dataclass(frozen=True)
class Listing:
    """Sizes in bytes of the files in a folder by path; not ``complete`` if there are too many."""

    sizes: Mapping[str, int]
    complete: bool = True


@dataclass(frozen=True)
class Repository:
    """A data set ``repo_id`` at a revision (``main`` if empty).

    The methods raise :class:`NotThere`, OSError (the Hub cannot be reached or refuses access) and
    ValueError (an answer that is not what the Hub's protocol says).
    """

    repo_id: str
    revision: str = ""

    @property
    def _revision(self) -> str:
        return urllib.parse.quote(self.revision or "main", safe="")

    def check_revision(self) -> None:
        """Check that the revision exists."""
        self._get(f"/api/datasets/{self.repo_id}/revision/{self._revision}")

    def read_json(self, path: str) -> Any:
        """Return the content of a JSON file."""
        address = f"/datasets/{self.repo_id}/resolve/{self._revision}/{urllib.parse.quote(path)}"
        return json.loads(self._get(address)[0])

    def files(self, folder: str, *, recursive: bool = False) -> Listing:
        """List the files in ``folder``."""
        address = f"/api/datasets/{self.repo_id}/tree/{self._revision}/{urllib.parse.quote(folder)}"
        address += "?recursive=True" if recursive else ""
        sizes: dict[str, int] = {}
        for _ in range(MOST_PAGES):
            content, address = self._get(address)
            for entry in json.loads(content):
                if entry["type"] == "file":
                    sizes[str(entry["path"])] = int(entry["size"])
            if not address:
                return Listing(sizes)
        return Listing(sizes, complete=False)

    def _get(self, address: str) -> tuple[bytes, str]:
        """Return the content at an address of the Hub, and the address of the next page."""
        base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        request = urllib.request.Request(base + address)
        if known := token():
            request.add_unredirected_header("Authorization", f"Bearer {known}")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                content = answer.read(LARGEST + 1)
                link = answer.headers.get("Link", "")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise NotThere(address) from None
            raise
        if len(content) > LARGEST:
            raise ValueError(f"{address}: more than {LARGEST} bytes")
        following = re.search(r'<([^>]+)>; *rel="next"', link)
        # The token must not follow a link to another host.
        inside = following is not None and following[1].startswith(f"{base}/")
        return content, following[1].removeprefix(base) if following and inside else ""
