"""Read a file on a web server as a seekable stream, by HTTP ranges that resume after errors.

Skipped bytes are not transferred, unless there are so few that a new request would take longer.
Reading starts with a small range, and ranges grow while reading is sequential, like an operating
system's read-ahead.
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

__all__ = [
    "FIRST_PAUSE",
    "SMALLEST_RANGE",
    "WORTH_SKIPPING",
    "Address",
    "RangeReader",
    "RemoteFile",
    "SourceChanged",
    "is_transport_error",
]

RETRIES = 6  # consecutive failures without a new byte
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts, doubled each time
PIECE_SIZE = 1 << 18  # bytes
SMALLEST_RANGE, LARGEST_RANGE = 1 << 16, 32 << 20  # bytes
WORTH_SKIPPING = 4 << 20  # bytes transferred in the time of one request: 70 MB/s for 60 ms
EXPIRED = (401, 403, 404, 410)  # statuses of a signed address that has expired


class SourceChanged(ConnectionError):
    """The file on the server changed while it was read."""


class _TryAgain(Exception):
    """A response worth another attempt, after the ``pause`` in seconds that the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Address:
    """The current URL of a file, and the headers to send."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


def is_transport_error(error: BaseException) -> bool:
    """Whether ``error`` comes from the HTTP library of the Hub's client, httpx or httpx2."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


class RemoteFile:
    """A file of ``size`` bytes on a server. Thread-safe.

    ``name`` is for messages. ``locate`` returns the file's address, and is called again when that
    has expired; its errors explain why the server refuses access.
    """

    def __init__(self, name: str, size: int, locate: Callable[[], Address]) -> None:
        self.name, self.size, self._locate = name, size, locate
        self._address: Address | None = None
        self._etag: str | None = None
        self.transferred = 0  # bytes; approximate, as threads add to it without a lock

    def fetch(self, start: int, stop: int) -> Generator[bytes]:
        """Yield the bytes ``start .. stop - 1`` in pieces, resuming after interruptions.

        Raises:
            SourceChanged: the file changed on the server.
            ConnectionError: the server keeps failing to send the rest.
            UserError: the server does not support byte ranges, or refuses access.
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
                        f"{self.name}: the server does not send the bytes from {start} on "
                        f"({error or type(error).__name__}); check the network and run it again"
                    ) from error
                pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
                requested = min(getattr(error, "pause", 0.0), 300.0)
                time.sleep(max(pause * random.uniform(0.5, 1.0), requested))

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
            pieces = response.iter_raw(PIECE_SIZE)
            for piece in pieces:
                piece = piece[:left]  # a server may send more than was requested
                left -= len(piece)
                if not left:
                    next(pieces, None)  # read to the end, so that the connection is reused
                yield piece
                if not left:
                    return

    def _check(self, response: Any, start: int) -> None:
        status, headers = response.status_code, response.headers
        if status in EXPIRED:
            self._address = None
            raise _TryAgain(f"the server responds with {status}")
        if status == 429 or status >= 500:
            wait = headers.get("Retry-After", "")
            reason = f"the server responds with {status}"
            raise _TryAgain(reason, float(wait) if wait.isdigit() else 0)
        if status == 200 and (start or headers.get("Content-Length") != str(self.size)):
            raise UserError(
                f"{self.name}: the server ignores byte ranges; use another mirror (HF_ENDPOINT), "
                "or download complete archives with --keep_tar"
            )
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                raise _TryAgain("the server sends a range other than the requested one")
            if int(match[2]) != self.size:
                raise self._changed(f"{match[2]} bytes instead of {self.size}")
        elif status in (412, 416):
            raise self._changed(f"status {status}")
        elif status != 200:
            raise ConnectionError(f"{self.name}: the server responds with {status}; run it again")
        etag = headers.get("ETag")
        self._etag = self._etag or etag
        if etag != self._etag:
            raise self._changed(f"ETag {etag} instead of {self._etag}")

    def _changed(self, how: str) -> SourceChanged:
        return SourceChanged(
            f"{self.name} changed on the server while it was read ({how}); pin --revision to a "
            "commit and run it again"
        )


class RangeReader(io.RawIOBase):
    """A seekable binary stream of a :class:`RemoteFile`."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self._piece = memoryview(b"")  # the buffer
        self._at = 0  # offset of the buffer in the file
        self._pieces: Generator[bytes] | None = None  # of the current range
        self._range_end = 0
        self._range_size = SMALLEST_RANGE

    def readable(self) -> bool:
        """Whether the stream can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether the stream can be seeked: always."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; sends no request before the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte, maybe fewer than fit; return 0 at the end of the file."""
        if not len(buffer) or self._position >= self._file.size:
            return 0
        self._fill()
        skipped = self._position - self._at
        count = min(len(buffer), len(self._piece) - skipped)
        buffer[:count] = self._piece[skipped : skipped + count]
        self._position += count
        return count

    def _fill(self) -> None:
        """Make the buffer contain ``_position``."""
        while not self._at <= self._position < self._at + len(self._piece):
            after = self._at + len(self._piece)
            ahead, left = self._position - after, self._range_end - after
            is_sequential = 0 <= ahead <= WORTH_SKIPPING
            # a range that is read to its end keeps its connection
            if left and (is_sequential or left <= PIECE_SIZE):
                assert self._pieces is not None
                self._at, self._piece = after, memoryview(next(self._pieces))
                continue
            doubled = min(2 * self._range_size, LARGEST_RANGE)
            self._range_size = doubled if is_sequential else SMALLEST_RANGE
            self._close_range()
            self._at = self._position
            self._range_end = min(self._position + self._range_size, self._file.size)
            self._pieces = self._file.fetch(self._position, self._range_end)
            self._piece = memoryview(next(self._pieces))

    def _close_range(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
        self._pieces, self._piece = None, memoryview(b"")

    def close(self) -> None:
        """Return the connection to its pool."""
        self._close_range()
        super().close()
