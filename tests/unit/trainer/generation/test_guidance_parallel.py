"""A sample on several ranks (gloo) against one process."""

import os
import subprocess
import sys

import pytest

from repository import ROOT
from video2world_common.exit_codes import UserError
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.guidance_parallel import shard_sample, splits_branches
from video2world_trainer.model.attention import sdpa
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import PRESETS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "places"),
    [
        (
            2,
            [
                "rank 0: branch 0 frames 0-2",
                "rank 1: branch 1 frames 0-2",
                "rank 0: branch * frames 0-1",
                "rank 1: branch * frames 2-2",
            ],
        ),
        (4, ["rank 1: branch 0 frames 2-2", "rank 2: branch 1 frames 0-1"]),
    ],
)
def test_latents_on_several_ranks_equal_those_of_one_process(ranks, places):
    """With guidance, whose branches are split first, and without."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={ranks}", str(ROOT / "tests/support/sampling_worker.py")]
    branches = ["2", "1"] if ranks == 2 else ["2"]  # three frames cannot be split over four ranks
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *branches], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal:") == len(branches)
    for place in places:
        assert place in done.stdout


def test_branches_are_split_over_an_even_number_of_ranks():
    assert [splits_branches(World(0, n), 2) for n in (1, 2, 3, 4)] == [False, True, False, True]
    assert not splits_branches(World(0, 2), 1)


def test_an_indivisible_number_of_gpus_is_refused_by_flag():
    net = VideoDiT(PRESETS["Tiny"].dit)
    with pytest.raises(UserError, match=r"--num_gpus 3: it must divide the 4 attention heads"):
        shard_sample(net, sdpa, sdpa, World(0, 3), 2, 5)
