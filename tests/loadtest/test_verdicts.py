"""Each shape's bounds, on records made up for the purpose: a good one passes, each thing that can be wrong does not."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest import open_shapes, shape_report, shapes
from loadtest.record import Record, Stretch
from loadtest.shapes import Bounds
from loadtest.timeline import GREEDY, OTHERS, Outcome, Timeline
from loadtest.verdicts import judge, recovery, remarks, rows

BOUNDS = Bounds(p99=100.0, recover_p99=100.0, recover_within=5.0, max_slowdown=3.0)


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    shapes.add_options(parser)
    return parser.parse_args(flags)


def fill(
    line: Timeline, begin: int, end: int, *, rate: int = 50, ms: float = 10.0, outcome: Outcome = "answered",
    group: str = OTHERS,
) -> None:  # fmt: skip
    for second in range(begin, end):
        for nth in range(rate):
            line.add(second + nth / rate, group, outcome, ms / 1000)


def steady() -> Record:
    line = Timeline()
    fill(line, 100, 110)
    return Record("steady", "closed", [Stretch("steady", 100.0, 110.0, users=4)], line)


def ramp() -> Record:
    line, stretches = Timeline(), []
    for nth, (rate, ms) in enumerate([(20, 5.0), (40, 10.0), (42, 60.0), (41, 300.0)]):
        fill(line, 100 + 10 * nth, 110 + 10 * nth, rate=rate, ms=ms)
        stretches.append(Stretch(f"{2**nth} at once", 100.0 + 10 * nth, 110.0 + 10 * nth, users=2**nth))
    return Record("ramp", "closed", stretches, line)


def spike(slow_after: int = 2) -> Record:
    line = Timeline()
    fill(line, 100, 110)
    fill(line, 110, 120, rate=100, ms=500.0)
    fill(line, 120, 120 + slow_after, ms=400.0)
    fill(line, 120 + slow_after, 140)
    stretches = [
        Stretch("before", 100.0, 110.0),
        Stretch("spike", 110.0, 120.0),
        Stretch("after", 120.0, 140.0),
    ]
    return Record("spike", "closed", stretches, line)


def soak(grows: float = 0.0, leaks: int = 0) -> Record:
    line, memory = Timeline(), []
    for second in range(100, 400):
        fill(line, second, second + 1, rate=20, ms=10.0 + grows * (second - 100))
        memory.append((float(second), 500 * 2**20 + leaks * (second - 100) + second % 3 * 4096))
    return Record("soak", "closed", [Stretch("soak", 100.0, 400.0, users=2)], line, memory)


def greedy(beside: float = 20.0) -> Record:
    line = Timeline()
    fill(line, 100, 110, rate=20)
    fill(line, 110, 120, rate=20, ms=beside)
    fill(line, 110, 120, rate=200, ms=40.0, group=GREEDY)
    stretches = [Stretch("others alone", 100.0, 110.0), Stretch("with a greedy task", 110.0, 120.0)]
    return Record("greedy", "closed", stretches, line)


MADE: dict[str, Callable[[], Record]] = {
    "steady": steady, "ramp": ramp, "spike": spike, "soak": soak, "greedy": greedy,
}  # fmt: skip


def failed(record: Record, bounds: Bounds = BOUNDS) -> list[str]:
    return [check.name for check in judge(record, bounds) if not check.passed]


@pytest.mark.parametrize("name", MADE)
def test_a_good_run_passes_and_is_kept_whole(name: str) -> None:
    record = MADE[name]()
    assert failed(record) == []
    again = Record.from_plain(json.loads(json.dumps(record.as_plain(), allow_nan=False)))
    assert judge(again, BOUNDS) == judge(record, BOUNDS)
    assert rows(again) == rows(record)


@pytest.mark.parametrize("name", MADE)
def test_one_failure_anywhere_is_a_failure(name: str) -> None:
    record = MADE[name]()
    record.timeline.add(record.stretches[0].end - 0.5, OTHERS, "failed", 0.1)
    assert any("failures" in one for one in failed(record))
    record.timeline.add(record.stretches[0].end - 0.5, OTHERS, "refused", 0.1)
    allowed = Bounds(**{**BOUNDS.__dict__, "max_fail_share": 0.01, "max_refused_share": 0.01})
    if name != "greedy":  # whose others may never fail
        assert failed(record, allowed) == []


@pytest.mark.parametrize("name", MADE)
def test_a_server_that_answers_nothing_never_passes(name: str) -> None:
    made = MADE[name]()
    assert failed(Record(made.shape, "closed", made.stretches, Timeline())) == ["answered requests"]
    line = Timeline()
    fill(line, 100, 140, outcome="refused")
    assert failed(Record(made.shape, "closed", made.stretches, line)) == ["answered requests"]


@pytest.mark.parametrize("name", MADE)
def test_a_phase_of_which_nothing_was_measured_is_no_pass(name: str) -> None:
    record = MADE[name]()
    last = record.stretches[-1]
    record.stretches[-1] = Stretch(last.name, last.end - 0.5, last.end)
    assert failed(record) == ["whole seconds of each phase"]


@pytest.mark.parametrize("name", ["steady", "soak", "spike", "greedy"])
def test_refusals_are_told_apart_and_not_allowed_without_a_spike(name: str) -> None:
    record = MADE[name]()
    fill(record.timeline, 103, 104, outcome="refused")
    assert [one for one in failed(record) if "refusals" in one]
    assert not [one for one in failed(record) if "failures" in one]


def test_a_spike_may_be_refused_while_it_lasts() -> None:
    record = spike()
    fill(record.timeline, 112, 118, outcome="refused")
    assert failed(record) == []


def test_a_spike_of_which_nothing_was_answered_does_not_pass() -> None:
    record = spike()
    record.timeline = Timeline(row for row in record.timeline.rows() if not 110 <= row[0] < 120)
    fill(record.timeline, 110, 120, outcome="refused")
    assert failed(record) == ["answered during the spike"]


@pytest.mark.parametrize(("name", "left"), [("steady", range(100, 105)), ("soak", range(100, 390))])
def test_a_server_that_hangs_at_the_end_does_not_pass(name: str, left: range) -> None:
    record = MADE[name]()
    record.timeline = Timeline(row for row in record.timeline.rows() if row[0] in left)
    assert failed(record) == ["longest time without an answer"]
    assert failed(record, dataclasses.replace(BOUNDS, p99=10_000.0)) == []  # which may be one answer's time
    record.loop = "open"  # where a time in which nothing was sent is nobody's fault
    assert failed(record) == []


@pytest.mark.parametrize("name", ["ramp", "spike", "greedy"])
@pytest.mark.parametrize("phase", [0, 1])
def test_a_server_that_hangs_within_a_phase_does_not_pass(name: str, phase: int) -> None:
    record = MADE[name]()
    hung = range(101 + 10 * phase, 109 + 10 * phase)
    record.timeline = Timeline(row for row in record.timeline.rows() if row[0] not in hung)
    assert failed(record) == ["longest time without an answer"]
    record.loop = "open"
    assert failed(record) == []


def test_refusals_are_answers_and_the_greedy_tasks_answers_are_not_the_others() -> None:
    refused = spike()
    refused.timeline = Timeline(row for row in refused.timeline.rows() if row[0] not in range(111, 119))
    fill(refused.timeline, 111, 119, outcome="refused")
    assert failed(refused) == []
    starved = greedy()
    starved.timeline = Timeline(
        row for row in starved.timeline.rows() if row[1] == GREEDY or row[0] not in range(111, 119)
    )
    assert failed(starved) == ["longest time without an answer"]


def test_a_load_that_was_not_what_was_asked_for_does_not_pass() -> None:
    lost = steady()
    lost.broken = "a worker went missing"
    assert failed(lost) == ["the load"]
    assert not shape_report.result("x", [lost], BOUNDS, 1).passed
    few = spike()
    few.stretches[1] = dataclasses.replace(few.stretches[1], users=80, there=53)
    (check,) = (one for one in judge(few, BOUNDS) if not one.passed)
    assert (check.name, check.found, check.wanted) == ("users of spike", "53 at its end", "80")


def test_the_others_are_judged_while_a_task_floods() -> None:
    def flooded(ms: float, outcome: Outcome = "answered") -> Record:
        record = greedy()
        record.loop = "open"
        fill(record.timeline, 120, 130, rate=20, ms=ms, outcome=outcome)
        fill(record.timeline, 120, 130, rate=300, outcome="refused", group=GREEDY)
        record.stretches.append(Stretch("flooded by it, 130%", 120.0, 130.0, offered=320.0))
        return record

    assert failed(flooded(20.0)) == []  # the greedy one may be refused as much as it likes
    assert failed(flooded(150.0)) == ["the others' p99, flooded by it, 130%"]
    assert "the others' refusals" in failed(flooded(20.0, "refused"))
    assert [row["who"] for row in rows(flooded(20.0))] == [OTHERS, OTHERS, GREEDY, OTHERS, GREEDY]


@pytest.mark.parametrize("name", ["spike", "greedy"])
def test_a_run_that_was_cut_short_is_told_so(name: str) -> None:
    record = MADE[name]()
    record.stretches.pop()
    assert failed(record) == ["phases"]
    assert open_shapes.segments(parsed(f"--shape={name}"), record) == []


def test_an_open_loop_that_was_asked_for_and_not_sent_is_no_pass() -> None:
    made = shape_report.result("x", [steady()], BOUNDS, 0, unsent="too little")
    assert not made.passed
    assert [check.name for check in made.checks[0] if not check.passed] == ["open loop"]


@pytest.mark.parametrize("name", ["steady", "soak"])
def test_latency_and_rate_have_bounds(name: str) -> None:
    slow = Bounds(p99=5.0)
    assert any(one.startswith("p99") for one in failed(MADE[name](), slow))
    assert failed(MADE[name](), Bounds(min_rate=1000.0)) == ["answered a second"]


def test_a_ramp_is_judged_by_its_best_step() -> None:
    (_, best, _) = judge(ramp(), BOUNDS)
    assert best.found.startswith("42")  # not the 41 of the last step, which is too slow
    assert failed(ramp(), Bounds(p99=2.0)) == ["best step, answered a second"]
    assert failed(ramp(), Bounds(p99=100.0, min_rate=43.0)) == ["best step, answered a second"]
    assert failed(ramp(), Bounds(p99=100.0, min_rate=41.0)) == []
    assert "hardly grows beyond 2 at once" in next(remarks(ramp()))


def test_a_spike_must_be_got_over_for_good_and_in_time() -> None:
    assert recovery(spike(slow_after=3), BOUNDS) == 3.0
    assert recovery(spike(slow_after=0), BOUNDS) == 0.0
    assert failed(spike(slow_after=8)) == ["seconds from the spike's end until p99 stays within 100 ms"]
    relapse = spike()
    fill(relapse.timeline, 137, 138, ms=900.0)
    assert recovery(relapse, BOUNDS) == math.inf
    silent = Record("spike", "closed", spike().stretches, Timeline())
    fill(silent.timeline, 100, 125)  # no answer after second 125
    assert recovery(silent, BOUNDS) == math.inf


def test_a_soak_finds_what_grows() -> None:
    assert failed(soak(leaks=300_000)) == ["memory's sure growth"]
    assert failed(soak(leaks=10_000)) == []
    assert failed(soak(grows=0.1)) == ["p50's sure growth, as a part of it"]
    said = "\n".join(remarks(soak(leaks=300_000)))
    assert "memory: +1,0" in said  # 300 kB a second are 1,030 MiB an hour
    unseen = soak()
    unseen.memory = []
    assert failed(unseen) == ["memory's sure growth"]
    assert failed(unseen, dataclasses.replace(BOUNDS, memory=False)) == []
    assert "WAS NOT LOOKED AT" in "\n".join(remarks(unseen))
    short = soak()
    short.stretches[0] = Stretch("soak", 100.0, 103.0)
    assert failed(short) == ["points for a line"]


def test_one_greedy_task_must_not_slow_the_others_down() -> None:
    assert failed(greedy(beside=31.0)) == ["the others' p99, in times of theirs alone"]
    assert "the others' p99 beside the greedy task" in failed(greedy(beside=150.0))
    assert "10.0 times" in next(remarks(greedy()))
    lost = dataclasses.replace(greedy(), loop="open", reasons={"status 500": 2, "connection lost": 1500})
    assert next(remarks(lost)) == "what failed: 1,500 x connection lost, 2 x status 500"
    opened = greedy(beside=31.0)
    opened.loop = "open"
    assert failed(opened) == []
    assert any("3.1 times what it was alone" in one for one in remarks(opened))
    modest = greedy()
    modest.timeline = Timeline(row for row in modest.timeline.rows() if row[1] == OTHERS)
    assert failed(modest) == ["requests of the greedy task"]
    only_greedy_fails = greedy()
    fill(only_greedy_fails.timeline, 112, 113, outcome="refused", group=GREEDY)
    assert failed(only_greedy_fails) == []
    others_refused = greedy()
    fill(others_refused.timeline, 112, 113, outcome="refused")
    assert failed(others_refused) == ["the others' refusals"]


def test_plans_have_the_numbers_of_the_flags() -> None:
    ramp_to = shapes.plan(parsed("--shape=ramp", "--ramp-to=12", "--phase-seconds=5"), 8)
    assert [phase.users for phase in ramp_to] == [1, 2, 4, 8, 12]
    up = shapes.plan(parsed("--shape=spike", "--spike-times=3", "--phase-seconds=5", "--recover-within=7"), 8)
    assert [(phase.users, phase.seconds) for phase in up] == [(8, 5.0), (24, 5.0), (8, 12.0)]
    both = shapes.plan(parsed("--shape=greedy", "--greedy-times=20"), 4)
    assert [(phase.users, phase.group) for phase in both] == [(4, OTHERS), (84, GREEDY)]
    assert [phase.seconds for phase in shapes.plan(parsed("--shape=soak", "--soak-seconds=60"), 4)] == [60.0]
    assert shapes.plan(parsed(), 4) == []
    assert shapes.bounds(parsed("--greedy-times=9")).max_slowdown == 15.0
    assert shapes.bounds(parsed("--p99=70")).recover_p99 == 70.0
    for wrong in ("--max-fail-share=2", "--p99=0", "--ramp-to=0", "--spike-times=0.5"):
        with pytest.raises(SystemExit):
            parsed(wrong)


def test_the_open_loop_sends_parts_of_what_the_closed_one_reached() -> None:
    up = open_shapes.segments(parsed("--shape=spike"), spike())
    assert [round(segment.rates[OTHERS]) for segment in up] == [30, 120, 30]
    both = open_shapes.segments(parsed("--shape=greedy"), greedy())
    assert both[0].rates[OTHERS] == both[1].rates[OTHERS] == pytest.approx(0.7 * 220 / 11)
    assert both[1].rates[GREEDY] == pytest.approx(10 * both[1].rates[OTHERS])
    assert both[2].rates[OTHERS] == both[0].rates[OTHERS]
    assert both[2].rates[GREEDY] == pytest.approx(1.3 * 220)  # alone more than all that the server answered
    assert [round(segment.rates[OTHERS]) for segment in open_shapes.segments(parsed("--shape=ramp"), ramp())] == [
        13, 21, 29, 38,
    ]  # fmt: skip
    nothing = Record("steady", "closed", steady().stretches, Timeline())
    assert open_shapes.segments(parsed(), nothing) == []


@pytest.mark.parametrize("name", MADE)
def test_the_summary_says_what_failed(name: str, tmp_path: Path) -> None:
    record = MADE[name]()
    opened = Record(record.shape, "open", record.stretches, record.timeline)
    made = shape_report.result(name, [record, opened], Bounds(p99=5.0, recover_p99=5.0), 1)
    shape_report.write(made, tmp_path / "x", command="c", told="a server", facts={}, bounds=BOUNDS)
    page = (tmp_path / "x.md").read_text()
    assert "FAILED" in page.splitlines()[0]
    assert "Open loop" in page
    assert (tmp_path / "x.png").stat().st_size > 1000
    plain = json.loads((tmp_path / "x.json").read_text())
    assert plain["passed"] is False
    assert len(plain["runs"]) == 2
    assert "FAILED" in shape_report.told(made)


def test_locusts_own_exit_code_counts() -> None:
    assert shape_report.result("x", [steady()], BOUNDS, 0).passed
    ended = shape_report.result("x", [steady()], BOUNDS, 1)
    assert not ended.passed
    assert "exit code 1" in ended.notes[0]
