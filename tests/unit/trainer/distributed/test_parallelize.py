"""Test that many ranks compute what one rank computes: data, context and FSDP parallel."""

import os
import subprocess
import sys

import pytest

from repository import ROOT
from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.parallelize import ParallelMesh, build_mesh, frame_slice
from video2world_trainer.distributed.process_group import World


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "arrangements"),
    [
        (2, ["1,1", "2,1", "1,2", "2,2"]),  # context, FSDP: dp, cp, fsdp, cp + fsdp
        (4, ["2,1", "1,4", "2,2", "2,4"]),  # dp x cp, fsdp, dp x cp + fsdp over half and over all
    ],
)
def test_loss_gradients_norm_and_step_equal_one_process(ranks, arrangements):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={ranks}", str(ROOT / "tests/support/parallel_worker.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *arrangements], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal:") == len(arrangements)


@pytest.mark.parametrize(("frames", "parts"), [(24, 8), (24, 5), (3, 2), (7, 7)])
def test_ranks_cover_all_frames(frames, parts):
    slices = [frame_slice(frames, parts, i) for i in range(parts)]
    assert [n for one in slices for n in range(frames)[one]] == list(range(frames))
    sizes = [one.stop - one.start for one in slices]
    assert max(sizes) - min(sizes) <= 1


def test_loss_weights_give_the_mean_over_all_frames():
    layouts = [ParallelMesh(World(rank, 6), context_size=3) for rank in range(6)]
    assert sum(one.weight(7) for one in layouts) == pytest.approx(6)
    assert [(one.data_rank, one.context_rank) for one in layouts[2:4]] == [(0, 2), (1, 0)]


@pytest.mark.parametrize(
    ("ranks", "context", "message"),
    [
        (4, 3, r"context_parallel_size=3: the 4 ranks cannot be divided into groups of 3"),
        (1, 2, r"context_parallel_size=2: the 1 ranks cannot be divided"),
        (6, 6, r"must divide the 16 attention heads .* possible are 1, 2, 4, 8, 16"),
        (32, 32, r"at most the 24 latent frames"),
    ],
)
def test_indivisible_ranks_and_frames_are_rejected(ranks, context, message):
    with pytest.raises(UserError, match=message):
        build_mesh(World(0, ranks), context=context, shard_size=1, frames=24, heads=16)
