"""The shapes of a load: which phases it has, how many users each, and the bounds that it is judged by.

Owns: the flags, the same for locust's command line and for `python -m loadtest.run`, and the plan they give. Standard
library only, and no import of locust, which would patch the sockets of whoever asks. Must not know: how users are
made, or what came of them.

steady  the same users all the time (or locust's own -u, -r and -t)
ramp    1, 2, 4 … users, one step after the other: where throughput stops growing
spike   a few users, suddenly many times as many, then the few again: does it recover
soak    the same users for long: does memory or latency grow
greedy  users of many tasks; then the same, and one task that sends many times as much as they all do

Locust's users are a closed loop: each waits for its answer before it sends again, so a server that stalls is asked
less, and the requests that would have shown it are never sent (coordinated omission). `loadtest.run` therefore sends
each shape a second time in an open loop, see `loadtest/open_shapes.py`.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from loadtest.timeline import GREEDY, OTHERS

Shape = Literal["steady", "ramp", "spike", "soak", "greedy"]
SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)
USERS: Final = 8  # where -u does not say
PHASES: Final[dict[Shape, int]] = {"steady": 1, "ramp": 1, "spike": 3, "soak": 1, "greedy": 2}  # at least


@dataclass(frozen=True)
class Phase:
    """A stretch with the same number of users; those who start in it are of `group`."""

    name: str
    seconds: float
    users: int
    group: str = OTHERS


@dataclass(frozen=True)
class Bounds:
    """What a load is judged by. Milliseconds and parts of one."""

    p99: float = 2000.0
    max_fail_share: float = 0.0
    max_refused_share: float = 0.0
    min_rate: float = 0.0
    recover_p99: float = 2000.0
    recover_within: float = 10.0
    max_memory_growth: float = 32.0  # MiB
    max_latency_growth: float = 0.5
    max_slowdown: float = math.inf
    memory: bool = True  # a soak that did not look at it does not pass

    def as_plain(self) -> dict[str, float | None]:
        """For JSON, which knows no infinity."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def add_options(parser: Any) -> None:
    """Add the flags to an argparse parser, or to one group of it."""
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="steady", help="how the load changes over time")
    add(
        "--steady-seconds", type=_positive, default=None,
        help="how long a steady load takes (for locust itself: in place of its -r and -t)",
    )  # fmt: skip
    add("--phase-seconds", type=_positive, default=15.0, help="a step of ramp; each part of spike and greedy")
    add("--ramp-to", type=_whole, default=64, help="users of the ramp's last step; they double up to there")
    add("--spike-times", type=_more, default=8.0, help="users of the spike, in times of those before")
    add("--soak-seconds", type=_positive, default=1800.0, help="how long a soak takes")
    add(
        "--greedy-times",
        type=_more,
        default=10.0,
        help="how much the greedy task sends, in times of all others",
    )
    add("--p99", type=_positive, default=2000.0, help="most milliseconds for the 99th percentile")
    add("--max-fail-share", type=_share, default=0.0, help="most failures, as a part of all requests")
    add(
        "--max-refused-share", type=_share, default=0.0,
        help="most refusals (429 and 503 with Retry-After), as a part of all; ramp and spike may be refused more",
    )  # fmt: skip
    add("--min-rate", type=float, default=0.0, help="least answers in a second; in a ramp, of its best step")
    add(
        "--recover-p99",
        type=_positive,
        default=None,
        help="spike: p99 to come back to, in ms (default: --p99)",
    )
    add("--recover-within", type=_positive, default=10.0, help="spike: seconds from its end until then")
    add("--max-memory-growth", type=float, default=32.0, help="soak: most MiB that the server may grow by")
    add("--no-memory", action="store_true", help="soak: pass without having looked at the server's memory")
    add("--max-latency-growth", type=float, default=0.5, help="soak: most growth of p50, as a part of it")
    add(
        "--max-slowdown", type=_positive, default=None,
        help="greedy: most that the others' p99 may grow by, in times (default: 1.5 × (1 + GREEDY_TIMES): in a line "
        "that all share, waiting grows as the callers do)",
    )  # fmt: skip


def bounds(options: argparse.Namespace) -> Bounds:
    """The bounds that the flags give."""
    return Bounds(
        p99=options.p99,
        max_fail_share=options.max_fail_share,
        max_refused_share=options.max_refused_share,
        min_rate=options.min_rate,
        recover_p99=options.recover_p99 or options.p99,
        recover_within=options.recover_within,
        max_memory_growth=options.max_memory_growth,
        max_latency_growth=options.max_latency_growth,
        max_slowdown=options.max_slowdown or 1.5 * (1 + options.greedy_times),
        memory=not options.no_memory,
    )


def plan(options: argparse.Namespace, users: int) -> list[Phase]:
    """The phases, one after the other; none where locust is to do a steady load by itself."""
    each = options.phase_seconds
    if options.shape == "steady" and options.steady_seconds:
        return [Phase("steady", options.steady_seconds, users)]
    if options.shape == "ramp":
        steps = [1 << nth for nth in range(options.ramp_to.bit_length()) if 1 << nth < options.ramp_to]
        return [Phase(f"{count} at once", each, count) for count in (*steps, options.ramp_to)]
    if options.shape == "spike":
        after = options.recover_within + each  # long enough that it can be seen not to recover in time
        return [
            Phase("before", each, users),
            Phase("spike", each, round(users * options.spike_times)),
            Phase("after", after, users),
        ]
    if options.shape == "soak":
        return [Phase("soak", options.soak_seconds, users)]
    if options.shape == "greedy":
        together = users + round(users * options.greedy_times)
        return [Phase("others alone", each, users), Phase("with a greedy task", each, together, GREEDY)]
    return []


def _positive(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _more(text: str) -> float:
    if not 1 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _whole(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return value
