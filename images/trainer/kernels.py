"""Compile the attention kernels that have no wheel, without a CUDA image.

    kernels.py ampere|blackwell WHEELS

PyTorch's packages include CUDA's headers and libraries, and PyPI has the compiler
(nvidia-cuda-nvcc); together they form the CUDA_HOME that builds of extensions need. Compiling
FlashAttention-2 for all head dimensions takes hours, so only what the models use is compiled: heads
of up to 128 in bfloat16, which takes minutes. The build refuses everything else at run time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FLASH_ATTENTION = "flash-attn==2.8.3.post2"
TRANSFORMER_ENGINE = "transformer-engine-torch==2.20.2"
UNUSED = ("DROPOUT", "ALIBI", "SOFTCAP", "LOCAL")  # features of FlashAttention that no model uses
SWITCHES = """
#define FP16_SWITCH(COND, ...) [&] { \\
    TORCH_CHECK(!(COND), "this build of FlashAttention-2 computes in bfloat16 alone"); \\
    using elem_type = cutlass::bfloat16_t; return __VA_ARGS__(); }()
#define HEADDIM_SWITCH(HEADDIM, ...) [&] { \\
    TORCH_CHECK((HEADDIM) <= 128, "this build of FlashAttention-2 has heads of up to 128"); \\
    constexpr static int kHeadDim = 128; return __VA_ARGS__(); }()
"""


def cuda_home(folder: Path) -> Path:
    """Link the files of the installed nvidia packages into ``folder`` like a CUDA toolkit."""
    for packages in map(Path, sys.path):
        for part in ("cu13", "cudnn", "nccl"):
            for source in (packages / "nvidia" / part).rglob("*"):
                target = folder / source.relative_to(packages / "nvidia" / part)
                if source.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                elif not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(source)
    for library in [*(folder / "lib").glob("*.so.*")]:
        plain = library.with_name(library.name.partition(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)
    (folder / "lib64").symlink_to("lib")
    return folder


def sources(requirement: str, folder: Path) -> Path:
    """Download and unpack the source distribution of ``requirement``; return its folder."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    subprocess.run([*pip, "--no-build-isolation", "--dest", folder, requirement], check=True)
    (archive,) = folder.glob("*.tar.gz")
    # not tarfile: Debian 12's has no filter against paths outside the folder; tar refuses them
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
    return folder / archive.name.removesuffix(".tar.gz")


def narrow(tree: Path) -> None:
    """Remove all kernels but those for head dimension 128 and bfloat16 from FlashAttention."""
    header = tree / "csrc/flash_attn/src/static_switch.h"
    kept = header.read_text().partition("#define FP16_SWITCH")[0]
    header.write_text(f"{kept}#include <c10/util/Exception.h>\n{SWITCHES}")
    setup = tree / "setup.py"
    other = r'^\s*"csrc/flash_attn/src/flash_(?!\w*hdim128_bf16)\w+\.cu",\n'
    text = re.sub(other, "", setup.read_text(), flags=re.MULTILINE)
    setup.write_text(text.replace("c++17", "c++20"))  # the standard that PyTorch's headers need


def main(variant: str, wheels: Path) -> int:
    """Build the variant's wheel into ``wheels``; return pip's exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        home = cuda_home(Path(scratch) / "cuda")
        os.environ |= {
            "CUDA_HOME": str(home),
            "CUDA_PATH": str(home),
            "CUDNN_PATH": str(home),
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "CPATH": str(home / "include"),
            "LIBRARY_PATH": str(home / "lib"),
            "MAX_JOBS": str(os.cpu_count() or 1),
            "NVCC_THREADS": "1",
            "FLASH_ATTENTION_FORCE_BUILD": "TRUE",
            "FLASH_ATTN_CUDA_ARCHS": "80",
            "NVCC_APPEND_FLAGS": " ".join(f"-DFLASHATTENTION_DISABLE_{one}" for one in UNUSED),
            "NVTE_FRAMEWORK": "pytorch",
        }
        requirement = {"ampere": FLASH_ATTENTION, "blackwell": TRANSFORMER_ENGINE}[variant]
        tree = sources(requirement, Path(scratch))
        if variant == "ampere":
            narrow(tree)
        wheel = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
        return subprocess.run([*wheel, "--wheel-dir", wheels, tree]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
