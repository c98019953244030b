"""Define the clips and weights of NVIDIA's published action-conditioned network.

Source of the values: cosmos_predict2/configs/action_conditioned in
https://github.com/nvidia-cosmos/cosmos-predict2
"""

from __future__ import annotations

__all__ = ["DIMENSION", "FRAMES", "FRAME_SIZE", "REPOSITORY", "SCALE", "WEIGHTS_FILE"]

REPOSITORY = "nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"
WEIGHTS_FILE = "model-480p-4fps.pt"
FRAME_SIZE = (480, 640)  # height and width in pixels
FRAMES = 13  # pixel frames of a clip
DIMENSION = 7  # numbers of an action, which leads from one frame to the next
SCALE = (20.0,) * 6 + (1.0,)  # of a relative pose and the gripper, as in the Bridge data
