from __future__ import annotations

import json
import math

import pytest

from loadtest.timeline import GREEDY, OTHERS, Part, Timeline, bucket, is_refusal, milliseconds
from loadtest.trend import trend


def test_a_bucket_errs_by_two_percent_and_never_says_too_little() -> None:
    for seconds in (0.000_02, 0.001, 0.0123, 0.5, 7.0):
        assert seconds * 1000 <= milliseconds(bucket(seconds)) * (1 + 1e-9)
        assert milliseconds(bucket(seconds)) <= seconds * 1000 * 1.02 * (1 + 1e-9)
    assert milliseconds(bucket(0.0)) > 0


def test_percentiles_are_nearest_ranks_of_the_answered() -> None:
    part = Part(1.0)
    for ms in range(1, 101):
        part.add("answered", bucket(ms / 1000))
    part.add("failed", 0)
    assert part.percentile(0.99) == pytest.approx(99, rel=0.021)
    assert part.percentile(1.0) == pytest.approx(100, rel=0.021)
    assert part.percentile(0.5) == pytest.approx(50, rel=0.021)
    assert (part.sent, part.fail_share) == (101, 1 / 101)
    assert Part(1.0).percentile(0.5) == math.inf


def test_requests_are_counted_in_the_second_in_which_they_were_sent() -> None:
    line = Timeline()
    line.add(10.9, OTHERS, "answered", 5.0)  # answered in second 15
    line.add(11.0, OTHERS, "refused", 0.1)
    line.add(11.5, GREEDY, "failed", math.inf)
    assert line.between(10, 11).answered == 1
    assert line.between(11, 12).answered == 0
    assert (line.between(11, 12).refused, line.between(11, 12, OTHERS).failed) == (1, 0)
    assert line.between(10, 12, GREEDY).failed == 1
    assert line.seconds() == range(10, 12)
    # Only whole seconds: half of one would be a rate of nothing.
    assert line.between(10.5, 11.5).seconds == 0
    assert line.between(10.5, 12.5).sent == 2


def test_what_workers_counted_adds_up_to_what_one_would_have() -> None:
    one, other, whole = Timeline(), Timeline(), Timeline()
    for nth in range(200):
        for line in (one if nth % 3 else other, whole):
            line.add(
                5 + nth % 4, OTHERS if nth % 2 else GREEDY, "answered" if nth % 5 else "failed", nth / 1000
            )
    master = Timeline()
    for line in (one, other):
        master.merge(json.loads(json.dumps(line.take())))  # over the wire
        assert line.take() == []  # and sent once
    assert master.rows() == whole.rows()


def test_only_an_orderly_no_is_a_refusal() -> None:
    assert is_refusal(429, "1")
    assert is_refusal(503, "2")
    assert not is_refusal(429, None)
    assert not is_refusal(500, "1")


def test_a_line_through_noise_is_no_growth() -> None:
    level = trend([(float(at), 100.0 + (at % 2)) for at in range(40)])
    assert level.sure_growth == 0.0
    rising = trend([(float(at), 100.0 + at + (at % 2)) for at in range(40)])
    assert rising.growth == pytest.approx(39, rel=0.02)
    assert 30 < rising.sure_growth < 39
    exact = trend([(0.0, 1.0), (10.0, 2.0), (20.0, 3.0)])
    assert (exact.slope, exact.sure_growth) == pytest.approx((0.1, 2.0))
    assert "+360.00" in exact.told("MiB")
    assert trend([(0.0, 1.0), (1.0, 9.0)]).sure_growth == 0.0
