"""The shapes again, in an open loop: requests at intended times, whatever the server does.

Owns: which rates a shape has, in parts of what the closed loop reached, and sending them. Must not know: locust, or how
a run is judged.

A closed loop's users wait for a slow server and so spare it; callers in the world do not know of each other. Rates are
parts of the closed loop's throughput because an open loop at all of it has no stable queue: its latency would only tell
how long it was run.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from loadtest import http_client, shapes, workload
from loadtest.record import Record, Stretch
from loadtest.target import Target
from loadtest.timeline import GREEDY, OTHERS, Timeline

_USUAL: Final = 0.7  # of the closed loop's throughput
_STEPS: Final = (0.3, 0.5, 0.7, 0.9)
_QUIET, _SPIKE = 0.3, 1.2
_FLOOD: Final = 1.3
_LONGEST: Final = 60.0  # of a soak's open loop
_SETTLE: Final = 1.0
_CONNECTIONS: Final = 400  # of a group; `select` takes 1024 in all
_WRITTEN: Final = 8192  # requests of a group, then again from the start


@dataclass(frozen=True)
class Segment:
    """Some seconds with these rates, by group."""

    name: str
    seconds: float
    rates: Mapping[str, float]


def segments(options: argparse.Namespace, closed: Record) -> list[Segment]:
    """What to send after a closed loop; nothing where that answered too little, or was cut short."""
    if len(closed.stretches) < shapes.PHASES[closed.shape]:
        return []
    each = options.phase_seconds
    if options.shape == "ramp":
        best = max(closed.part(nth).rate for nth in range(len(closed.stretches)))
        return _sent([Segment(f"{part:.0%}", each, {OTHERS: part * best}) for part in _STEPS])
    if options.shape == "spike":
        reached = closed.part(1).rate
        after = options.recover_within + each
        return _sent(
            [
                Segment(f"before, {_QUIET:.0%}", each, {OTHERS: _QUIET * reached}),
                Segment(f"spike, {_SPIKE:.0%}", each, {OTHERS: _SPIKE * reached}),
                Segment(f"after, {_QUIET:.0%}", after, {OTHERS: _QUIET * reached}),
            ]
        )
    if options.shape == "greedy":
        others = _USUAL * closed.part(1).rate / (1 + options.greedy_times)
        both = {OTHERS: others, GREEDY: options.greedy_times * others}
        flood = {OTHERS: others, GREEDY: _FLOOD * closed.part(1).rate}
        return _sent(
            [
                Segment("others alone", each, {OTHERS: others}),
                Segment("with a greedy task", each, both),
                Segment(f"flooded by it, {_FLOOD:.0%}", each, flood),  # alone more than the server carries
            ]
        )
    seconds = min(_LONGEST, options.soak_seconds) if options.shape == "soak" else each
    return _sent([Segment(f"{_USUAL:.0%}", seconds, {OTHERS: _USUAL * closed.part(0).rate})])


def send(aim: Target, asked: list[Segment], options: argparse.Namespace) -> Record:
    """Send the segments one after the other, without a pause; seconds count from the first one's beginning."""
    due, stretches, begin = [], [], 0.0
    for nth, segment in enumerate(asked):
        for group, rate in segment.rates.items():
            times = http_client.arrivals(rate, segment.seconds, seed=nth)
            due += [(begin + at, group) for at in times]
        end = begin + segment.seconds
        stretches.append(Stretch(segment.name, begin + _SETTLE, end, offered=sum(segment.rates.values())))
        begin = end
    due.sort()
    groups = [group for _, group in due]
    load = http_client.open_loop(
        aim.url,
        _written(aim, groups, options),
        [at for at, _ in due],
        connections=_CONNECTIONS,
        groups=groups,
        keep_trace=True,
    )
    timeline = Timeline()
    for sent in load.trace:
        timeline.add(sent.intended, groups[sent.nth], sent.outcome, sent.seconds)
    # A soak's growth is not to be seen in a minute.
    shape = "steady" if options.shape == "soak" else options.shape
    return Record(shape, "open", stretches, timeline, reasons=load.reasons)


def _written(aim: Target, groups: list[str], options: argparse.Namespace) -> Iterator[bytes]:
    ids, greedy = aim.task_ids, options.shape == "greedy"
    sources = {}
    for seed, (group, whose) in enumerate({OTHERS: ids[1:] if greedy else ids, GREEDY: ids[:1]}.items()):
        choices = workload.task_choices(options.mix, len(whose), seed=seed)
        texts = workload.texts(2048, seed=seed)
        sources[group] = itertools.cycle(
            http_client.requests(aim.url, whose, texts, choices, _WRITTEN, key=aim.key)
        )
    return (next(sources[group]) for group in groups)


def _sent(asked: list[Segment]) -> list[Segment]:
    """Only what has a rate, and is long enough that each group sends something."""
    fine = all(
        rate * segment.seconds > 1 and math.isfinite(rate)
        for segment in asked
        for rate in segment.rates.values()
    )
    return asked if fine else []
