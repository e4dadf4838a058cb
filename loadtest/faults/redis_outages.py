"""Twelve faults of Redis under load: known tasks are answered all the time, and what changed is served soon after.

Owns: the setting and the course of one run. Must not know: how a fault is made, what its run must come to.

A real `promptmux serve` reaches a real Redis through a proxy. All its tasks are asked for in turn all the time, and
only a part of their prompts fits on the device, so that the tiers behind it are used too. Each run breaks Redis at a
moment and for a time of its own, publishes through the admin API meanwhile, and directly in the store where the fault
lets one, else right after it is healed.
A run is over when everything that was acknowledged is in the store, and what the store has is served.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from loadtest.faults.admin_writer import Acknowledged, AdminWriter, current_versions, publish
from loadtest.faults.fault_proxy import ThreadedProxy
from loadtest.faults.faulty_server import FAKE, Caller, FaultyServer
from loadtest.faults.known_load import HealthWatch, KnownLoad, caught_up, until
from loadtest.faults.outcome import Outcome
from loadtest.faults.redis_faults import FAULTS, REDIS_SETTINGS
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.redis_runs import WANTED, Run, facts, line, row
from loadtest.faults.redis_site import Fault, Site
from loadtest.faults.replicas import BACKBONES
from loadtest.faults.told_answers import ToldTasks
from prompt_store import decode_prompt
from server.prompt_cache import SLOT_OVERHEAD

_HITS = "promptmux_tier_hits_total"
_PATIENCE = 30.0  # for what should take less than CONVERGED_SECONDS
_READY_SECONDS = {FAKE: 10.0}  # after a start without Redis; a real backbone has to be loaded first
_READY_SECONDS_ELSE = 60.0
_AGAIN = str(Path(tempfile.gettempdir()) / "promptmux-again")


def add_options(parser: ArgumentParser) -> None:
    """The experiment's options."""
    parser.add_argument("--backbone", choices=BACKBONES, default=FAKE, help="fake: without torch")
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--on-device", type=int, default=20, help="of how many tasks the prompts fit there")
    parser.add_argument("--runs", type=int, default=5, help="of each fault")
    parser.add_argument("--run", type=int, help="only this one of each fault's runs, to see it again")
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second")
    parser.add_argument("--readers", type=int, default=16, help="of the admin API at once, before each fault")
    parser.add_argument("--longest", type=float, default=5.0, help="seconds that a fault lasts, at most")
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="FAULT", help=", ".join(names))


@dataclass
class Setting:
    """Server, Redis and load, as they stand through all runs."""

    site: Site
    tasks: ToldTasks
    acknowledged: Acknowledged
    load: KnownLoad
    longest: float
    readers: int
    ready_seconds: float


def run(options: Namespace, console: Console) -> Outcome:
    """Every fault, `--runs` times."""
    chosen = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    numbers = range(options.runs) if options.run is None else [options.run]
    runs: list[Run] = []
    with setting(options) as stage:
        for fault in chosen:
            for number in numbers:
                done = run_once(stage, fault, number, f"{options.seed} {fault.name} {number}")
                runs.append(done)
                console.print(line(done), highlight=False, markup=False)
                if not done.passed:
                    console.print(f"to see it again: {_again(options, done)}", style="bold red", markup=False)
        stage.load.pause()
        rest = stage.load.take()
        log = stage.site.server.said()
        hits = {tier: int(stage.site.server.metric(_HITS, tier=tier)) for tier in ("host", "disk", "store")}
    rows = [row(of_one) for fault in chosen if (of_one := [one for one in runs if one.fault is fault])]
    told = {
        "tasks": options.tasks,
        "prompts on the device, about": options.on_device,
        "backbone": options.backbone,
        "requests a second": options.rate,
        "prompts from a tier, since the last start": hits,
        "ready after a start without Redis, s, at most": stage.ready_seconds,
        "runs": [facts(one) for one in runs],
        "errors in the server's log": sum('"level": "error"' in line for line in log.splitlines()),
    }
    passed = len(runs) == len(chosen) * len(numbers) > 0 and rest.clean and all(one.passed for one in runs)
    return Outcome("redis", passed, WANTED, options.seed, rows, told)


