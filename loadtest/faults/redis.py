"""Twelve faults of Redis under load: known tasks are answered all the time, and what changed is served soon after.

Owns: the setting, the course of one run, and what is counted. Must not know: how a fault is made.

A real `promptmux serve` reaches a real Redis through a proxy. All its tasks are asked for in turn all the time, and
only a part of their prompts fits on the device, so that the tiers behind it are used too. Each run breaks Redis at a
moment and for a time of its own, publishes through the admin API meanwhile, and directly in the store where the fault
lets one, else right after it is healed. A run is over when everything that the store has is served.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.faults.admin_writer import AdminWriter, current_versions, publish
from loadtest.faults.fault_proxy import ThreadedProxy
from loadtest.faults.faulty_server import FAKE, Caller, FaultyServer, shape_of
from loadtest.faults.known_load import Health, HealthWatch, KnownLoad, Tally, caught_up, until
from loadtest.faults.outcome import Outcome
from loadtest.faults.redis_faults import FAULTS, REDIS_SETTINGS
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.redis_site import Fault, Site
from loadtest.faults.telling import Ledger
from prompt_store import decode_prompt

CONVERGED_SECONDS = 3.0
_HITS = "promptmux_tier_hits_total"
_PATIENCE = 30.0  # for what should take less than CONVERGED_SECONDS
WANTED = (
    "every request for a known task answered 200 with the right scores; every publish a success or a 503 "
    "store_unavailable with Retry-After; /healthz and /readyz 200 all the time, staleness shown while Redis cannot be "
    f"read; a version published directly is served at most {CONVERGED_SECONDS:g} s after healing; in the end "
    "everything that the store has is served"
)


def add_options(parser: ArgumentParser) -> None:
    """The experiment's options."""
    parser.add_argument("--backbone", default=FAKE, help="fake (without torch), minilm, or any other")
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--on-device", type=int, default=20, help="of how many tasks the prompts fit there")
    parser.add_argument("--runs", type=int, default=5, help="of each fault")
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second")
    parser.add_argument("--readers", type=int, default=16, help="of the admin API at once, before each fault")
    parser.add_argument("--longest", type=float, default=5.0, help="seconds that a fault lasts, at most")
    parser.add_argument("--only", nargs="*", metavar="FAULT", help=", ".join(fault.name for fault in FAULTS))


@dataclass
class Run:
    """What one run of one fault came to. `converged` is None where a version was not served at all."""

    fault: str
    seed: str
    lasted: float
    health: Health
    load: Tally = field(default_factory=Tally)
    published: int = 0
    refused: int = 0
    others: Counter[str] = field(default_factory=Counter)
    converged: float | None = None
    never_served: list[str] = field(default_factory=list)
    alive: bool = True
    stale_enough: bool = True

    @property
    def passed(self) -> bool:
        """Whether it went as wanted."""
        return (
            self.alive
            and self.stale_enough
            and self.load.answered == self.load.offered > 0
            and not (self.others or self.health.unwell or self.never_served)
            and self.published + self.refused > 0
            and self.converged is not None
            and self.converged <= CONVERGED_SECONDS
        )


@dataclass
class Setting:
    """Server, Redis and load, as they stand through all runs."""

    site: Site
    ledger: Ledger
    load: KnownLoad
    longest: float
    readers: int


def run(options: Namespace, console: Console) -> Outcome:
    """Every fault, `--runs` times."""
    chosen = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    runs: list[Run] = []
    with setting(options) as stage:
        for fault in chosen:
            for number in range(options.runs):
                done = run_once(stage, fault, f"{options.seed} {fault.name} {number}")
                runs.append(done)
                console.print(_line(done), highlight=False, markup=False)
        log = stage.site.server.said()
        hits = {tier: int(stage.site.server.metric(_HITS, tier=tier)) for tier in ("host", "disk", "store")}
    rows = [_row(fault.name, [one for one in runs if one.fault == fault.name]) for fault in chosen]
    facts = {
        "tasks": options.tasks,
        "prompts on the device, about": options.on_device,
        "backbone": options.backbone,
        "requests a second": options.rate,
        "prompts from a tier, since the last start": hits,
        "runs": [_facts(one) for one in runs],
        "errors in the server's log": sum('"level": "error"' in line for line in log.splitlines()),
    }
    return Outcome("redis", all(one.passed for one in runs), WANTED, options.seed, rows, facts)


