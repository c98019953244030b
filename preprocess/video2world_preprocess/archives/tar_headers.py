"""Find tar headers from any position of an archive, and skip directories of no interest.

The format is described in https://www.gnu.org/software/tar/manual/html_node/Standard.html.
"""

from __future__ import annotations

import tarfile
from pathlib import PurePosixPath
from typing import IO

__all__ = [
    "BLOCK",
    "EXTENDED_HEADERS",
    "LARGEST_EXTENDED_HEADER",
    "SCAN_SIZE",
    "foreign_content",
    "next_header",
    "skip_directory",
]

BLOCK = 512  # bytes; members begin at multiples of it
SCAN_SIZE = 1 << 16  # bytes to search at a time
LARGEST_EXTENDED_HEADER = 1 << 20  # bytes; extended headers and long names are read into memory
EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

GZIP = b"\x1f\x8b"
OTHER_CONTENT = {  # first bytes of a file: what it is, and the remedy
    GZIP: ("is compressed with gzip", "rename it to end in .tar.gz"),
    b"BZh": ("is compressed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ\0": ("is compressed with xz", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unpack it with unzstd"),
    b"\x04\x22\x4d\x18": ("is compressed with lz4", "unpack it with unlz4"),
    b"PK": ("is a zip file", "unpack it, and pack it with tar"),
    b"7z\xbc\xaf": ("is a 7z file", "unpack it, and pack it with tar"),
    b"Rar!": ("is a rar file", "unpack it, and pack it with tar"),
    b"version https://git-lfs": ("is a pointer of Git LFS, not the file", "run git lfs pull"),
    b"<": ("is a web page", "download the file itself"),
    b"{": ("is JSON, perhaps a server's error message", "download the file itself"),
}


def foreign_content(name: str, head: bytes) -> str | None:
    """Return why a file that begins with ``head`` is not the archive that ``name`` promises."""
    wanted = name[name.rindex(".tar") :] if ".tar" in name else ".tgz"
    although = f"although its name ends in {wanted}"
    if not head:
        return "is empty; copy or download it again"
    if _is_header(head[:BLOCK]):
        return None if wanted == ".tar" else f"is not compressed, {although}; rename it to .tar"
    if head.startswith(GZIP) and wanted != ".tar":
        return None
    for start, (what, remedy) in OTHER_CONTENT.items():
        if head.startswith(start):
            return f"{what}, {although}; {remedy}"
    is_start_of_tar = len(head) < BLOCK or not any(head)
    return None if is_start_of_tar else "is not a tar archive, or its beginning is damaged"


def _is_header(block: bytes) -> bool:
    """Whether ``block`` has a valid tar checksum."""
    try:
        stated = int(bytes(block[148:156]).strip(b" \0"), 8)
    except ValueError:
        return False
    return stated == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def next_header(stream: IO[bytes], start: int, stop: int) -> int | None:
    """Return the position of the first header in the bytes ``start .. stop - 1``, or None."""
    position = -(-start // BLOCK) * BLOCK
    while position < stop:
        stream.seek(position)
        data = stream.read(min(SCAN_SIZE, stop - position + BLOCK))
        found = data.find(b"ustar")
        while found >= 0:
            begin = found - 257
            if begin >= 0 and begin % BLOCK == 0 and _is_header(data[begin : begin + BLOCK]):
                return position + begin if position + begin < stop else None
            found = data.find(b"ustar", found + 1)
        if len(data) < BLOCK:
            return None
        position += len(data) // BLOCK * BLOCK
    return None


def _directory(stream: IO[bytes], at: int) -> PurePosixPath | None:
    """Return the directory of the member whose header, or extended header, is at ``at``."""
    for _ in range(3):  # a long name and an extended header may come first
        stream.seek(at)
        try:
            member = tarfile.TarInfo.frombuf(stream.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return None
        if member.type not in EXTENDED_HEADERS:
            return PurePosixPath(member.name).parent
        if not 0 <= member.size <= LARGEST_EXTENDED_HEADER:
            return None
        at += BLOCK + -(-member.size // BLOCK) * BLOCK
    return None


def skip_directory(
    stream: IO[bytes], at: int, stop: int, directory: PurePosixPath, min_skip: int
) -> int:
    """Return the position of a header near the last consecutive member of ``directory``.

    A galloping search from the header at ``at``: what lies between two members of the same
    directory is assumed to be in it too, as tar writes directories in one piece. Distances below
    ``min_skip`` bytes are not skipped; ``at`` is returned where nothing can be skipped.
    """
    step, beyond = min_skip, stop
    while step >= min_skip:
        probe = None
        if at + step < beyond:
            probe = next_header(stream, at + step, min(beyond, at + step + min_skip))
        if probe is not None and _directory(stream, probe) == directory:
            at, step = probe, 2 * step
        else:
            beyond = min(beyond, at + step)
            step = (beyond - at) // 2
    return at