def _again(options: Namespace, one: Run) -> str:
    """The command that makes the same run on a setting of its own, and keeps it elsewhere than all of them."""
    same = ("seed", "backbone", "tasks", "on_device", "rate", "readers", "longest")
    flags = [word for name in same for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    return "python -m loadtest.faults redis " + shlex.join(
        [*flags, "--only", one.fault.name, "--run", str(one.number), "--out", _AGAIN]
    )


@contextlib.contextmanager
def setting(options: Namespace) -> Iterator[Setting]:
    """A Redis with tasks, and a server on it that knows them and is asked for them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="promptmux-redis-")))
        redis = stack.enter_context(RedisProcess(folder / "redis", None, server=None, **REDIS_SETTINGS))
        proxy = stack.enter_context(ThreadedProxy("127.0.0.1", redis.port))
        tasks, all_tasks = ToldTasks(options.tasks, options.backbone, seed=0), range(options.tasks)
        acknowledged = Acknowledged()

        def publish_current(chosen: Sequence[int]) -> None:
            acknowledged.sure(publish(redis.url, [tasks.make(task) for task in chosen]))

        publish_current(all_tasks)
        server = stack.enter_context(
            FaultyServer(
                options.backbone,
                *("--store", f"redis://127.0.0.1:{proxy.port}/0"),
                *tier_flags(tasks, options.on_device, folder / "cache"),
            )
        )
        if not until(lambda: _on_disk(server) >= options.tasks, patience=_PATIENCE):
            raise RuntimeError("the server does not take its prompts to the disk")
        load = stack.enter_context(KnownLoad(server.url, tasks, rate=options.rate))
        site = Site(
            redis,
            proxy,
            server,
            folder,
            load.pause,
            load.resume,
            publish_again=lambda: publish_current(all_tasks),
            publish_meanwhile=lambda: publish_current(all_tasks[:1]),
        )
        ready = _READY_SECONDS.get(options.backbone, _READY_SECONDS_ELSE)
        yield Setting(site, tasks, acknowledged, load, options.longest, options.readers, ready)


def tier_flags(tasks: ToldTasks, prompts: int, cache: Path) -> list[str]:
    """Settings with which the device holds about so many prompts, host memory twice as many, and the disk all."""
    data = next(iter(tasks.data.values()))
    on_device = sum(tensor.nbytes for tensor in decode_prompt(data).tensors.values()) * 2  # cast to float32
    return [
        *("--prompt-cache-bytes", str(prompts * (on_device + SLOT_OVERHEAD))),
        *("--host-cache-bytes", str(2 * prompts * (5 * len(data) + 5000))),  # it keeps them decoded, too
        *("--cache-dir", str(cache)),
    ]


def run_once(stage: Setting, kind: type[Fault], number: int, seed: str) -> Run:
    """One run: some load, the fault, writes, healing, and waiting until all is served."""
    rng = random.Random(seed)
    site, tasks, acknowledged = stage.site, stage.tasks, stage.acknowledged
    # The admin API writes to the one half, the second client to the other: their aliases do not race.
    mine, theirs = range(0, len(tasks.ids), 2), rng.sample(range(1, len(tasks.ids), 2), 5)
    chosen = rng.sample(mine, 3)
    moment = rng.uniform(0.1, 0.6)
    length = rng.uniform(kind.least_seconds, max(stage.longest, kind.least_seconds + 1.0))
    watch = HealthWatch(site.server.url)
    done = Run(kind, number, seed, stage.load.rate, stage.ready_seconds, health=watch.health)
    dropped = site.proxy.dropped
    _many_connections(site.server.admin_url, stage.readers)
    time.sleep(moment)
    with contextlib.ExitStack() as stack:
        fault = kind(site)
        stack.callback(fault.close)
        if not kind.restarts_server:
            stack.enter_context(watch)
        fault.begin()
        began = time.monotonic()
        done.load = stage.load.take()
        if kind.restarts_server:
            stack.enter_context(watch)
        with AdminWriter(site.server.admin_url, tasks, theirs, acknowledged) as writer:
            if kind.writable:
                time.sleep(length / 2)
                acknowledged.sure(publish(fault.url, [tasks.make(task) for task in chosen]))
            done.happened = fault.is_there()
            time.sleep(max(0.0, began + length - time.monotonic()))
            writer.stop()
            done.during, done.lasted = stage.load.take(), time.monotonic() - began
            if kind.publishes_all:
                writer.finish()  # what it has under way must not overtake
            fault.heal()
            healed = time.monotonic()
            if not (kind.writable or kind.publishes_all):
                acknowledged.sure(publish(site.redis.url, [tasks.make(task) for task in chosen]))
            sure = tasks.ids if kind.publishes_all else [tasks.ids[task] for task in mine]
            if _served(stage, acknowledged.of(sure), done):
                done.converged = time.monotonic() - healed
        stored = current_versions(site.redis.url)
        done.lost = acknowledged.lost(stored)
        _served(stage, stored, done)  # what the admin API wrote last, too
        acknowledged.sure(stored)  # what was in doubt is so no more
    stage.load.pause()  # what hangs now belongs to this run
    done.load += done.during + stage.load.take()
    stage.load.resume()
    done.watched, done.started_in = watch.seconds, fault.started_in
    done.published, done.refused, done.others = writer.published, writer.refused, writer.others
    done.dropped, done.alive = site.proxy.dropped - dropped, site.server.alive
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
        late = caught_up(caller, stage.tasks, wanted, patience=_PATIENCE)
    done.never_served += late
    return not late


def _on_disk(server: FaultyServer) -> int:
    """How many prompts the server's disk holds."""
    with Caller(server.url) as caller:
        return int(caller.ask("GET", "/readyz").json["tiers"]["disk"]["entries"])
