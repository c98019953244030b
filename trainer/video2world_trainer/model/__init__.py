"""The diffusion transformer: network, attention kernels, LoRA adapters and weights."""
