"""What a load of some shape came to: its phases as rows, and whether it kept within its bounds.

Owns: what each shape is judged by, and the words for it. Standard library only. Must not know:
locust, sockets, or how anything is drawn.

A percentile is of the answered; who was refused or failed is counted beside it, and judged by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.record import Record
from loadtest.shapes import PHASES, Bounds, Shape
from loadtest.timeline import GREEDY, OTHERS, Part
from loadtest.trend import Trend, trend

_WINDOW: Final = 3  # seconds: a p99 of one second is that of a few requests
_STILL_GROWS: Final = 1.1  # in times of the step before, for twice the users
_LEAST_POINTS: Final = 4
_WARM_SHARE: Final = 1 / 3  # of a soak: caches fill, and memory with them


@dataclass(frozen=True)
class Check:
    """One bound: what was found, what was wanted."""

    name: str
    found: str
    wanted: str
    passed: bool


def judge(record: Record, bounds: Bounds) -> list[Check]:
    """Every bound that the shape has, after what the load itself was not."""
    return [*_load(record), *_bounds(record, bounds)]


def _load(record: Record) -> Iterator[Check]:
    """What was not sent as it was asked for, or not counted."""
    if record.broken:
        yield Check("the load", record.broken, "sent and counted to its end", False)
    for one in record.stretches:
        if one.there is not None:
            yield Check(f"users of {one.name}", f"{one.there:,} at its end", f"{one.users:,}", False)


def _bounds(record: Record, bounds: Bounds) -> list[Check]:
    if not record.whole().answered:
        return [Check("answered requests", "0", "1 or more", False)]
    if len(record.stretches) < PHASES[record.shape]:
        return [Check("phases", f"{len(record.stretches)}", f"{PHASES[record.shape]}: all of them", False)]
    if cut := [one.name for nth, one in enumerate(record.stretches) if record.part(nth).seconds < 1]:
        found = f"none of {', '.join(cut)}"
        return [Check("whole seconds of each phase", found, "1 or more: longer phases", False)]
    silence = [_silence(record, bounds)] if record.loop == "closed" else []
    return [_failures(record.whole(), bounds), *_JUDGES[record.shape](record, bounds), *silence]


def rows(record: Record) -> list[dict[str, str]]:
    """A table of the phases; where there are groups, a row for each."""
    return [
        {
            "phase": stretch.name,
            ("users" if record.loop == "closed" else "offered/s"): (
                f"{stretch.users:,}" if stretch.users is not None else f"{stretch.offered or 0:,.0f}"
            ),
            **({"who": group} if group else {}),
            "answered/s": f"{part.rate:,.1f}",
            **{f"p{p} ms": _ms(part.percentile(p / 100)) for p in (50, 95, 99)},
            "answered": f"{part.answered:,}",
            "refused": f"{part.refused:,}",
            "failed": f"{part.failed:,}",
        }
        for nth, stretch in enumerate(record.stretches)
        for group in _groups(record, nth)
        for part in [record.part(nth, group)]
    ]


def remarks(record: Record) -> Iterator[str]:
    """What is worth knowing and has no bound."""
    if record.reasons:
        told = (f"{count:,} x {reason}" for reason, count in sorted(record.reasons.items()))
        yield f"what failed: {', '.join(told)}"
    if record.shape == "ramp" and record.loop == "closed":
        rates = [record.part(nth).rate for nth in range(len(record.stretches))]
        for nth, (one, more) in enumerate(itertools.pairwise(rates)):
            if more < _STILL_GROWS * one:
                name = record.stretches[nth].name
                yield f"throughput hardly grows beyond {name}: {one:,.0f} answered a second, then {more:,.0f}"
                break
        else:
            yield "throughput grew to the last step: the knee lies beyond it (--ramp-to)"
    if record.shape == "greedy" and len(record.stretches) >= 2:
        times = record.part(1, GREEDY).sent / max(1, record.part(1, OTHERS).sent)
        yield f"the greedy task sent {times:.1f} times as much as all others"
        yield f"the others' p99 was {_slowdown(record):.1f} times what it was alone"
    if record.shape == "soak":
        for name, found, unit in _soak_trends(record):
            yield f"{name}: {found.told(unit)}"
        if not record.memory:
            yield "memory WAS NOT LOOKED AT"


def recovery(record: Record, bounds: Bounds) -> float:
    """Seconds from the spike's end to the first of which p99 stays within its bound, for good; infinite if never."""
    end, last = record.stretches[1].end, math.floor(record.stretches[2].end)
    recovered = math.inf
    for second in range(last - _WINDOW, math.ceil(end) - 1, -1):
        part = record.timeline.between(second, second + _WINDOW)
        good = part.answered and not part.failed and part.refused_share <= bounds.max_refused_share
        if not good or part.percentile(0.99) > bounds.recover_p99:
            break
        recovered = max(0.0, second - end)
    return recovered


