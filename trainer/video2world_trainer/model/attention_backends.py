"""Which attention kernel runs: the one asked for, or the best that the GPU and packages allow.

Every kernel takes and gives the layout of :data:`video2world_trainer.model.dit.Attend` and computes
the same attention: no mask, softmax scale 1 / sqrt(head_dim).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from video2world_common.exit_codes import UserError
from video2world_trainer.model.dit import Attend, sdpa
from video2world_trainer.model.flash_attention_4 import flash_attention_4

__all__ = ["AUTO", "BACKENDS", "Backend", "Choice", "installed", "select", "select_for"]

AUTO = ("auto", "minimal_a2a")  # upstream's name for "the best there is", and ours
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """A kernel: where it runs, what it needs, and how it is loaded.

    ``majors`` are the compute capabilities' first numbers, empty for any device; ``module`` is
    what must be importable and ``package`` what installs it.
    """

    name: str
    majors: tuple[int, ...]
    module: str
    package: str
    load: Callable[[tuple[int, int] | None], Attend]
    index: str = ""  # pip's option where PyPI has no build

    def obstacle(
        self,
        capability: tuple[int, int] | None,
        dtype: torch.dtype,
        has: Callable[[str], bool],
    ) -> str | None:
        """Why this kernel cannot run here; None if it can."""
        if not self.majors:
            return None
        if capability is None:
            return "it needs an NVIDIA GPU, and there is none"
        if capability[0] not in self.majors:
            fitting = ", ".join(f"{major}.x" for major in self.majors)
            return f"it runs on compute capability {fitting}, this GPU has {_dotted(capability)}"
        if dtype not in HALF:
            return f"it computes in bfloat16 or float16, the model is {_plain(dtype)}"
        if not has(self.module):
            where = f" {self.index}" if self.index else ""
            return (
                f"the package {self.package} is not installed (pip install '{self.package}'{where})"
            )
        return None


@dataclass(frozen=True)
class Choice:
    """The kernel that was chosen, and why, for the log."""

    name: str
    attend: Attend
    reason: str
    to_caption: Attend  # from many tokens to a caption's few


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def installed(module: str) -> bool:
    """Whether ``module`` can be found. Its parents are imported, the module itself is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _flash(module: str) -> Callable[[tuple[int, int] | None], Attend]:
    def load(capability: tuple[int, int] | None) -> Attend:
        kernel = importlib.import_module(module).flash_attn_func

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = kernel(query, key, value)
            return out[0] if isinstance(out, tuple) else out  # some builds add the log-sum-exp

        return attend

    return load


def _flash_attention_4(capability: tuple[int, int] | None) -> Attend:
    importlib.import_module("flash_attn.cute.interface")  # what the operator will call
    return flash_attention_4


def _transformer_engine(capability: tuple[int, int] | None) -> Attend:
    module = importlib.import_module("transformer_engine.pytorch")

    @cache
    def layer(heads: int, head_dim: int) -> Callable[..., Tensor]:
        made: Callable[..., Tensor] = module.DotProductAttention(
            heads, head_dim, attention_dropout=0.0, qkv_format="bshd", attn_mask_type="no_mask"
        )
        return made

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = layer(*query.shape[2:])(query, key, value, attn_mask_type="no_mask")
        return out.unflatten(-1, query.shape[2:])

    return attend


def _torch(capability: tuple[int, int] | None) -> Attend:
    """PyTorch's own, in upstream's order of kernels for the GPU (facts 1.7)."""
    if capability is None:
        return sdpa
    first = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    if capability in ((9, 0), (10, 0)):
        first.reverse()
    order = [*first, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(order, set_priority=True):
            return F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            ).transpose(1, 2)

    return attend


BACKENDS: dict[str, Backend] = {
    one.name: one
    for one in (  # in the order in which "auto" prefers them
        Backend(
            "flash_attention_4", (9, 10), "flash_attn.cute", "flash-attn-4", _flash_attention_4
        ),
        Backend(
            "flash_attention_3",
            (9,),
            "flash_attn_interface",
            "flash-attn-3",
            _flash("flash_attn_interface"),
            "--index-url https://download.pytorch.org/whl/cu130",
        ),
        Backend(
            "transformer_engine",
            (8, 9, 10, 12),
            "transformer_engine.pytorch",
            "transformer-engine[pytorch]",
            _transformer_engine,
        ),
        # flash-attn-4 alone also makes a package flash_attn, so look for version 2's own module
        Backend(
            "flash_attention_2",
            (8, 9, 10, 12),
            "flash_attn.flash_attn_interface",
            "flash-attn",
            _flash("flash_attn.flash_attn_interface"),
        ),
        Backend("torch", (), "torch", "torch", _torch),
    )
}
"""Every kernel by its name in ``model.config.pipe_config.net.atten_backend``."""


def select(
    wanted: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    has: Callable[[str], bool] = installed,
) -> Choice:
    """The kernel to use.

    Args:
        wanted: a name of :data:`BACKENDS`, or one of :data:`AUTO` for the first that can run.
        capability: the GPU's compute capability, None without a GPU.
        dtype: the dtype of queries, keys and values.
        has: whether a module is installed.

    Raises:
        UserError: no such kernel, or it cannot run here; the message says why and what could.
    """
    setting = f"model.config.pipe_config.net.atten_backend={wanted}"
    if wanted not in BACKENDS and wanted not in AUTO:
        raise UserError(f"{setting}: this must be one of {', '.join([*AUTO, *BACKENDS])}")
    obstacles = {
        name: backend.obstacle(capability, dtype, has) for name, backend in BACKENDS.items()
    }
    if obstacles.get(wanted):
        usable = ", ".join(name for name, obstacle in obstacles.items() if obstacle is None)
        raise UserError(f"{setting}: {obstacles[wanted]}; here run {usable} (or leave it out)")
    for name in BACKENDS if wanted in AUTO else (wanted,):
        if obstacles[name] is not None:
            continue
        try:
            attend = BACKENDS[name].load(capability)
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            package = BACKENDS[name].package
            obstacles[name] = f"{package} is installed but does not load ({error})"
            continue
        passed = [f"{other}: {why}" for other, why in obstacles.items() if why is not None]
        reason = "; ".join(["the best that runs here", *passed]) if wanted in AUTO else "asked for"
        # flash-attn-4's forward takes 1.6 times cuDNN's on a caption's 512 keys (performance.md)
        few = _torch(capability) if name == "flash_attention_4" else attend
        return Choice(name, attend, reason, few)
    raise UserError(
        f"{setting}: {obstacles[wanted]}; install the build for this PyTorch and CUDA, or set it "
        "to torch"
    )


def select_for(wanted: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """:func:`select` for the device that the model lies on."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return select(wanted, capability, dtype)