@contextlib.contextmanager
def setting(options: Namespace) -> Iterator[Setting]:
    """A Redis with tasks, and a server on it that knows them and is asked for them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="promptmux-redis-")))
        redis = stack.enter_context(RedisProcess(folder / "redis", None, server=None, **REDIS_SETTINGS))
        proxy = stack.enter_context(ThreadedProxy("127.0.0.1", redis.port))
        ledger = Ledger(shape_of(options.backbone), options.tasks)
        publish(redis.url, [ledger.make(task) for task in ledger.tasks])
        server = stack.enter_context(
            FaultyServer(
                options.backbone,
                *("--store", f"redis://127.0.0.1:{proxy.port}/0"),
                *tier_flags(ledger, options.on_device, folder / "cache"),
            )
        )
        if not until(lambda: _on_disk(server) >= options.tasks, patience=_PATIENCE):
            raise RuntimeError("the server does not take its prompts to the disk")
        load = stack.enter_context(KnownLoad(server.url, ledger, rate=options.rate))
        site = Site(
            redis,
            proxy,
            server,
            folder,
            load.pause,
            load.resume,
            publish_again=lambda: publish(redis.url, [ledger.make(task) for task in ledger.tasks]),
            publish_meanwhile=lambda: publish(redis.url, [ledger.make(ledger.tasks[0])]),
        )
        yield Setting(site, ledger, load, options.longest, options.readers)


def tier_flags(ledger: Ledger, prompts: int, cache: Path) -> list[str]:
    """Settings with which the device holds about so many prompts, host memory twice as many, and the disk all."""
    data = next(iter(ledger.data.values()))
    on_device = sum(tensor.nbytes for tensor in decode_prompt(data).tensors.values()) * 2  # cast to float32
    return [
        *("--prompt-cache-bytes", str(prompts * on_device)),
        *("--host-cache-bytes", str(2 * prompts * (5 * len(data) + 5000))),  # it keeps them decoded, too
        *("--cache-dir", str(cache)),
    ]


def run_once(stage: Setting, kind: type[Fault], seed: str) -> Run:
    """One run: some load, the fault, writes, healing, and waiting until all is served."""
    rng = random.Random(seed)
    site, ledger, fault = stage.site, stage.ledger, kind(stage.site)
    # The admin API writes to the one half, the second client to the other: their aliases do not race.
    mine, theirs = ledger.tasks[0::2], rng.sample(ledger.tasks[1::2], 5)
    chosen = rng.sample(mine, 3)
    moment, length = rng.uniform(0.1, 0.6), rng.uniform(1.0, stage.longest)
    stage.load.take()
    _many_connections(site.server.admin_url, stage.readers)
    time.sleep(moment)
    watch = HealthWatch(site.server.url)
    if not kind.restarts_server:
        watch.start()
    fault.begin()
    began = time.monotonic()
    if kind.restarts_server:
        watch.start()
    with AdminWriter(site.server.admin_url, ledger, theirs) as writer:
        if kind.writable:
            time.sleep(length / 2)
            publish(fault.url, [ledger.make(task) for task in chosen])
        time.sleep(max(0.0, began + length - time.monotonic()))
        writer.stop()
        if kind.publishes_all:
            writer.finish()  # what it has under way must not overtake
        fault.heal()
        healed = time.monotonic()
        done = Run(kind.name, seed, healed - began, watch.health)
        if not (kind.writable or kind.publishes_all):
            publish(site.redis.url, [ledger.make(task) for task in chosen])
        stored = current_versions(site.redis.url)
        if not kind.publishes_all:
            stored = {task: stored[task] for task in mine}
        done.converged = time.monotonic() - healed if _served(stage, stored, done) else None
    _served(stage, current_versions(site.redis.url), done)  # what the admin API wrote last, too
    watch.stop()
    done.published, done.refused, done.others = writer.published, writer.refused, writer.others
    done.load, done.alive = stage.load.take(), site.server.alive
    # A poll may have come just after the beginning, and the last look just before the end.
    done.stale_enough = not kind.cuts_reads or done.health.staleness >= done.lasted - 1.0
    return done


def _many_connections(admin_url: str, readers: int) -> None:
    """Let the server read the store for many at once: it keeps the connections, and the fault finds them."""

    def read(_: int) -> None:
        with Caller(admin_url) as caller:
            for _ in range(5):
                caller.ask("GET", "/admin/tasks?limit=1000")

    if readers:
        with ThreadPoolExecutor(readers) as threads:
            list(threads.map(read, range(readers)))


def _served(stage: Setting, wanted: Mapping[str, str], done: Run) -> bool:
    """Whether the server comes to answer with all of these versions; `done` is told which it does not."""
    with Caller(stage.site.server.url) as caller:
        late = caught_up(caller, stage.ledger, wanted, patience=_PATIENCE)
    done.never_served += late
    return not late


def _on_disk(server: FaultyServer) -> int:
    """How many prompts the server's disk holds."""
    with Caller(server.url) as caller:
        return int(caller.ask("GET", "/readyz").json["tiers"]["disk"]["entries"])


def _row(fault: str, runs: Sequence[Run]) -> dict[str, Any]:
    times = [one.converged for one in runs]
    return {
        "fault": fault,
        "runs": len(runs),
        "requests": sum(one.load.offered for one in runs),
        "failed": sum(one.load.failed for one in runs),
        "wrong": sum(len(one.load.wrong) for one in runs),
        "slowest s": max(one.load.slowest for one in runs),
        "published": sum(one.published for one in runs),
        "503": sum(one.refused for one in runs),
        "other": sum(one.others.total() for one in runs),
        "not healthy": sum(one.health.unwell.total() for one in runs),
        "staleness s": max(one.health.staleness for one in runs),
        "converged s": "never" if None in times else max(time for time in times if time is not None),
        "passed": sum(one.passed for one in runs),
    }


def _facts(one: Run) -> dict[str, Any]:
    return {
        "fault": one.fault,
        "seed": one.seed,
        "passed": one.passed,
        "lasted": round(one.lasted, 3),
        "requests": one.load.offered,
        "failures": dict(one.load.failures),
        "wrong": one.load.wrong[:5],
        "published": one.published,
        "refused": one.refused,
        "others": dict(one.others),
        "looks at health": one.health.looks,
        "unwell": dict(one.health.unwell),
        "staleness": one.health.staleness,
        "sources": sorted(one.health.sources),
        "converged": one.converged and round(one.converged, 3),
        "never served": one.never_served,
        "server alive": one.alive,
    }


def _line(one: Run) -> str:
    facts = _facts(one)
    bad = {
        name: facts[name] for name in ("failures", "wrong", "others", "unwell", "never served") if facts[name]
    }
    return (
        f"{'ok' if one.passed else 'FAILED':7}{one.fault:18}{one.lasted:5.1f} s  {one.load.answered:5} answered  "
        f"{one.published:3} published {one.refused:3} refused  stale {one.health.staleness:5.2f} s  "
        f"converged {'never' if one.converged is None else f'{one.converged:.2f} s'}  {bad or ''}"
    )
