"""Write and read sharded training state, and build model files from it.

Shards are safetensors files, written and read by torch.distributed.checkpoint (DCP), whose default
format is based on pickle. Any number of ranks can read what another number has written.
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
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.futures import Future
from torch.serialization import set_default_mmap_options, skip_data

from video2world_common.files import PARTIAL_PREFIX, atomic_path, sync_folder
from video2world_trainer.distributed.local_tensors import to_local

__all__ = [
    "ModelEntry",
    "StagingBuffers",
    "partial_folder",
    "publish_shards",
    "read_full_tensors",
    "read_shards",
    "write_model_file",
    "write_shards",
]

CHUNK = 1 << 30  # bytes of a model file to build at a time; staging buffers come on top


class StagingBuffers:
    """Hold copies of this rank's shards in host memory; each copy overwrites the last.

    Args:
        mesh: CPU counterpart of the mesh that the state is sharded over. A DTensor on the original
            mesh would move its copy to that mesh's devices.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self._mesh = mesh
        self._buffers: dict[str, Tensor] = {}
        self._reserving: threading.Thread | None = None

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate buffers for ``tensors`` in the background.

        Memory is pinned at little more than 1 GB/s, which would delay the first checkpoint.
        """
        shards = {name: to_local(one.detach()) for name, one in tensors.items()}
        wanted = [(name, one.shape, one.dtype, one.is_cuda) for name, one in shards.items()]

        def allocate() -> None:
            for name, shape, dtype, pinned in wanted:
                self._buffer(name, shape, dtype, pinned)

        self._reserving = threading.Thread(target=allocate, name="staging", daemon=True)
        self._reserving.start()

    def _buffer(self, name: str, shape: torch.Size, dtype: torch.dtype, pinned: bool) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape:
            # pinned memory is copied to at full PCIe bandwidth
            buffer = self._buffers[name] = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        return buffer

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy ``tensors``; training may change them once this returns."""
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        copies: dict[str, Tensor] = {}
        on_gpu = False
        for name, tensor in tensors.items():
            shard = to_local(tensor.detach())
            on_gpu = on_gpu or shard.is_cuda
            copy = self._buffer(name, shard.shape, shard.dtype, shard.is_cuda)
            copy.copy_(shard, non_blocking=True)
            copies[name] = copy
            if isinstance(tensor, DTensor):
                assert self._mesh is not None
                copies[name] = DTensor.from_local(
                    copy,
                    self._mesh,
                    tensor.placements,
                    run_check=False,
                    shape=tensor.shape,
                    stride=tensor.stride(),
                )
        if on_gpu:
            torch.cuda.synchronize()
        return copies


def partial_folder(final: Path) -> Path:
    """Return the folder in which all ranks write the shards of ``final``."""
    return final.with_name(f"{PARTIAL_PREFIX}{final.name}")


def write_shards(
    final: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    """Write this rank's shards to the partial folder of ``final``, and wait for all ranks.

    Args:
        final: folder that :func:`publish_shards` will rename the partial folder to.
        tensors: the state by name.
        group: all ranks, communicating on the CPU; None for a single process.

    Raises:
        OSError: a rank could not write.
    """
    writer = _Writer(str(partial_folder(final)), save_distributed=True)
    try:
        with _quiet():
            state_dict_saver.save(
                dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None
            )
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        number = cause.errno if isinstance(cause, OSError) else None
        raise OSError(number, str(cause), str(final)) from None


class _Writer(HuggingFaceStorageWriter):
    """Write one file per rank directly from the tensors' memory.

    The base class first copies each file twice in memory, which takes several times as long.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"shard-{plan.storage_data['shard_index']:05d}-model-00001-of-00001.safetensors"
        tensors, chunks, results = {}, {}, []
        for item in plan.items:
            data = planner.resolve_data(item)
            assert item.tensor_data is not None  # the state has tensors only
            assert isinstance(data, Tensor)
            key = item.index.fqn
            tensors[key] = data.detach().contiguous()
            chunks[key] = {"saved_offsets": item.tensor_data.chunk.offsets}
            size = tensors[key].nbytes
            results.append(WriteResult(item.index, size, _StorageInfo(name, 0, size)))
        # the fields of the header that DCP's reader needs
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


def publish_shards(final: Path) -> list[Path]:
    """Rename the partial folder to ``final`` and return its files; for one rank only."""
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
    """Load this rank's shards into ``tensors``, whatever number of ranks has written them."""
    reader = HuggingFaceStorageReader(str(folder))
    with _quiet():
        state_dict_loader.load(
            dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def read_full_tensors(folder: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """Return unsharded tensors by name: all of them, or ``names``."""
    known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(one.size, dtype=one.properties.dtype)
        for name, one in known.items()
        if isinstance(one, TensorStorageMetadata) and (names is None or name in names)
    }
    read_shards(folder, tensors, None)
    return tensors


@dataclass(frozen=True)
class ModelEntry:
    """A tensor of a model file, computed as ``compute(*sources)`` from stored tensors."""

    shape: torch.Size
    dtype: torch.dtype
    sources: tuple[str, ...]  # names of the stored tensors
    compute: Callable[..., Tensor]


def write_model_file(path: Path, folder: Path, entries: Mapping[str, ModelEntry]) -> None:
    """Write a ``torch.save`` file of ``entries``, with only some of them in memory at a time.

    Args:
        path: the model file.
        folder: the shards that entries are computed from.
        entries: tensors of the file by name.

    Raises:
        OSError: the volume is full.
    """
    with FakeTensorMode():
        outline = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in entries.items()}
    with atomic_path(path) as partial:
        with skip_data(materialize_fake_tensors=True):
            torch.save(outline, partial)
        with partial.open(
            "r+b"
        ) as stream:  # reserve space: writes to a mapped file cannot report a full disk
            try:
                os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
        with set_default_mmap_options(mmap.MAP_SHARED):
            content = torch.load(partial, map_location="cpu", weights_only=True, mmap=True)
        for names in _chunks(entries):
            sources = {source for name in names for source in entries[name].sources}
            read = read_full_tensors(folder, sorted(sources)) if sources else {}
            for name in names:
                entry = entries[name]
                content[name].copy_(entry.compute(*(read[source] for source in entry.sources)))
        del content


def _chunks(entries: Mapping[str, ModelEntry]) -> Iterator[list[str]]:
    """Split the names of ``entries`` into groups of about :data:`CHUNK` bytes in float32."""
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
