"""Compile the C module that Triton otherwise builds at run time into a folder (the argument).

The image then needs no compiler. Triton finds its modules by a hash of source and options, which
include the path of libcuda: TRITON_LIBCUDA_PATH must be the same at build and run time. At run time
it may be an empty folder; here an empty library is linked in place of the driver.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

from triton.backends.nvidia import driver
from triton.runtime.build import compile_so_from_file

library = Path(os.environ["TRITON_LIBCUDA_PATH"]) / "libcuda.so.1"
library.parent.mkdir(parents=True, exist_ok=True)
command = ["gcc", "-shared", "-o", str(library), "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null"]
subprocess.run(command, check=True)
try:
    print(
        compile_so_from_file(
            src_path=str(Path(driver.__file__).with_name("driver.c")),
            name="cuda_utils",
            library_dirs=driver.library_dirs(),
            include_dirs=driver.include_dirs,
            libraries=driver.libraries,
        )
    )
finally:
    library.unlink()
