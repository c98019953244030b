"""The estimate of a sample's GPU memory, next to measured runs."""

import json

import pytest

from repository import ROOT
from video2world_common.sample_memory import network_bytes, sample_bytes

CASES = json.loads((ROOT / "benchmarks/results/inference.json").read_text())["cases"]
GIB = 2**30
B2, B14 = (3.91e9, 2048), (28.53e9, 5120)  # bytes of the weights, channels
TOKENS, PIXELS = 24 * 44 * 80, 704 * 1280


def test_an_evaluation():
    assert network_bytes(*B2, TOKENS, 2) / GIB == pytest.approx(
        CASES["network_pass"]["pair"]["peak_GiB"], rel=0.03
    )


@pytest.mark.parametrize(("case", "offload"), [("full_16fps", False), ("offload", True)])
def test_a_sample(case, offload):
    """The constants come from these two."""
    estimated = sample_bytes(*B2, TOKENS, 2, PIXELS, offload=offload) / GIB
    assert estimated == pytest.approx(CASES[case]["peak_GiB"], rel=0.01)


def test_14b_fits_into_48_gb_and_with_offload_into_24():
    assert 24e9 < sample_bytes(*B14, TOKENS, 2, PIXELS, offload=False) < 0.95 * 48e9
    assert sample_bytes(*B14, TOKENS, 2, PIXELS, offload=True) < 0.9 * 24e9


def test_what_makes_it_smaller():
    whole = sample_bytes(*B14, TOKENS, 2, PIXELS, offload=False)
    assert sample_bytes(*B14, TOKENS, 1, PIXELS // 4, offload=False) < whole
    assert sample_bytes(*B14, TOKENS / 4, 2, PIXELS // 4, offload=False) < whole
