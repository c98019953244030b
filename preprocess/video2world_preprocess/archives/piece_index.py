"""Remember what each piece of an archive contains, in a small file that several pods share."""

from __future__ import annotations

import glob
import hashlib
import os
import threading
from dataclasses import asdict
from pathlib import Path

from video2world_common.files import cut_name, name_bytes, read_json, write_json
from video2world_common.sharding import Shard
from video2world_preprocess.archives.archive import Archive
from video2world_preprocess.archives.tar_scan import Member, Piece

__all__ = ["PieceIndex"]

FORMAT = 3  # an index in another format is ignored
LONGEST_STEM = 200  # bytes of an index's file name


class PieceIndex:
    """What is known about the pieces of one archive. Thread-safe.

    Each shard writes a file of its own; once all pieces are known, one file replaces these.
    """

    def __init__(self, archive: Archive, folder: Path, camera: str, shard: Shard) -> None:
        self.archive = archive
        stem = f"{archive.name.replace('/', '-')}.{camera}"
        if name_bytes(stem) > LONGEST_STEM:
            digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]
            stem = f"{cut_name(stem, LONGEST_STEM - 17)}-{digest}"
        self._lock = threading.Lock()
        self._header = {
            "archive": archive.name,
            "identity": archive.identity,
            "piece": archive.piece_size,
            "form": FORMAT,
        }
        self._complete = folder / f"{stem}.index.json"
        self._own = folder / f"{stem}.{shard}.json"
        self._shard_files = f"{glob.escape(stem)}.*-of-*.json"
        self._own_pieces: dict[int, Piece] = self._load(self._own)

    def _load(self, path: Path) -> dict[int, Piece]:
        """Return the pieces in ``path`` by their start; none if the file is damaged or outdated."""
        try:
            content = read_json(path) or {}
            if any(content.get(key) != value for key, value in self._header.items()):
                return {}
            pieces = [
                Piece(**{**p, "members": [Member(*m) for m in p["members"]]})
                for p in content["pieces"]
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}
        return {piece.start: piece for piece in pieces}

    def _save(self, path: Path, pieces: dict[int, Piece]) -> None:
        listed = [
            {**asdict(piece), "members": [list(vars(m).values()) for m in piece.members]}
            for _, piece in sorted(pieces.items())
        ]
        write_json(path, {**self._header, "pieces": listed})

    def pieces(self) -> dict[int, Piece]:
        """Return the known pieces of all shards by their start."""
        with self._lock:
            known = self._load(self._complete)
            if known:
                return known
            for path in self._own.parent.glob(self._shard_files):
                known |= self._load(path)
            return known | self._own_pieces

    def add(self, piece: Piece) -> None:
        """Add a piece that this shard has read."""
        with self._lock:
            self._own_pieces[piece.start] = piece
            self._save(self._own, self._own_pieces)

    def complete(self, pieces: dict[int, Piece]) -> None:
        """Replace the files of all shards by one with ``pieces``, which are all pieces."""
        with self._lock:
            self._save(self._complete, pieces)
            for path in self._own.parent.glob(self._shard_files):
                path.unlink(missing_ok=True)
