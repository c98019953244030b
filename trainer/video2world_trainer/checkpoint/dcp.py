"""Large state on the volume: each rank's own part, and the model file made of all parts.

The parts are written and read by torch.distributed.checkpoint, as safetensors files (its own
format is a pickle's). They may be read back by another number of ranks.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.futures import Future
from torch.serialization import set_default_mmap_options, skip_data

from video2world_common.files import PARTIAL_PREFIX, atomic_path, sync_folder
from video2world_trainer.distributed.local_tensors import local

__all__ = [
    "Made",
    "Staging",
    "finish_shards",
    "partial_folder",
    "read_shards",
    "read_whole",
    "write_model",
    "write_shards",
]

CHUNK = 1 << 30  # bytes in memory at a time, beside the staged copies


class Staging:
    """Copies of this rank's parts in host memory, which the next copies replace.

    ``mesh`` is the CPU's counterpart of the mesh that the parts are sharded over: a sharded tensor
    of another mesh would move its copy to that mesh's devices.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self._mesh = mesh
        self._copies: dict[str, Tensor] = {}
        self._reserving: threading.Thread | None = None

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the memory for copies of ``tensors`` in the background.

        Pinning goes at little more than a GB a second, which the first copy need not wait for.
        """
        wanted = {name: local(one.detach()) for name, one in tensors.items()}
        like = [(name, one.shape, one.dtype, one.is_cuda) for name, one in wanted.items()]
        work = threading.Thread(
            target=lambda: [self._memory(*one) for one in like], name="staging", daemon=True
        )
        work.start()
        self._reserving = work

    def _memory(self, name: str, shape: torch.Size, dtype: torch.dtype, pinned: bool) -> Tensor:
        copy = self._copies.get(name)
        if copy is None or copy.shape != shape:
            # pinned, so that copies run at the bus's speed
            copy = self._copies[name] = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        return copy

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy ``tensors``; training may go on when this returns."""
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        found: dict[str, Tensor] = {}
        on_gpu = False
        for name, one in tensors.items():
            own = local(one.detach())
            on_gpu = on_gpu or own.is_cuda
            copy = self._memory(name, own.shape, own.dtype, own.is_cuda)
            copy.copy_(own, non_blocking=True)
            found[name] = copy
            if isinstance(one, DTensor):
                assert self._mesh is not None
                found[name] = DTensor.from_local(
                    copy,
                    self._mesh,
                    one.placements,
                    run_check=False,
                    shape=one.shape,
                    stride=one.stride(),
                )
        if on_gpu:
            torch.cuda.synchronize()
        return found


def partial_folder(final: Path) -> Path:
    """Where the parts of ``final`` are written; the same for every rank."""
    return final.with_name(f"{PARTIAL_PREFIX}{final.name}")


def write_shards(
    final: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    """Write this rank's parts beside ``final``; returns when all ranks have.

    ``group`` has all ranks and communicates on the CPU; None is a process alone.

    Raises:
        OSError: some rank could not write.
    """
    writer = _Writer(str(partial_folder(final)), save_distributed=True)
    try:
        with _quiet():
            dcp.save(
                dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None
            )
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        number = cause.errno if isinstance(cause, OSError) else None
        raise OSError(number, str(cause), str(final)) from None


class _Writer(HuggingFaceStorageWriter):
    """As its base, but straight from the tensors' memory into one file a rank.

    The base first copies every file twice in memory, which takes several times as long.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"shard-{plan.storage_data['shard_index']:05d}-model-00001-of-00001.safetensors"
        tensors, chunks, results = {}, {}, []
        for item in plan.items:
            assert item.tensor_data is not None  # all that is written are tensors
            key = item.index.fqn
            tensors[key] = planner.resolve_data(item).detach().contiguous()
            chunks[key] = {"saved_offsets": item.tensor_data.chunk.offsets}
            size = tensors[key].nbytes
            results.append(WriteResult(item.index, size, _StorageInfo(name, 0, size)))
        # what torch.distributed.checkpoint's reader looks for in a file's header
        metadata = {"DCP_SHARDING_INFO": json.dumps(chunks), "DCP_VERSION": "1.0", "format": "pt"}
        path = Path(self.path) / name
        try:
            save_file(tensors, path, metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else None, str(error), str(path)) from None
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def finish_shards(final: Path) -> list[Path]:
    """Give what was written its final name; the files. One rank does it."""
    partial = partial_folder(final)
    for path in partial.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_folder(final.parent)
    return sorted(final.iterdir())


def read_shards(
    folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    """Fill ``tensors`` with this rank's parts of what any number of ranks wrote."""
    reader = HuggingFaceStorageReader(str(folder))
    with _quiet():
        dcp.load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def read_whole(folder: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """Whole tensors by name, of all or of ``names``."""
    known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(one.size, dtype=one.properties.dtype)
        for name, one in known.items()
        if names is None or name in names
    }
    read_shards(folder, tensors, None)
    return tensors


@dataclass(frozen=True)
class Made:
    """An entry of a model file: made of stored tensors by ``make``, or given as ``make()``."""

    shape: torch.Size
    dtype: torch.dtype
    sources: tuple[str, ...]
    make: Callable[..., Tensor]


def write_model(path: Path, folder: Path, entries: Mapping[str, Made]) -> None:
    """A ``torch.save`` file of ``entries``, of which only some lie in memory at a time.

    Raises:
        OSError: there is no room for it.
    """
    with FakeTensorMode():
        outline = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in entries.items()}
    with atomic_path(path) as partial:
        with skip_data(materialize_fake_tensors=True):
            torch.save(outline, partial)
        with partial.open("r+b") as stream:  # a mapped file cannot report a full disk later
            try:
                os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
        with set_default_mmap_options(mmap.MAP_SHARED):
            content = torch.load(partial, map_location="cpu", weights_only=True, mmap=True)
        for names in _chunks(entries):
            sources = {source for name in names for source in entries[name].sources}
            read = read_whole(folder, sorted(sources)) if sources else {}
            for name in names:
                one = entries[name]
                content[name].copy_(one.make(*(read[source] for source in one.sources)))
        del content


def _chunks(entries: Mapping[str, Made]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, one in entries.items():
        names.append(name)
        size += one.shape.numel() * 4
        if size >= CHUNK:
            yield names
            names, size = [], 0
    if names:
        yield names
