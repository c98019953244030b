"""Select the attention kernel: the requested one, or the best for this GPU and its packages.

All kernels have the signature :data:`video2world_trainer.model.attention.Attend` and compute the
same attention: no mask, softmax scale 1 / sqrt(head_dim).
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
from video2world_trainer.model.attention import Attend, sdpa
from video2world_trainer.model.flash_attention_4 import flash_attention_4

__all__ = ["AUTO", "BACKENDS", "Backend", "Choice", "installed", "select", "select_for"]

AUTO = ("auto", "minimal_a2a")  # our name for automatic selection, and upstream's
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """A kernel, its requirements, and its loader.

    ``majors`` are the major numbers of supported compute capabilities; empty means any device.
    ``module`` must be importable and is installed by ``package``. ``load`` takes the compute
    capability of the GPU, None without one.
    """

    name: str
    majors: tuple[int, ...]
    module: str
    package: str
    load: Callable[[tuple[int, int] | None], Attend]
    index: str = ""  # option for pip if PyPI has no build

    def obstacle(
        self,
        capability: tuple[int, int] | None,
        dtype: torch.dtype,
        has: Callable[[str], bool],
    ) -> str | None:
        """Return why this kernel cannot run here; None if it can."""
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
    """The selected kernel, and the reason, for the log."""

    name: str
    attend: Attend
    reason: str
    cross_attention: Attend  # for cross-attention: many queries, few keys


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def installed(module: str) -> bool:
    """Return whether ``module`` can be found; this imports its parent packages only."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _flash(module: str) -> Callable[[tuple[int, int] | None], Attend]:
    def load(capability: tuple[int, int] | None) -> Attend:
        kernel = importlib.import_module(module).flash_attn_func

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = kernel(query, key, value)
            result: Tensor = out[0] if isinstance(out, tuple) else out  # some add the log-sum-exp
            return result

        return attend

    return load


def _flash_attention_4(capability: tuple[int, int] | None) -> Attend:
    importlib.import_module("flash_attn.cute.interface")  # fail here rather than at the first call
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
        return torch.unflatten(out, -1, query.shape[2:])

    return attend


def _torch(capability: tuple[int, int] | None) -> Attend:
    """Load PyTorch's attention with upstream's order of kernels (its ``module/attention.py``)."""
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
    for one in (  # in order of preference
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
        # flash-attn-4 also installs a package flash_attn, so look for a module that version 2 adds
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
"""Kernels by their name in ``model.config.pipe_config.net.atten_backend``."""


def select(
    wanted: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    has: Callable[[str], bool] = installed,
) -> Choice:
    """Select a kernel.

    Args:
        wanted: a name of :data:`BACKENDS`, or one of :data:`AUTO` for the first that can run.
        capability: the GPU's compute capability, None without a GPU.
        dtype: the dtype of queries, keys and values.
        has: returns whether a module is installed.

    Raises:
        UserError: the kernel is unknown or cannot run here; the message names those that can.
    """
    setting = f"model.config.pipe_config.net.atten_backend={wanted}"
    if wanted not in BACKENDS and wanted not in AUTO:
        raise UserError(f"{setting}: this must be one of {', '.join([*AUTO, *BACKENDS])}")
    obstacles = {
        name: backend.obstacle(capability, dtype, has) for name, backend in BACKENDS.items()
    }
    if obstacles.get(wanted):
        usable = ", ".join(name for name, obstacle in obstacles.items() if obstacle is None)
        raise UserError(
            f"{setting}: {obstacles[wanted]}; usable here: {usable} (or remove the setting)"
        )
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
        reason = "; ".join(["the best available", *passed]) if wanted in AUTO else "requested"
        # with a caption's 512 keys, flash-attn-4 is 1.6 times slower than cuDNN (performance.md)
        few = _torch(capability) if name == "flash_attention_4" else attend
        return Choice(name, attend, reason, few)
    raise UserError(
        f"{setting}: {obstacles[wanted]}; install the build for this PyTorch and CUDA, or set it "
        "to torch"
    )


def select_for(wanted: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """Select a kernel for the device that the model is on; see :func:`select`."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return select(wanted, capability, dtype)
