"""The record of phases at equal wall time: lengths, interval, document."""

import pytest
from benchmarks.phases import SHARES, compare, lengths, markdown

PACE = {"64x80": 0.1, "96x128": 0.25}


def measured(*pairs):
    kinds = zip(("without", "with"), zip(*pairs, strict=True), strict=True)
    return {
        "seconds_per_iteration": PACE,
        "iterations": {"without": [300], "with": [362, 155]},
        "runs": {
            kind: [
                {"seed": seed, "seconds": 60.0, "regular": loss, "ema": 2 * loss}
                for seed, loss in enumerate(losses)
            ]
            for kind, losses in kinds
        },
    }


def test_phases_take_as_long_as_training_at_the_final_size():
    low, high = lengths(300, PACE)
    assert low * PACE["64x80"] + high * PACE["96x128"] == pytest.approx(300 * 0.25, rel=0.01)
    assert low / high == pytest.approx(SHARES[0] / SHARES[1], rel=0.02)


def test_the_interval_is_that_of_paired_changes():
    same = compare(measured((2.0, 1.8), (4.0, 3.6), (3.0, 2.7)), "regular")
    assert same == {"mean": -0.1, "low": -0.1, "high": -0.1}
    wide = compare(measured((1.0, 0.8), (1.0, 1.2), (1.0, 1.0)), "ema")
    assert wide == {"mean": 0.0, "low": -0.4969, "high": 0.4969}


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(1.0, 0.9), (1.0, 0.91), (1.0, 0.89)], "better"),
        ([(1.0, 1.1), (1.0, 1.11), (1.0, 1.09)], "worse"),
        ([(1.0, 0.9), (1.0, 1.1), (1.0, 1.0)], "no difference beyond the spread of the seeds"),
    ],
)
def test_the_document_says_what_was_measured(pairs, verdict):
    found = measured(*pairs)
    host = {"cores": 2, "cpu": "C", "load_at_start": 1, "python": "3", "torch": "2", "date": "d"}
    change = {weights: compare(found, weights) for weights in ("regular", "ema")}
    host |= {"commit": "c", "command": "x"}
    record = {"host": host, "measured": found, "change": change}
    text = markdown({"300": record, "150": record})  # one record for each length
    assert text.count(f": {verdict}.") == 4
    assert "| 0 | 60, 60 | 1.0000," in text
    assert "300 iterations at 96x128 take as long as 362 at 64x80 and 155 at 96x128" in text
