"""Gradient accumulation keeps the global batch of a run on fewer ranks, and with it the loss."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from repository import ROOT
from small_network import network
from tiny_actions import ACTIONS, add_actions
from tiny_training import JOB, SETTINGS, SHAPE, add_window, events, losses
from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.distributed.process_group import World
from video2world_trainer.model.attention import sdpa
from video2world_trainer.training.batch_config import BatchConfig
from video2world_trainer.training.dataset import LatentDataset
from video2world_trainer.training.ema import Ema
from video2world_trainer.training.global_batch import GlobalBatch
from video2world_trainer.training.loss import NoiseDistribution, collate_noise, sample_noise
from video2world_trainer.training.optimizer import MasterAdamW
from video2world_trainer.training.prefetcher import Prefetcher
from video2world_trainer.training.step import TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, ACCUMULATE = "dataloader_train.batch_size", "trainer.grad_accum_iter"


# ------------------------------------------------------------- the same samples and noise


def drawn(volume, ranks, context, *, consumed=7, iterations=3, batch_size=1, clips=4):
    """Everything that each iteration trains on, in order of data positions."""
    count = clips // (ranks * batch_size)
    folder = volume / "datasets/d/train"
    found = [{} for _ in range(iterations)]
    for rank in range(ranks * context):
        mesh = ParallelMesh(World(rank, ranks * context), context)
        dataset = LatentDataset(
            folder, shape=SHAPE, geometry="crop", text_length=4, frames=mesh.frames(SHAPE[1])
        )
        batches = Prefetcher(
            dataset,
            mesh,
            consumed=consumed,
            batch_size=batch_size,
            shape=SHAPE,
            distribution=NoiseDistribution(),
            seed=3,
        )
        for clips_of in found:
            for number in range(count):
                batch = next(batches)
                place = (number * ranks + mesh.data_rank) * batch_size
                for row in range(batch_size):
                    noise = {name: one[row] for name, one in vars(batch.noise).items()}
                    parts = {"latents": batch.latents[row], "text": batch.text[row], **noise}
                    parts["name"] = batch.batch.names[row]
                    clips_of.setdefault(place + row, {})[mesh.context_rank] = parts
        batches.close()
    return [[whole(clips_of[place]) for place in range(clips)] for clips_of in found]


def whole(by_context_rank):
    """Put the frames of a clip together."""
    parts = [by_context_rank[rank] for rank in sorted(by_context_rank)]
    frames = {name: torch.cat([one[name] for one in parts], 1) for name in ("latents", "noise")}
    return parts[0] | frames


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if torch.is_tensor(one[key]) else one[key] == other[key]
        for key in one
    )


@pytest.mark.parametrize(
    ("ranks", "context", "batch_size"),
    [(4, 2, 1), (2, 1, 1), (2, 2, 1), (1, 1, 1), (1, 2, 1), (2, 1, 2), (1, 1, 2)],
)
def test_every_number_of_ranks_trains_on_the_same_clips_and_noise(
    volume, ranks, context, batch_size
):
    fixed = drawn(volume, 4, 1)
    other = drawn(volume, ranks, context, batch_size=batch_size)
    for one, two in zip(fixed, other, strict=True):
        assert all(map(same, one, two))
    assert len({clip["sigma"].item() for iteration in fixed for clip in iteration}) == 12


# ------------------------------------------------------------- the same gradients


def batch_of(clips, shape=(16, 3, 4, 6)):
    generators = [torch.Generator().manual_seed(100 + n) for n in clips]
    latents = torch.stack([torch.randn(shape, generator=one) for one in generators])
    text = torch.stack([torch.randn(5, 32, generator=one) for one in generators])
    return latents, text, collate_noise([sample_noise(shape, one) for one in generators])


def steps(dtype, sizes, clip=0.0, broken=()):
    """Train three iterations of four clips each, in micro-batches of these ``sizes``."""
    net = network().to(dtype)
    net.set_attention(sdpa, sdpa)
    optimizer = MasterAdamW(net.named_parameters(), weight_decay=0.1)
    step = TrainStep(net, optimizer, Ema(net.named_parameters()), dtype=dtype, clip=clip)
    results = []
    for iteration in range(3):
        parts, first = [], 4 * iteration
        for number, size in enumerate(sizes, 1):
            latents, text, noise = batch_of(range(first, first + size))
            if (iteration, number) in broken:
                latents[0, 0, 0, 0, 0] = float("nan")
            loss = step.backward(latents, text, noise, number=number, count=len(sizes))
            parts.append(loss)
            first += size
        results.append(step.apply(sum(parts), 1e-3))
    return results, step


@pytest.mark.parametrize("sizes", [(2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_micro_batches_train_as_one_batch(sizes, dtype, limit):
    expected, alone = steps(dtype, (4,), clip=1.0)
    found, step = steps(dtype, sizes, clip=1.0)
    for one, two in zip(found, expected, strict=True):
        assert float(one.loss) == pytest.approx(float(two.loss), rel=limit)
        assert float(one.gradient_norm) == pytest.approx(float(two.gradient_norm), rel=limit)
        assert float(two.gradient_norm) > 1  # clipping has an effect
    for name, master in alone.optimizer.masters.items():
        difference = (step.optimizer.masters[name] - master).abs().max()
        assert difference <= (2e-5 if dtype == torch.float32 else 6e-3), name
    assert float(step.updates) == 3


def test_sums_of_low_precision_gradients_are_float32_and_gone_after_the_step():
    """Summed in bfloat16, a gradient 300 times as small as the others would be lost."""
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([("weight", parameter)], weight_decay=0.0)
    for value in (1.0, 1 / 300, 1 / 300):
        parameter.grad = torch.full_like(parameter, value)
        optimizer.accumulate()
        assert parameter.grad is None
    (total,) = optimizer.gradients()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, torch.full((4,), 1 + 2 / 300), rtol=1e-4, atol=0)
    assert optimizer.gradient_bytes(accumulating=False) == 8
    assert optimizer.gradient_bytes(accumulating=True) == 24
    optimizer.step(1e-3)
    assert optimizer.masters["weight"].grad is None
    parameter.grad = torch.ones_like(parameter)
    assert optimizer.gradients()[0].dtype == torch.bfloat16


@pytest.mark.parametrize("broken", [(1, 1), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_with_one_broken_micro_batch_is_skipped_as_a_whole(broken, dtype):
    results, step = steps(dtype, (2, 2), broken=[broken])
    assert [float(one.skipped) for one in results] == [0, 1, 0]
    assert float(step.updates) == 2
    assert all(one.isfinite().all() for one in step.optimizer.masters.values())


# ------------------------------------------------------------- the train command


def test_the_command_accumulates_clips_and_reports_iterations(here, volume):
    short = ["trainer.max_iter=6", "trainer.logging_iter=2", "optimizer.clip_norm=0.5"]
    _, one = here(volume, "job.name=one", f"{BATCH}=4", *short)
    code, two = here(volume, "job.name=two", f"{ACCUMULATE}=4", *short)
    assert code == 0, two
    assert "a global batch of 4 (1 data-parallel ranks x dataloader_train.batch_size=1 x" in two
    assert list(losses(two)) == [2, 4, 6]
    assert list(losses(two).values()) == pytest.approx(list(losses(one).values()), rel=1e-5)
    trainers = [
        CheckpointFolder(volume / JOB.replace("demo", job)).load("trainer", 6)
        for job in ("one", "two")
    ]
    assert [one["progress"]["consumed"] for one in trainers] == [24, 24]
    assert trainers[0]["progress"]["divergence"]["nothing"] == pytest.approx(
        trainers[1]["progress"]["divergence"]["nothing"], rel=1e-6
    )
    assert trainers[1]["global_batch"] == {"ranks": 1, "batch_size": 1, "micro_batches": 4}
    rates = [events(out, "progress")[-1] for out in (one, two)]
    clips = [rate["tokens_per_second"] * rate["seconds_per_iteration"] / 8 for rate in rates]
    assert clips == pytest.approx([4, 4], rel=0.1)


def test_bad_windows_of_all_micro_batches_are_named(here, volume):
    add_window(volume, "w3", torch.full((2, *SHAPE), float("nan")))
    code, out = here(volume, f"{ACCUMULATE}=5", "trainer.max_iter=3")  # five windows: each is there
    assert code == 1, out
    skipped = events(out, "skipped_step")
    assert [one["iteration"] for one in skipped] == [1, 2, 3]
    assert all(one["batch"].count(", clip") == 5 for one in skipped)
    assert all("w3, clip" in one["batch"] for one in skipped)
    assert skipped[0]["batch"].count("its latents are not finite") == 1


def test_another_global_batch_is_refused_unless_on_purpose(here, volume):
    code, out = here(volume, f"{ACCUMULATE}=2", "trainer.max_iter=2")
    assert code == 0, out
    code, out = here(volume, f"{ACCUMULATE}=3", "trainer.max_iter=3")
    assert code == 2
    assert (
        "trainer.grad_accum_iter=3: the checkpoint was trained with a global batch of 2 (1 "
        "data-parallel ranks x dataloader_train.batch_size=1 x trainer.grad_accum_iter=2), this "
        "run has a global batch of 3" in out
    )
    assert "set trainer.grad_accum_iter=2, or set trainer.global_batch=3" in out
    assert "Traceback" not in out
    code, out = here(volume, f"{ACCUMULATE}=3", "trainer.global_batch=3", "trainer.max_iter=3")
    assert code == 0, out
    assert "trainer.grad_accum_iter=3) from here on, before a global batch of 2" in out
    code, out = here(volume, f"{BATCH}=2", "trainer.max_iter=4")  # as ever
    assert code == 0, out
    assert "a global batch of 2" in out
    code, out = here(volume, f"{BATCH}=2", "trainer.max_iter=5", "trainer.global_batch=5")
    assert code == 2
    assert "trainer.global_batch=5: this run has a global batch of 2" in out
    assert "use a number of ranks that divides 5" in out


def test_a_checkpoint_without_a_record_resumes_as_before(here, volume):
    here(volume, "trainer.max_iter=2")
    folder = CheckpointFolder(volume / JOB)
    trainer = folder.load("trainer", 2)
    del trainer["global_batch"]
    record = json.loads((folder.folder / "trainer/iter_000000002.json").read_text())
    record["trainer"] = folder.write("trainer", 2, trainer)
    folder.publish(2, record)
    code, out = here(volume, f"{ACCUMULATE}=3", "trainer.max_iter=3")
    assert code == 0, out
    assert "resuming from iteration 2" in out


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 8), st.integers(1, 64))
def test_a_run_resumes_on_other_ranks_exactly_if_the_clips_are_the_same(
    ranks, batch_size, micro_batches, others
):
    before = GlobalBatch(ranks, batch_size, micro_batches)
    now, remainder = divmod(ranks * micro_batches, others)
    if remainder or not now:
        batch = GlobalBatch(others, batch_size, micro_batches)
        if batch.clips != before.clips:
            with pytest.raises(UserError, match=r"trainer\.grad_accum_iter"):
                batch.resumes(before.plain(), 0)
    else:
        batch = GlobalBatch.of(BatchConfig(batch_size, now, before.clips), others)
        assert batch.clips == before.clips
        assert bool(batch.resumes(before.plain(), 0)) == (batch != before)


# ------------------------------------------------------------- the same loss curve

FULL = [
    "trainer.phases=[[16,32,2],[32,32]]",
    "model.config.fsdp_shard_size=-1",
    "optimizer.clip_norm=2",
    "trainer.run_validation=true",
    "trainer.validation_iter=4",
    "trainer.validation_weights=ema",
]
LORA = [
    "model.config.train_architecture=lora",
    "model.config.lora_rank=4",
    "model.config.fsdp_shard_size=2",  # on four ranks two replicas of two shards
    f"{BATCH}=2",
]


@pytest.fixture
def everything(volume):
    """Latents of two sizes, actions, and a held-out window."""
    generator = torch.Generator().manual_seed(1)
    add_window(volume, "v0", torch.randn((2, *SHAPE), generator=generator), "val")
    folder = volume / "datasets/d/train"
    (folder / "latents_16x32").mkdir()
    for path in sorted((folder / "latents").iterdir()):
        save_file(
            {
                "latents": torch.randn((2, *SHAPE[:2], 2, 4), generator=generator),
                "starts": torch.arange(2),
            },
            folder / "latents_16x32" / path.name,
            metadata={"geometry": "crop"},
        )
    add_actions(volume)
    return volume


def train_on(folder, runs):
    """Train all ``runs``, pairs of the number of ranks and settings; return what each printed."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in runs]
        ports = [one.getsockname()[1] for one in sockets]
    listed = [
        {"ranks": ranks, "port": port, "folder": str(folder), "overrides": [*SETTINGS, *settings]}
        for (ranks, settings), port in zip(runs, ports, strict=True)
    ]
    (folder / "runs.json").write_text(json.dumps(listed))
    done = subprocess.run(
        [sys.executable, ROOT / "tests/support/elastic_worker.py", folder / "runs.json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts, current = [], []
    for line in done.stdout.splitlines():
        current.append(line)
        if line.startswith('{"run"'):
            parts.append("\n".join(current))
            current = []
    return parts


CONTEXT = "model_parallel.context_parallel_size"
RUNS = {  # settings, and the ranks of the fixed run and of the attempts of the elastic one
    "full": (FULL, 4, (2, 4)),
    "lora": (LORA, 1, (4, 1)),
    "acted": ([ACTIONS], 1, (4, 2)),
}


@pytest.mark.slow
def test_the_loss_curve_stays_when_the_number_of_ranks_changes(everything):
    runs = []
    for name, (settings, fixed, changes) in RUNS.items():
        same = [f"job.name={name}_fixed", f"{ACCUMULATE}={4 // fixed}", *settings]
        runs.append((fixed, [*same, "trainer.max_iter=8"]))
        for ranks, until in zip(changes, (4, 8), strict=True):
            own = [f"job.name={name}", f"trainer.max_iter={until}", *settings]
            context = 2 if name == "acted" else 1
            own += [f"{CONTEXT}={context}", f"{ACCUMULATE}={4 * context // ranks}"]
            runs.append((ranks, own))
    outs = iter(train_on(everything, runs))
    for name, (_, _, changes) in RUNS.items():
        fixed = next(outs)
        attempts = [next(outs) for _ in changes]
        assert "resuming from iteration 4" in attempts[1]
        found = {number: loss for out in attempts for number, loss in losses(out).items()}
        assert list(found) == list(losses(fixed)) == list(range(1, 9))
        assert list(found.values()) == pytest.approx(list(losses(fixed).values()), rel=1e-5), name
        measured = [
            {one["iteration"]: one["loss"] for out in of for one in events(out, "validation")}
            for of in ([fixed], attempts)
        ]
        assert measured[1] == pytest.approx(measured[0], rel=1e-5)
        assert list(measured[0]) == ([0, 4, 8] if name == "full" else [])
        end = [
            CheckpointFolder(everything / JOB.replace("demo", job)).load("trainer", 8)["progress"]
            for job in (f"{name}_fixed", name)
        ]
        assert end[0]["consumed"] == end[1]["consumed"] > 0
        assert end[0]["updates"] == end[1]["updates"]
