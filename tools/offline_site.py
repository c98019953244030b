"""Pack Python packages, in parts of a given size, for a machine without a package index.

``python tools/offline_site.py FOLDER PACKAGE...`` downloads wheels for x86-64 Linux and Python
3.12 without their dependencies and writes ``FOLDER/1``, ``FOLDER/2``, ..., each with a part and
``setup.sh``. On the other machine source every ``setup.sh``: the last one unpacks everything to
``/tmp/site``, and each adds that to PYTHONPATH. Next to torch and transformers, the benchmarks
need:

    diffusers importlib-metadata zipp av flash-attn-4 quack-kernels apache-tvm-ffi
    torch-c-dlpack-ext nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-core nvidia-cutlass-dsl-libs-base
    nvidia-cutlass-dsl-libs-cu13
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# These take most of the space and no run needs them.
LEFT_OUT = ("tests", "test", "include", "docs", "__pycache__")
SETUP = """\
mkdir -p /tmp/site.parts && cp "${{BASH_SOURCE%/*}}"/part /tmp/site.parts/{number:03d}
if [ "$(ls /tmp/site.parts | wc -l)" = {count} ] && [ ! -e /tmp/site ]; then
  mkdir /tmp/site && cat /tmp/site.parts/* | tar -xJ -C /tmp/site
fi
export PYTHONPATH=/tmp/site${{PYTHONPATH:+:$PYTHONPATH}}
"""


def main() -> int:
    """Download, pack and split the packages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--python", default="3.12", help="version on the other machine")
    parser.add_argument("--mebibytes", type=int, default=56, help="maximum size of a part")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        site, archive = Path(scratch) / "site", Path(scratch) / "site.tar.xz"
        install = [
            str(ROOT / ".venv/bin/uv"),
            "pip",
            "install",
            "--target",
            str(site),
            "--no-deps",
            "--only-binary",
            ":all:",
            "--prerelease",
            "allow",
            "--link-mode",
            "copy",
            "--python-version",
            args.python,
            "--python-platform",
            "x86_64-manylinux_2_28",
            *args.packages,
        ]
        subprocess.run(install, check=True)
        for name in LEFT_OUT:
            for found in list(site.rglob(name)):
                shutil.rmtree(found, ignore_errors=True)
        # .pth files in a folder on PYTHONPATH are only read if it is registered as a site
        (site / "sitecustomize.py").write_text(
            "import os, site\n\nsite.addsitedir(os.path.dirname(__file__))\n"
        )
        pack = ["tar", "-C", str(site), "-I", "xz -6 -T0", "-cf", str(archive), "."]
        subprocess.run(pack, check=True)
        shutil.rmtree(args.folder, ignore_errors=True)
        size = args.mebibytes << 20
        with archive.open("rb") as stream:
            parts = [stream.read(size) for _ in range(-(-archive.stat().st_size // size))]
    for number, part in enumerate(parts, 1):
        folder = args.folder / str(number)
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(part)
        (folder / "setup.sh").write_text(SETUP.format(number=number, count=len(parts)))
        print(f"{folder}: {len(part) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
