"""Make Triton work without a C compiler, with modules that our images provide.

Triton compiles a C module when it is first used (see images/preprocess/triton_driver.py).
"""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
from pathlib import Path

__all__ = ["can_compile", "take_prepared_modules"]

COMPILERS = ("gcc", "clang")  # that Triton searches for, unless CC is set


@functools.cache
def can_compile() -> bool:
    """Whether Triton kernels run here: with a C compiler and Python's headers, or our modules."""
    if os.environ.get("V2W_TRITON_CACHE"):
        take_prepared_modules()
        return True
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compiler = bool(os.environ.get("CC")) or any(map(shutil.which, COMPILERS))
    return compiler and headers.is_file()


def take_prepared_modules() -> None:
    """Copy the image's modules to where Triton searches for them."""
    prepared = os.environ.get("V2W_TRITON_CACHE")
    if not prepared:
        return

    def copy(source: str, target: str) -> None:  # atomic, as several processes may do this
        partial = f"{target}.{os.getpid()}"
        shutil.copyfile(source, partial)
        Path(partial).replace(target)

    cache = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    shutil.copytree(prepared, cache, copy_function=copy, dirs_exist_ok=True)
