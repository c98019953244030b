"""T5 embeddings in upstream's pickle form, read back by a loader that cannot execute code.

The file holds a Python list with one float16 array ``[n_tokens, width]``
(facts sheet 4.2). A pickle may name any callable of the process; this reader resolves the few that
build a plain numpy array and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from video2world_common.exit_codes import UserError
from video2world_common.files import atomic_write

__all__ = ["read_embedding", "write_embedding"]

MAX_BYTES = 64 << 20  # 512 tokens of 1024 float16 values take 1 MiB
MAX_OPCODES = 1000  # an embedding takes about 40


class _Refused(pickle.UnpicklingError):
    """The file asks for more than an array of numbers."""


# What a pickle may call. Instances without a __dict__: the opcode that sets an object's state has
# nothing to write to, so a file cannot change them for the files read after it.
class _Dtype:
    __slots__ = ()

    def __call__(self, code: str, align: bool = False, copy: bool = False) -> np.dtype[Any]:
        if code not in ("f2", "f4", "f8"):
            raise _Refused(f"its array is of type {code!r}")
        return np.dtype(code, copy=True)


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> np.ndarray:
        return np.ndarray((0,), "b")  # the state that follows brings shape, type and numbers


class _FromBuffer:
    __slots__ = ()

    def __call__(self, data: bytes, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
        return np.frombuffer(data, dtype).reshape(shape, order=order)


class _Encode:
    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1")  # how protocols 0 to 2 spell bytes


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",  # only ever an argument
    ("numpy", "dtype"): _Dtype(),
    ("_codecs", "encode"): _Encode(),
}
for _core in ("numpy.core", "numpy._core"):  # as numpy 1 and numpy 2 name them
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct()
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _FromBuffer()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"it names {module}.{name}") from None


def _check_opcodes(data: bytes) -> None:
    """Refuse what makes CPython's unpickler take memory before it has seen any content: a place in
    its memo of any number, and lists by the million. A length that is not there is an error here.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        place = argument if opcode.name.endswith("PUT") else None
        if count > MAX_OPCODES or (place is not None and place > MAX_OPCODES):
            raise _Refused("it asks for more memory than an array of numbers takes")


def write_embedding(path: Path, embedding: np.ndarray) -> None:
    """Write ``embedding`` [n_tokens, width] as float16 in upstream's form, at once."""
    if embedding.ndim != 2:
        raise ValueError(f"an embedding has two dimensions, not {embedding.ndim}")
    content = [np.ascontiguousarray(embedding, dtype=np.float16)]
    atomic_write(Path(path), lambda stream: pickle.dump(content, stream))


def read_embedding(path: Path) -> np.ndarray:
    """The embedding [n_tokens, width] in ``path``, of the float type it was saved in.

    Raises:
        UserError: the file is no such pickle, or holds anything but plain numbers.
        OSError: the file cannot be read.
    """
    path = Path(path)
    remedy = "delete it and run the embeddings stage again"
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is too large for a text embedding: {remedy}")
    data = path.read_bytes()
    try:
        _check_opcodes(data)
        content = _ArrayUnpickler(io.BytesIO(data)).load()
    except _Refused as error:
        raise UserError(f"{path} is refused as a text embedding ({error}): {remedy}") from None
    except Exception as error:  # damaged opcodes surface as almost any exception of the callee
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    array = content[0] if isinstance(content, list) and len(content) == 1 else content
    if type(array) is not np.ndarray or array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"{path} does not hold one array [tokens, width] of numbers: {remedy}")
    if array.shape[0] == 0 or not np.isfinite(array).all():
        raise UserError(f"{path} holds an empty or non-finite embedding: {remedy}")
    return array