def soak_series(record: Record) -> list[tuple[float, float, float]]:
    """The middle of each window of a soak, warmed up, with its p50 and p99 in milliseconds."""
    begin, end = math.ceil(_warm(record)), math.floor(record.stretches[0].end)
    width = max(1, (end - begin) // max(4, min(60, (end - begin) // 5)))
    found = []
    for first in range(begin, end - width + 1, width):
        part = record.timeline.between(first, first + width)
        if part.answered:
            found.append((first + width / 2, part.percentile(0.5), part.percentile(0.99)))
    return found


def _warm(record: Record) -> float:
    stretch = record.stretches[0]
    return stretch.begin + _WARM_SHARE * (stretch.end - stretch.begin)


def _soak_memory(record: Record) -> list[tuple[float, float]]:
    return [(at, size / 2**20) for at, size in record.memory if at >= _warm(record)]


def _soak_trends(record: Record) -> list[tuple[str, Trend, str]]:
    series = soak_series(record)
    found = [
        ("p50", trend([(at, half) for at, half, _ in series]), "ms"),
        ("p99", trend([(at, most) for at, _, most in series]), "ms"),
    ]
    return found + ([("memory", trend(_soak_memory(record)), "MiB")] if record.memory else [])


def _failures(part: Part, bounds: Bounds) -> Check:
    return _few("failures", part.failed, part, bounds.max_fail_share)


def _refusals(part: Part, bounds: Bounds, name: str = "refusals") -> Check:
    return _few(name, part.refused, part, bounds.max_refused_share)


def _few(name: str, count: int, part: Part, most: float) -> Check:
    wanted = f"{most:.2%} or less" if most else "none"
    return Check(name, f"{count:,} of {part.sent:,}", wanted, count <= most * part.sent)


def _p99(part: Part, most: float, name: str = "p99") -> Check:
    found = part.percentile(0.99)
    return Check(name, f"{_ms(found)} ms", f"{most:,.0f} ms or less", found <= most)


def _rate(rate: float, bounds: Bounds, name: str = "answered a second") -> list[Check]:
    if not bounds.min_rate:
        return []
    return [Check(name, f"{rate:,.1f}", f"{bounds.min_rate:,.1f} or more", rate >= bounds.min_rate)]


def _judge_steady(record: Record, bounds: Bounds) -> list[Check]:
    part = record.part(0)
    return [_refusals(record.whole(), bounds), _p99(part, bounds.p99), *_rate(part.rate, bounds)]


def _silence(record: Record, bounds: Bounds) -> Check:
    """Of a closed loop: users who are answered within the bound on p99 send again within it, so that a longer time in
    which nothing was sent that came to an answer is a server that hung, however few requests hung with it. A refusal is
    an answer, too; beside a greedy task it is the others who must have one.
    """
    group = OTHERS if record.shape == "greedy" else None
    first, last = math.ceil(record.stretches[0].begin), math.floor(record.stretches[-1].end)
    longest = now = 0
    for second in range(first, last):
        part = record.timeline.between(second, second + 1, group)
        now = 0 if part.answered or part.refused else now + 1
        longest = max(longest, now)
    most = min(last - first - 1, _WINDOW + math.ceil(bounds.p99 / 1000))
    return Check("longest time without an answer", f"{longest} s", f"{most} s or less", longest <= most)


def _judge_ramp(record: Record, bounds: Bounds) -> list[Check]:
    parts = [(stretch.name, record.part(nth)) for nth, stretch in enumerate(record.stretches)]
    good = [
        (part.rate, name)
        for name, part in parts
        if part.percentile(0.99) <= bounds.p99
        and part.fail_share <= bounds.max_fail_share
        and part.refused_share <= bounds.max_refused_share
    ]
    rate, name = max(good, default=(0.0, "no step"))
    found = f"{rate:,.1f}, {name}"
    wanted = f"some step with p99 of {bounds.p99:,.0f} ms or less"
    if bounds.min_rate:
        wanted += f", and {bounds.min_rate:,.1f} or more"
    return [Check("best step, answered a second", found, wanted, bool(good) and rate >= bounds.min_rate)]


def _judge_spike(record: Record, bounds: Bounds) -> list[Check]:
    before, during = record.part(0), record.part(1)
    took = recovery(record, bounds)
    return [
        _refusals(before, bounds, "refusals before the spike"),
        _p99(before, bounds.p99, "p99 before the spike"),
        *_rate(before.rate, bounds, "answered a second before the spike"),
        Check("answered during the spike", f"{during.answered:,}", "1 or more", during.answered > 0),
        Check(
            f"seconds from the spike's end until p99 stays within {bounds.recover_p99:,.0f} ms",
            f"{took:.0f}" if math.isfinite(took) else "never",
            f"{bounds.recover_within:g} or less",
            took <= bounds.recover_within,
        ),
    ]


def _judge_soak(record: Record, bounds: Bounds) -> list[Check]:
    points = [len(soak_series(record))] + ([len(_soak_memory(record))] if record.memory else [])
    if min(points) < _LEAST_POINTS:
        return [Check("points for a line", f"{min(points)}", f"{_LEAST_POINTS} or more: soak longer", False)]
    trends = {name: found for name, found, _ in _soak_trends(record)}
    level = record.part(0).percentile(0.5)
    share = trends["p50"].sure_growth / level
    checks = [
        *_judge_steady(record, bounds),
        Check(
            "p50's sure growth, as a part of it",
            f"{share:.1%}",
            f"{bounds.max_latency_growth:.0%} or less",
            share <= bounds.max_latency_growth,
        ),
    ]
    if "memory" in trends:
        grown = trends["memory"].sure_growth
        most = bounds.max_memory_growth
        checks.append(
            Check("memory's sure growth", f"{grown:,.1f} MiB", f"{most:,.1f} MiB or less", grown <= most)
        )
    elif bounds.memory:
        checks.append(Check("memory's sure growth", "not looked at", "looked at, or --no-memory", False))
    return checks


def _judge_greedy(record: Record, bounds: Bounds) -> list[Check]:
    beside, others = record.part(1, OTHERS), record.whole(OTHERS)
    sent = record.part(1, GREEDY).sent
    checks = [
        Check("requests of the greedy task", f"{sent:,}", "more than the others'", sent > beside.sent),
        Check("the others' failures", f"{others.failed:,} of {others.sent:,}", "none", not others.failed),
        _refusals(others, bounds, "the others' refusals"),
        _p99(beside, bounds.p99, "the others' p99 beside the greedy task"),
        *(
            _p99(record.part(nth, OTHERS), bounds.p99, f"the others' p99, {record.stretches[nth].name}")
            for nth in range(2, len(record.stretches))
        ),
    ]
    if record.loop == "closed":  # in an open one it tells how full the server is, before how fair
        slower = _slowdown(record)
        found = f"{slower:.2f}" if math.isfinite(slower) else "not answered"
        wanted = f"{bounds.max_slowdown:g} or less"
        checks.append(
            Check("the others' p99, in times of theirs alone", found, wanted, slower <= bounds.max_slowdown)
        )
    return checks


def _slowdown(record: Record) -> float:
    alone, beside = record.part(0, OTHERS), record.part(1, OTHERS)
    return beside.percentile(0.99) / alone.percentile(0.99) if alone.answered else math.inf


_JUDGES: Final[dict[Shape, Callable[[Record, Bounds], list[Check]]]] = {
    "steady": _judge_steady,
    "ramp": _judge_ramp,
    "spike": _judge_spike,
    "soak": _judge_soak,
    "greedy": _judge_greedy,
}


def _groups(record: Record, nth: int) -> Sequence[str | None]:
    if record.shape != "greedy":
        return (None,)
    return (OTHERS, GREEDY) if nth else (OTHERS,)


def _ms(value: float) -> str:
    return f"{value:,.1f}" if math.isfinite(value) else "–"
