"""Whether Triton can compile here, and what our images hold ready for it: they have no compiler.

Triton builds one C module for itself where it is first used (images/preprocess/triton_driver.py).
"""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
from pathlib import Path

__all__ = ["can_compile", "take_prepared_modules"]

COMPILERS = ("gcc", "clang")  # that Triton looks for, unless CC names one


@functools.cache
def can_compile() -> bool:
    """Whether a kernel of ours would run: there is a C compiler with Python's headers, or what they
    would make."""
    if os.environ.get("V2W_TRITON_CACHE"):
        take_prepared_modules()
        return True
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compiler = bool(os.environ.get("CC")) or any(map(shutil.which, COMPILERS))
    return compiler and headers.is_file()


def take_prepared_modules() -> None:
    """Put what the image holds ready where Triton looks for it."""
    prepared = os.environ.get("V2W_TRITON_CACHE")
    if not prepared:
        return

    def copy(source: str, target: str) -> None:  # whole or not at all: every process does this
        aside = f"{target}.{os.getpid()}"
        shutil.copyfile(source, aside)
        Path(aside).replace(target)

    cache = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"
    shutil.copytree(prepared, cache, copy_function=copy, dirs_exist_ok=True)
