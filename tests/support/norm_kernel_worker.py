"""Runs the VAE's norm kernel by Triton's interpreter and prints how far from float64 it is.

A process of its own: whether kernels are interpreted is settled when Triton is imported.
"""

import json

import torch
import torch.nn.functional as F

from video2world_preprocess.vae.norm_silu_kernel import norm_silu


def case(shape, dtype, shifted, scale):
    """Relative error, and whether what lies beside the output stayed as it was."""
    torch.manual_seed(0)
    batch, channels, frames, height, width = shape
    x = scale * torch.randn(shape)
    x = x.to(dtype).to(memory_format=torch.channels_last_3d)
    around = torch.full((batch, channels, 2 + frames, height, width), 9.0, dtype=dtype)
    around = around.to(memory_format=torch.channels_last_3d)
    gamma, bias = torch.randn(2, channels, 1, 1, 1).to(dtype)
    norm_silu(x, gamma, bias if shifted else None, channels**0.5, around[:, :, 2:])
    wanted = F.normalize(x.double(), dim=1) * channels**0.5 * gamma.double()
    wanted = F.silu(wanted + bias.double() if shifted else wanted)
    difference = around[:, :, 2:].double() - wanted
    return {
        "case": f"{shape} {dtype} shifted={shifted} scale={scale}",
        "error": float(difference.norm() / wanted.norm().clamp(min=1)),
        "beside": bool((around[:, :, :2] == 9).all()),
        "bound": 1e-6 if dtype == torch.float32 else 5e-3,
    }


if __name__ == "__main__":
    sizes = [
        ((1, 96, 2, 5, 7), torch.float32),
        ((2, 40, 3, 5, 7), torch.float32),
        ((2, 40, 3, 5, 7), torch.bfloat16),
        ((1, 384, 1, 9, 16), torch.bfloat16),
    ]
    cases = [case(*size, shifted, 1.0) for size in sizes for shifted in (False, True)]
    cases.append(case((1, 8, 1, 2, 3), torch.float32, False, 0.0))  # black: nothing is divided by 0
    print(json.dumps(cases))
