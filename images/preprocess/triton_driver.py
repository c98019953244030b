"""Compiles into the folder given the one C module that Triton would build where it is used.

So the image needs no compiler. Triton looks its modules up by a hash of source and options, to
which the path of libcuda belongs: TRITON_LIBCUDA_PATH must be the same here and there. It needs
not hold a library there; here an empty one is linked in the driver's place.
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
