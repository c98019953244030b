"""Write and read T5 embeddings as pickles, with a reader that cannot execute code.

The format is that of ``scripts/get_t5_embeddings.py`` in the cosmos-predict2 repository: a list
with one float16 array [n_tokens, width]. As a pickle may name any callable, this reader resolves
only the few that build a plain numpy array, and refuses all others.
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
    """The file requests more than an array of numbers."""


# The callables that a pickle may use. They have no __dict__, so that the opcode that sets an
# object's state cannot change them for files that are read later.
class _Dtype:
    __slots__ = ()

    def __call__(self, code: str, align: bool = False, copy: bool = False) -> np.dtype[Any]:
        if code not in ("f2", "f4", "f8"):
            raise _Refused(f"its array is of type {code!r}")
        return np.dtype(code, copy=True)


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> np.ndarray:
        return np.ndarray((0,), "b")  # the state that follows sets shape, type and numbers


class _FromBuffer:
    __slots__ = ()

    def __call__(self, data: bytes, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
        return np.frombuffer(data, dtype).reshape(shape, order=order)


class _Encode:
    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1")  # protocols 0 to 2 store bytes as text


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",  # only used as an argument
    ("numpy", "dtype"): _Dtype(),
    ("_codecs", "encode"): _Encode(),
}
for _core in ("numpy.core", "numpy._core"):  # in numpy 1 and numpy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Reconstruct()
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _FromBuffer()


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that resolves only the names in :data:`_ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"it names {module}.{name}") from None


def _check_opcodes(data: bytes) -> None:
    """Refuse pickles that make CPython's unpickler allocate much memory: large memo indexes, and
    millions of lists. Also raises an error if the data is shorter than its lengths say.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        place = argument if opcode.name.endswith("PUT") else None
        if count > MAX_OPCODES or (place is not None and place > MAX_OPCODES):
            raise _Refused("it needs more memory than an array of numbers")


def write_embedding(path: Path, embedding: np.ndarray) -> None:
    """Write ``embedding`` [n_tokens, width] as float16, atomically.

    Raises:
        ValueError: the array does not have two dimensions.
        OSError: the file cannot be written.
    """
    if embedding.ndim != 2:
        raise ValueError(f"an embedding has two dimensions, not {embedding.ndim}")
    content = [np.ascontiguousarray(embedding, dtype=np.float16)]
    atomic_write(Path(path), lambda stream: pickle.dump(content, stream))


def read_embedding(path: Path) -> np.ndarray:
    """Return the embedding [n_tokens, width] in ``path``, in the float type it was saved in.

    Raises:
        UserError: the file is not a pickle of one array of finite numbers.
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
    except Exception as error:  # damaged opcodes may raise almost any exception
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    array = content[0] if isinstance(content, list) and len(content) == 1 else content
    if type(array) is not np.ndarray or array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"{path} does not contain one array [tokens, width] of numbers: {remedy}")
    if array.shape[0] == 0 or not np.isfinite(array).all():
        raise UserError(f"{path} contains an empty or non-finite embedding: {remedy}")
    return array
