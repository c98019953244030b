"""Tar headers found from any place of an archive, and the leap over a directory of no interest."""

from __future__ import annotations

import tarfile
from pathlib import PurePosixPath
from typing import IO

__all__ = ["BLOCK", "LARGEST_NAME", "NAMES", "SCAN", "foreign_content", "leap", "next_header"]

BLOCK = 512  # bytes: where members begin
SCAN = 1 << 16  # bytes looked through at a time
LARGEST_NAME = 1 << 20  # bytes of a long name or an extended header, which are read into memory
NAMES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

GZIP = b"\x1f\x8b"
OTHER_CONTENT = {  # what a file begins with: what it is, and the remedy
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
    b"{": ("is JSON, perhaps an error of a server", "download the file itself"),
}


def foreign_content(name: str, head: bytes) -> str | None:
    """Say that a file beginning with ``head`` is not the archive that ``name`` promises."""
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
    return None if is_start_of_tar else "is no tar archive, or its beginning is damaged"


def _is_header(block: bytes) -> bool:
    """Whether ``block`` carries tar's magic and a checksum that holds."""
    try:
        stated = int(bytes(block[148:156]).strip(b" \0"), 8)
    except ValueError:
        return False
    return stated == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def next_header(stream: IO[bytes], start: int, stop: int) -> int | None:
    """Where the first header at or after ``start``, before ``stop``, begins."""
    position = -(-start // BLOCK) * BLOCK
    while position < stop:
        stream.seek(position)
        data = stream.read(min(SCAN, stop - position + BLOCK))
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


def _folder(stream: IO[bytes], at: int) -> PurePosixPath | None:
    """The directory of the member whose header, or whose name's header, is at ``at``."""
    for _ in range(3):  # a long name's header and an extended one may come first
        stream.seek(at)
        try:
            member = tarfile.TarInfo.frombuf(stream.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return None
        if member.type not in NAMES:
            return PurePosixPath(member.name).parent
        if not 0 <= member.size <= LARGEST_NAME:
            return None
        at += BLOCK + -(-member.size // BLOCK) * BLOCK
    return None


def leap(stream: IO[bytes], at: int, stop: int, folder: PurePosixPath, least: int) -> int:
    """A header of ``folder``'s, near the last of those that follow each other from ``at`` on.

    Headers are looked for at growing distances, then at shrinking ones; what lies between two of
    the same directory is taken to be of it too, as tar writes it. Distances below ``least`` bytes
    are left to be walked. ``at`` is returned where nothing can be saved.
    """
    step, beyond = least, stop
    while step >= least:
        probe = None
        if at + step < beyond:
            probe = next_header(stream, at + step, min(beyond, at + step + least))
        if probe is not None and _folder(stream, probe) == folder:
            at, step = probe, 2 * step
        else:
            beyond = min(beyond, at + step)
            step = (beyond - at) // 2
    return at
