"""Own folders on the volume, so that two resources neither write one at the same time nor undo each
other's work.

The lock is the kernel's (``flock``), which releases it whenever the owning process ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.files import remove_leftovers, write_json
from video2world_common.markers import MADE_FOR, difference, read_owner

__all__ = ["locked", "owned_folder", "owned_in_splits"]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    """Take the exclusive lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock on the file ``path``; wait while another process holds it."""
    with _opened(path) as descriptor:
        if not _is_free(descriptor):
            say(f"waiting for another run that uses {path.parent}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def owned_folder(
    folder: Path,
    settings: Mapping[str, Any],
    remedy: str,
    *,
    leftovers: Iterable[Path] = (),
    shared: bool = False,
) -> Iterator[dict[str, dict[str, Any]]]:
    """Own ``folder`` for the resource of this process, with these ``settings``.

    Yields the owner record of the folder. Its ``work`` is new if the settings are new, or if no
    stage is known: earlier records of finished stages are then invalid (see :mod:`.markers`).
    Another resource with equal settings waits, and then finds the work complete; one with other
    settings is refused, since it would undo this one's work. Without a resource, run by hand,
    everything is allowed.

    Args:
        folder: the folder to own.
        settings: settings of the work in it.
        remedy: what a refused user can do.
        leftovers: folders in which partial files of killed runs are deleted, if no one else runs.
        shared: pods of one resource that divide the work own the folder together.

    Raises:
        UserError: the folder belongs to another resource with other settings.
    """
    with _opened(folder / ".lock") as descriptor:
        alone = _is_free(descriptor)
        if not alone:
            if not shared:
                say(f"waiting for another run that uses {folder}")
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        owner = _sign(folder, settings, remedy)
        if alone or not shared:
            for place in leftovers:
                remove_leftovers(place)
        if alone and shared:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield {str(folder): owner}


@contextlib.contextmanager
def owned_in_splits(
    splits: Iterable[Path], made_from: str, made: str, settings: Mapping[str, Any], remedy: str
) -> Iterator[dict[str, dict[str, Any]]]:
    """Own the folder ``made`` of every split that has the folder ``made_from``."""
    owned: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        for split in splits:
            if (split / made_from).is_dir():
                folder = split / made
                owned |= stack.enter_context(
                    owned_folder(folder, settings, remedy, leftovers=[folder])
                )
        yield owned


def _sign(folder: Path, settings: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    record = read_owner(folder)
    name, owner = os.environ.get("V2W_RESOURCE", ""), record.get("resource", "")
    before, now = record.get("settings"), dict(settings)
    if before not in (None, now) and owner not in ("", name):
        raise UserError(
            f"{folder} was made for resource {owner} with other settings "
            f"({difference(before, settings)}): {remedy}, or delete the folder if {owner} no "
            "longer needs it"
        )
    same = before == now
    keep = same and bool(os.environ.get("V2W_INPUTS_HASH"))
    mine = {
        "resource": owner if same and owner else name,
        "settings": now,
        "work": (record.get("work") if keep else None) or secrets.token_hex(8),
    }
    if record != mine:
        write_json(folder / MADE_FOR, mine)
    return mine
