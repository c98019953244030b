"""Estimates of time: measured times as they are, others ordered as the work is."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video2world_common.experiments import EXPERIMENTS
from video2world_common.gpu_rates import RATED_FLOPS, gpu_kind
from video2world_operator.api.validation import load_resource, parse
from video2world_operator.preflight.facts import Gpu
from video2world_operator.preflight.measured_times import measured_times
from video2world_operator.preflight.time_estimate import describe, estimate_time
from video2world_operator.preflight.work import CPU, SampleWork, StepWork

SAMPLES = sorted((Path(__file__).parents[4] / "manifests" / "samples").glob("*.yaml"))
TIMES = measured_times()
H200, H100 = Gpu("NVIDIA H200"), Gpu("NVIDIA-H100-80GB-HBM3")
A100 = Gpu("NVIDIA-A100-SXM4-80GB")


def resource(size="2B", *, model=None, training=None, **spec):
    return parse(
        {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": "run"},
            "spec": {
                "model": ({"size": size} if size else {}) | (model or {}),
                "dataset": {"agibot": {}},
                "training": {"iterations": 1000} | (training or {}),
                **spec,
            },
        }
    )


ONE = {"nodes": 1, "gpusPerNode": 1, "contextParallelSize": 1}


@st.composite
def steps(draw, *, sparse=None):
    split = draw(st.sampled_from([1, 2, 4, 8]))
    return StepWork(
        draw(st.sampled_from(["2B", "14B"])),
        1 + 8 * draw(st.integers(1, 16)),
        draw(st.sampled_from([(432, 768), (704, 1280)])),
        sparse=draw(st.booleans()) if sparse is None else sparse,
        lora=draw(st.booleans()),
        batch_size=draw(st.integers(1, 8)),
        context_parallel=split,
        gpus=split * draw(st.sampled_from([1, 2, 4])),
        kernel=draw(st.sampled_from(["FlashAttention4", "Torch"])),
        gpu=draw(st.sampled_from(sorted(RATED_FLOPS))),
    )


# ---------------------------------------------------------------------- properties


def test_measured_times_are_returned_as_they_are():
    for one in TIMES.steps:
        assert TIMES.step(one.work).seconds == one.seconds
        assert TIMES.step(one.work).measured
    for one in TIMES.samples:
        assert TIMES.sample(one.work).seconds == one.seconds


@settings(max_examples=100, deadline=None)
@given(steps(), st.integers(1, 8))
def test_more_work_takes_longer(work, more):
    seconds = TIMES.step(work).seconds
    assert seconds > 0
    larger = [
        replace(work, frames=work.frames + 4 * more),
        replace(work, batch_size=work.batch_size + more),
        replace(work, micro_batches=work.micro_batches + more),
        replace(work, video_size=(work.video_size[0] + 16 * more, work.video_size[1])),
    ]
    assert all(TIMES.step(one).seconds > seconds for one in larger)


@settings(max_examples=100, deadline=None)
@given(steps(sparse=False))
def test_sparse_is_not_slower(work):
    at_720p = replace(work, video_size=(704, 1280), frames=max(work.frames, 61))
    assert TIMES.step(replace(at_720p, sparse=True)).seconds <= TIMES.step(at_720p).seconds


@settings(max_examples=100, deadline=None)
@given(steps())
def test_a_step_of_another_gpu_goes_by_its_rated_speed_and_is_never_measured(work):
    a100 = TIMES.step(replace(work, gpu="A100"))
    assert not a100.measured
    assert "measured with" in a100.basis
    same = replace(work, gpu="H200", kernel=a100.record.work.kernel)
    assert a100.seconds > TIMES.step(same).seconds


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        SampleWork,
        size=st.sampled_from(["2B", "14B"]),
        frames=st.sampled_from([61, 93]),
        video_size=st.just((704, 1280)),
        sparse=st.booleans(),
        evaluations=st.integers(2, 200),
        gpus=st.sampled_from([1, 2, 4, 8]),
        gpu=st.sampled_from(["H200", "H100", "A100", "B200"]),
    )
)
def test_samples_are_ordered_as_their_work_is(work):
    seconds = TIMES.sample(work).seconds
    assert TIMES.sample(replace(work, evaluations=work.evaluations + 1)).seconds > seconds
    assert TIMES.sample(replace(work, approximate=True)).seconds < seconds
    assert TIMES.sample(replace(work, sparse=True)).seconds <= seconds
    assert TIMES.sample(replace(work, gpus=work.gpus * 2)).seconds < seconds


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["2B", "14B"]),
    st.sampled_from(["480p", "720p"]),
    st.sampled_from([10, 16]),
    st.integers(1, 10_000),
    st.sampled_from([(), (H200,), (H100, A100)]),
)
def test_phases_add_up(size, resolution, fps, iterations, gpus):
    model = {"resolution": resolution, "fps": fps}
    found = estimate_time(resource(size, model=model, training={"iterations": iterations}), gpus)
    assert [one.phase.iterations for one in found.phases] == [iterations]
    assert found.seconds == found.phases[0].seconds
    phases = [
        {"resolution": "480p", "iterations": iterations},
        {"resolution": "720p", "iterations": 2 * iterations},
    ]
    made = resource(size, model={"fps": fps}, training={"iterations": None, "phases": phases})
    found = estimate_time(made, gpus)
    assert [one.phase.iterations for one in found.phases] == [iterations, 2 * iterations]
    assert found.phases[0].step.seconds < found.phases[1].step.seconds
    assert found.seconds == pytest.approx(sum(one.seconds for one in found.phases))
    assert found.gpu_hours == pytest.approx(found.seconds * found.gpus / 3600)


# ---------------------------------------------------------------------- resources


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_experiment_has_an_estimate(name):
    found = estimate_time(resource(None, training={"experiment": name}))
    assert 0.1 < found.seconds / 1000 < 60


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_file_has_an_estimate(path):
    made = load_resource(path)
    found = estimate_time(made)
    assert found.seconds > 0
    measured = made.spec.inference.samples and not made.spec.tiny  # no sample of Tiny was timed
    assert (found.sample is not None) == bool(measured)


def test_a_measured_layout_is_called_measured():
    iteration, basis, training = describe(estimate_time(resource(training=ONE), [H200]))
    (record,) = [r for r in TIMES.steps if r.work == StepWork("2B", 93, (704, 1280))]
    assert iteration[0] == "iteration"
    assert iteration[1].startswith(f"{record.seconds:.3g} s on 1 x H200 with flash-attn-4, 12.2 s")
    assert basis == ("", f"measured on {record.date[:10]}, commit {record.version}")
    assert training == ("training", "2h57m, 2.96 GPU hours (1000 iterations)")


def test_other_attention_is_shown_or_used():
    shown = estimate_time(resource(training=ONE), [H200])
    asked = estimate_time(resource(training=ONE | {"attention": "Torch"}), [H200])
    assert asked.phases[0].step.measured
    assert shown.phases[0].with_torch == asked.phases[0].step.seconds > shown.seconds / 1000
    assert asked.phases[0].with_torch is None
    not_timed = estimate_time(resource(training=ONE | {"attention": "FlashAttention2"}), [H200])
    assert "FlashAttention2 was not timed; times are with flash-attn-4" in not_timed.notes


@pytest.mark.parametrize(
    ("gpus", "kind", "note"),
    [
        ((), "H200", "no GPU was found: times are those of H200"),
        ((H100,), "H100", None),
        ((H100, A100), "A100", "times are those of A100, the slowest of A100, H100"),
        (
            (Gpu("a GPU of unknown model"),),
            "H200",
            "no node names its GPU (label nvidia.com/gpu.product): times are those of H200",
        ),
        (
            (Gpu("NVIDIA A10"), Gpu("a GPU of unknown model")),
            "H200",
            "the speed of NVIDIA A10 is not known: times are those of H200",
        ),
    ],
)
def test_the_kind_of_gpu_is_found_or_said_to_be_assumed(gpus, kind, note):
    found = estimate_time(resource(), gpus)
    assert (found.gpu, list(found.notes)) == (kind, [note] if note else [])


def test_phases_are_shown_one_by_one():
    phases = [
        {"resolution": "480p", "iterations": 700},
        {"resolution": "720p", "iterations": 300},
    ]
    made = resource(training=ONE | {"iterations": None, "phases": phases})
    shown = dict(describe(estimate_time(made, [H200])))
    assert shown["iteration 720p"].startswith("10.7 s on 1 x H200")
    assert shown["training"].endswith(
        "(700 iterations at 480p: 21m29s, 300 iterations at 720p: 53m18s)"
    )


def test_what_was_not_measured_is_said():
    found = estimate_time(resource("14B"), [H100])
    assert list(found.notes) == ["transfers between 4 nodes were not measured"]
    tiny = resource("Tiny", training={"device": "GPU"})
    assert estimate_time(tiny) is None
    assert list(describe(None)) == [("training", "no estimate: nothing similar was measured")]


def test_samples_are_counted_by_checkpoint_and_pod():
    inference = {"samples": [{"input": "a.mp4"}] * 3, "checkpoints": ["latest", 500]}
    one = estimate_time(resource(inference=inference), [H200])
    assert one.samples == 6
    assert one.sample_seconds == pytest.approx(6 * one.sample.seconds)
    storage = {"accessMode": "ReadWriteMany"}
    pods = resource(inference=inference | {"parallelism": 4}, storage=storage)
    assert estimate_time(pods, [H200]).sample_seconds == pytest.approx(2 * one.sample.seconds)
    every = estimate_time(resource(inference=inference | {"checkpoints": ["all"]}), [H200])
    assert every.sample_seconds is None
    (line,) = [text for name, text in describe(every) if name == "samples"]
    assert line == "3m30s each, from a loaded model"


HELD_OUT = {"agibot": {"validationPercent": 5}}


def test_the_evaluation_is_counted_by_model():
    evaluation = {"samples": 12, "checkpoints": [500, "latest"]}
    found = estimate_time(resource(dataset=HELD_OUT, evaluation=evaluation), [H200])
    sample = TIMES.sample(SampleWork("2B", 93, (704, 1280), gpu="H200"))
    assert found.evaluation.clip == sample
    assert found.evaluation.seconds == pytest.approx(3 * 12 * sample.seconds)  # base weights too
    assert found.sample is None  # there is no inference stage
    titles = [name for name, _ in describe(found)]
    assert titles[:4] == ["iteration", "", "training", "evaluation"]
    (text,) = [text for name, text in describe(found) if name == "evaluation"]
    assert text == (
        "2h06m for 36 clips (12 by the base weights and by 2 checkpoints), 3m30s each; less with "
        "fewer held-out windows"
    )
    shown = [text for _, text in describe(found)]
    assert sample.basis in shown
    assert "measuring the clips of the evaluation, four VAE passes each, is not included" in shown
    assert found.data()["evaluation"] == {
        "windows": 12,
        "models": 3,
        "secondsPerClip": sample.seconds,
        "clipBasis": sample.basis,
        "seconds": found.evaluation.seconds,
    }


def test_an_evaluation_of_all_checkpoints_has_no_total():
    evaluation = {"samples": 12, "checkpoints": ["all"]}
    inference = {"samples": [{"input": "a.mp4"}], "gpus": 2}
    made = resource(dataset=HELD_OUT, evaluation=evaluation, inference=inference)
    found = estimate_time(made, [H200])
    assert found.evaluation.clip == found.sample  # on as many GPUs as samples
    assert found.evaluation.models is found.evaluation.seconds is None
    lines = list(describe(found))
    (text,) = [text for name, text in lines if name == "evaluation"]
    assert text.startswith("12 clips by the base weights and by every checkpoint, 1m")
    assert [text for _, text in lines].count(found.sample.basis) == 1  # not repeated
    assert found.data()["evaluation"]["seconds"] is None


def test_nothing_is_said_of_an_evaluation_that_is_not_wanted_or_not_known():
    plain = estimate_time(resource(), [H200])
    assert plain.evaluation is None
    assert plain.data()["evaluation"] is None
    tiny = estimate_time(resource("Tiny", dataset=HELD_OUT, evaluation={}))
    assert tiny.evaluation is None
    assert not [note for note in tiny.notes if "evaluation" in note]


def test_a_sample_follows_mode_steps_and_guidance():
    def seconds(**inference):
        samples = [{"input": "a.mp4"}]
        made = resource(
            training={"attentionPattern": "Sparse"}, inference={"samples": samples} | inference
        )
        return estimate_time(made, [H200]).sample.seconds

    by_mode = {one.work.approximate: one.seconds for one in TIMES.samples if one.work.sparse}
    assert seconds() == by_mode[False]
    assert seconds(mode="Approximate") == by_mode[True]
    assert seconds(guidance=0) == pytest.approx(seconds() / 2, rel=0.1)
    assert seconds(steps=70) > 1.8 * seconds()
    assert 1.7 < seconds() / seconds(gpus=2) < 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA-H100-PCIe", "H100 PCIe"),
        ("NVIDIA-H100-NVL", "H100 NVL"),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "A100"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A10", None),
        ("a GPU of unknown model", None),
    ],
)
def test_kinds_by_the_names_of_drivers_and_labels(name, kind):
    assert gpu_kind(name) == kind


def test_a_cpu_is_not_compared_with_a_gpu():
    assert TIMES.step(StepWork("2B", 93, (704, 1280), gpu=CPU)) is None
    assert TIMES.step(StepWork("Tiny", 17, (96, 128), gpu="H200")) is None
