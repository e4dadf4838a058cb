"""Four of the twelve faults of Redis, once each and short; `python -m loadtest.faults redis` has all of them."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from loadtest.faults import altered, redis_outages
from loadtest.faults.fault_proxy import ThreadedProxy
from loadtest.faults.faulty_server import FAKE, FaultyServer
from loadtest.faults.redis_faults import FAULTS, REDIS_SETTINGS, Flush, Slow
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.redis_runs import Run
from loadtest.faults.redis_site import Fault, Site, client

OPTIONS = Namespace(backbone=FAKE, tasks=12, on_device=4, rate=80.0, longest=1.5, readers=4)


@pytest.fixture(scope="module")
def setting() -> Iterator[redis_outages.Setting]:
    with redis_outages.setting(OPTIONS) as made:
        yield made


@pytest.mark.parametrize("name", ["down at start", "half-open", "changed password", "FLUSHALL"])
def test_known_tasks_are_answered_and_changes_follow(setting: redis_outages.Setting, name: str) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    done = redis_outages.run_once(setting, fault, 0, "a test")
    assert done.right, done  # how fast it went is the long form's to judge


class IdleProxy(Slow):
    def begin(self) -> None:
        return


class IdleFlush(Flush):
    def begin(self) -> None:
        return


@pytest.mark.parametrize("kind", [IdleProxy, IdleFlush])
def test_a_fault_that_does_nothing_passes_no_run(setting: redis_outages.Setting, kind: type[Fault]) -> None:
    done = redis_outages.run_once(setting, kind, 0, "a test")
    assert not done.right
    assert replace(done, happened=True).right, done  # nothing else would have shown it


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    server = cast(FaultyServer, SimpleNamespace(stop=lambda: None, start=lambda: 0.1))
    with (
        RedisProcess(folder / "redis", None, server=None, **REDIS_SETTINGS) as redis,
        ThreadedProxy("127.0.0.1", redis.port) as proxy,
    ):

        def publish() -> None:
            redis.run("HSET", "promptmux:store", "epoch", "another")

        redis.run("HSET", "promptmux:store", "epoch", "first")
        yield Site(redis, proxy, server, folder, lambda: None, lambda: None, publish, lambda: None)


@contextlib.contextmanager
def heard(site: Site) -> Iterator[None]:
    """Somebody listens behind the proxy, and there is something to hear."""
    url = f"redis://127.0.0.1:{site.proxy.port}/0"
    with client(site.redis, url) as listening, listening.pubsub() as subscribed:
        subscribed.subscribe("changes")
        assert subscribed.get_message(timeout=10)  # that it is
        yield


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: str(kind.name))
def test_a_fault_is_seen_while_it_lasts_and_only_then(site: Site, kind: type[Fault]) -> None:
    fault = kind(site)
    with contextlib.ExitStack() as stack:
        stack.callback(fault.close)
        if kind.name == "dropped messages":
            stack.enter_context(heard(site))
        assert not fault.is_there()
        fault.begin()
        if kind.name == "dropped messages":
            site.redis.run("PUBLISH", "changes", "x")
        assert fault.is_there()
        fault.heal()
        if kind.name not in ("dropped messages", "FLUSHALL"):  # of these it is seen afterwards
            assert not fault.is_there()
        assert site.said("PING") == "+PONG"


def test_what_was_not_done_passes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def stage(_: Namespace) -> Iterator[Any]:
        clean = SimpleNamespace(pause=lambda: None, take=lambda: SimpleNamespace(clean=True))
        server = SimpleNamespace(said=lambda: "", metric=lambda *_, **__: 0.0)
        yield SimpleNamespace(load=clean, site=SimpleNamespace(server=server), ready_seconds=1.0)

    monkeypatch.setattr(redis_outages, "setting", stage)
    for bad in ({"only": ["tpyo"]}, {"runs": 0}):
        options = Namespace(**vars(OPTIONS) | {"only": ["kill"], "runs": 1, "run": None, "seed": 0} | bad)
        assert not redis_outages.run(options, Console(quiet=True)).passed
    for options in (Namespace(stores=[], only=None), Namespace(stores=["file"], only=["tpyo"])):
        options.tries, options.seed = 1, 0
        assert not altered.run(options, Console(quiet=True)).passed


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (redis_outages, ["--only", "tpyo"]),
        (redis_outages, ["--only"]),
        (redis_outages, ["--backbone", "tpyo"]),
        (altered, ["--only", "tpyo"]),
        (altered, ["--only"]),
        (altered, ["--stores"]),
    ],
)
def test_what_there_is_not_cannot_be_asked_for(module: Any, words: list[str]) -> None:
    parser = ArgumentParser()
    module.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(words)


def test_a_run_that_is_seen_again_is_kept_elsewhere() -> None:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/faults"))
    redis_outages.add_options(parser)
    options = parser.parse_args(["--tasks", "7"])
    (kind,) = (fault for fault in FAULTS if fault.name == "2 s latency")
    command = redis_outages._again(options, Run(kind, 3, "", rate=1.0, ready_seconds=1.0))
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "loadtest.faults", "redis"]
    again = parser.parse_args(words[4:])
    assert (again.only, again.run, again.tasks) == (["2 s latency"], 3, 7)
    assert again.out.is_relative_to(tempfile.gettempdir())
