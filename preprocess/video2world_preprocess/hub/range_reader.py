"""A file on a web server as a seekable stream: byte ranges, resumed where a connection broke.

What is skipped is not transferred, unless it is so little that asking anew would take longer.
Reading starts with a small range, and ranges grow while the reader goes on without a jump, as an
operating system reads ahead.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from video2world_common.exit_codes import UserError

__all__ = ["JUMP", "Address", "RangeReader", "RemoteFile", "SourceChanged", "is_transport_error"]

RETRIES = 6  # failures in a row without one new byte
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts, doubled each time
PIECE = 1 << 18  # bytes handed on at a time
SMALLEST_RANGE, LARGEST_RANGE = 1 << 16, 32 << 20
JUMP = 4 << 20  # bytes that a connection transfers in the time of a request: 70 MB/s for 60 ms
RENEW = (401, 403, 404, 410)  # a signed address has run out: ask the Hub for another


class SourceChanged(ConnectionError):
    """The file on the server is no longer the one that reading began with."""


class _TryAgain(Exception):
    """An answer that another attempt may better; ``pause`` is what the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Address:
    """Where the bytes are to be had now, and what to send along."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


def is_transport_error(error: BaseException) -> bool:
    """Whether ``error`` is of the Hub client's HTTP library, which is httpx or httpx2."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


class RemoteFile:
    """``size`` bytes called ``name`` that ``locate`` finds on a server; safe to use by threads.

    ``locate`` is asked anew when an address has run out; it explains refusals.
    """

    def __init__(self, name: str, size: int, locate: Callable[[], Address]) -> None:
        self.name, self.size, self._locate = name, size, locate
        self._address: Address | None = None
        self._etag: str | None = None
        self.transferred = 0  # bytes, about: threads add to it without a lock

    def fetch(self, start: int, stop: int) -> Generator[bytes]:
        """The bytes ``start .. stop - 1`` in pieces, gone on with after every interruption.

        Raises:
            SourceChanged: the file changed on the server.
            ConnectionError: the server could not be made to send the rest.
            UserError: the server has no byte ranges, or refuses access.
        """
        failures = 0
        while start < stop:
            try:
                with contextlib.closing(self._attempt(start, stop)) as pieces:
                    for piece in pieces:
                        start += len(piece)
                        self.transferred += len(piece)
                        failures = 0
                        yield piece
                if start < stop:
                    raise _TryAgain("the connection ended early")
            except Exception as error:
                if not (isinstance(error, _TryAgain) or is_transport_error(error)):
                    raise
                failures += 1
                if failures > RETRIES:
                    raise ConnectionError(
                        f"{self.name}: the server does not send byte {start} and what follows "
                        f"({error or type(error).__name__}); check the network and run it again"
                    ) from error
                pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
                asked = min(getattr(error, "pause", 0.0), 300.0)
                time.sleep(max(pause * random.uniform(0.5, 1.0), asked))

    def _attempt(self, start: int, stop: int) -> Generator[bytes]:
        from huggingface_hub import constants, get_session

        address = self._address = self._address or self._locate()
        headers = {
            **address.headers,
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",
        }
        with get_session().stream(
            "GET",
            address.url,
            headers=headers,
            follow_redirects=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        ) as response:
            self._check(response, start)
            left = stop - start
            pieces = response.iter_raw(PIECE)
            for piece in pieces:
                piece = piece[:left]  # a server may send more than was asked for
                left -= len(piece)
                if not left:
                    next(pieces, None)  # the end of the answer: its connection serves the next
                yield piece
                if not left:
                    return

    def _check(self, response: Any, start: int) -> None:
        status, headers = response.status_code, response.headers
        if status in RENEW:
            self._address = None
            raise _TryAgain(f"the server answers {status}")
        if status == 429 or status >= 500:
            asked = headers.get("Retry-After", "")
            raise _TryAgain(f"the server answers {status}", float(asked) if asked.isdigit() else 0)
        if status == 200 and (start or headers.get("Content-Length") != str(self.size)):
            raise UserError(
                f"{self.name}: the server ignores byte ranges; take another mirror (HF_ENDPOINT), "
                "or download whole archives with --keep_tar"
            )
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                raise _TryAgain("the server sends another range than was asked for")
            if int(match[2]) != self.size:
                raise self._changed(f"{match[2]} bytes instead of {self.size}")
        elif status in (412, 416):
            raise self._changed(f"status {status}")
        elif status != 200:
            raise ConnectionError(f"{self.name}: the server answers {status}; run it again")
        etag = headers.get("ETag")
        self._etag = self._etag or etag
        if etag != self._etag:
            raise self._changed(f"ETag {etag} instead of {self._etag}")

    def _changed(self, how: str) -> SourceChanged:
        return SourceChanged(
            f"{self.name} changed on the server while it was read ({how}); run it again, and pin "
            "--revision to a commit"
        )


class RangeReader(io.RawIOBase):
    """A :class:`RemoteFile` to seek and read in."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0  # where the reader is
        self._piece = memoryview(b"")  # what has come and is not read
        self._at = 0  # where ``_piece`` begins
        self._pieces: Generator[bytes] | None = None  # of the range that is open
        self._open_to = 0  # where it ends
        self._range = SMALLEST_RANGE

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the file's start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to ``offset``; costs nothing before the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """At least one byte, fewer than asked for where a piece ends; 0 at the end."""
        if not len(buffer) or self._position >= self._file.size:
            return 0
        self._fill()
        skipped = self._position - self._at
        count = min(len(buffer), len(self._piece) - skipped)
        buffer[:count] = self._piece[skipped : skipped + count]
        self._position += count
        return count

    def _fill(self) -> None:
        """Make ``_piece`` cover ``_position``."""
        while not self._at <= self._position < self._at + len(self._piece):
            after = self._at + len(self._piece)
            ahead, left = self._position - after, self._open_to - after
            onward = 0 <= ahead <= JUMP
            if left and (onward or left <= PIECE):  # what ends whole keeps its connection
                assert self._pieces is not None
                self._at, self._piece = after, memoryview(next(self._pieces))
                continue
            self._range = min(2 * self._range, LARGEST_RANGE) if onward else SMALLEST_RANGE
            self._finish()
            self._at = self._position
            self._open_to = min(self._position + self._range, self._file.size)
            self._pieces = self._file.fetch(self._position, self._open_to)
            self._piece = memoryview(next(self._pieces))

    def _finish(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
        self._pieces, self._piece = None, memoryview(b"")

    def close(self) -> None:
        """Give the connection back."""
        self._finish()
        super().close()
