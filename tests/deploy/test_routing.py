"""The gateway's configuration as it is, before three real servers: who answers for a task, and what that is worth."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client import Client
from loadtest.faults.fetched_program import NoProgram
from loadtest.faults.proxy_process import find_haproxy
from loadtest.ports import free_ports
from prompt_store import Target, open_store
from server.prompt_cache import SLOT_OVERHEAD
from tests.deploy.gateway import SERVED_BY, Caller, Fleet, Gateway, shuffled
from tests.server.fakes import prompt_bytes

NAMES = ("promptmux-1", "promptmux-2", "promptmux-3")
TASKS = tuple(f"task-{number}" for number in range(48))
SLOTS = 24  # of each server: half of the tasks, and more than a third of them
ROUND_ROBIN = {
    "balance hdr(X-Task-ID)": "balance roundrobin",
    "hash-type consistent sdbm avalanche": "",
    "hash-balance-factor 150": "",
}


async def _publish(store_url: str) -> None:
    store = open_store(store_url)
    try:
        for number, task in enumerate(TASKS):
            done = await store.publish(prompt_bytes(task, favours=number % 2), actor="test")
            await store.set_alias(
                task, "current", [Target(done.version)], expected_revision=None, actor="test"
            )
    finally:
        await store.aclose()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    try:
        find_haproxy()
    except NoProgram as error:
        pytest.skip(f"NO HAPROXY, ROUTING BY TASK IS NOT TESTED: {error}")
    store = f"file://{tmp_path_factory.mktemp('fleet') / 'store'}"
    asyncio.run(_publish(store))
    flags = ("--prompt-cache-bytes", str(SLOTS * (SLOT_OVERHEAD + 64)), "--leave-delay", "12")
    running = Fleet(store, flags, dict(zip(NAMES, free_ports(3), strict=True)))
    try:
        for name in NAMES:
            running.start(name)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def gateway(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    (port,) = free_ports(1)
    with Gateway(tmp_path_factory.mktemp("gateway"), port, fleet.ports) as running:
        for name in NAMES:
            running.wait_until(name, "UP")
        yield running


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[Caller]:
    one = Caller(gateway.url)
    yield one
    one.close()


def test_a_task_has_one_server_and_tasks_are_spread(caller: Caller) -> None:
    owners = caller.owners(TASKS)
    for _ in range(3):
        assert caller.owners(TASKS) == owners
    shares = Counter(owners.values())
    assert set(shares) == set(NAMES)
    assert max(shares.values()) <= SLOTS, shares


def test_without_the_header_the_body_tells_the_task(caller: Caller) -> None:
    owners = caller.owners(TASKS)
    assert caller.owners(TASKS, told=None) == owners
    assert {task: caller.owner(task, told=None, name="model") for task in TASKS[:12]} == {
        task: owners[task] for task in TASKS[:12]
    }


def test_our_client_tells_the_task(gateway: Gateway, caller: Caller) -> None:
    # Also where the body is longer than what the gateway reads of it.
    owner = caller.owner(TASKS[0])
    long = ["a " * 40_000, "b " * 40_000]
    with Client(gateway.url, timeout=600) as client:
        before = gateway.counts()
        for _ in range(4):
            assert client.classify(TASKS[0], long).task_id == TASKS[0]
        after = gateway.counts()
    asked = {name: after[name]["requests"] - before[name]["requests"] for name in NAMES}
    assert asked == {name: 4 if name == owner else 0 for name in NAMES}


def test_a_header_that_is_wrong_chooses_another_server_and_nothing_else(caller: Caller) -> None:
    owners = caller.owners(TASKS)
    other = next(task for task in TASKS if owners[task] != owners[TASKS[0]] and TASKS.index(task) % 2)
    right, wrong = caller.ask(TASKS[0]), caller.ask(TASKS[0], told=other)
    assert wrong.headers[SERVED_BY] == owners[other] != right.headers[SERVED_BY]
    assert (wrong.status_code, wrong.json()["task_id"]) == (200, TASKS[0])
    assert wrong.json()["data"] == right.json()["data"]  # the other task leans to the other label
    assert wrong.json()["version"] == right.json()["version"]
    nonsense = caller.ask(TASKS[0], told="no such task/../%00")
    assert (nonsense.status_code, nonsense.json()["data"]) == (200, right.json()["data"])


def test_what_names_no_task_goes_by_turns(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url) as http:
        seen = Counter(http.get("/v1/models").headers[SERVED_BY] for _ in range(9))
        assert set(seen) == set(NAMES)
        assert http.post("/classify", content=b"{", headers={"Content-Type": "application/json"}).status_code in (
            400, 422,
        )  # fmt: skip
        assert http.get("/metrics").status_code == 404  # the admin port is not behind it
        assert http.get("/admin/tasks").status_code == 404


def test_a_greedy_task_spills_over_to_more_servers(gateway: Gateway, caller: Caller, tmp_path: Path) -> None:
    owner = caller.owner(TASKS[0])
    served: list[str] = []
    go = tmp_path / "go"

    def ask() -> None:
        one = Caller(gateway.url)
        answer = one.ask(TASKS[0], f"until={go}")
        served.append(answer.headers[SERVED_BY] if answer.status_code == 200 else f"{answer.status_code}")
        one.close()

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(4)  # all are under way at once
    go.touch()
    for thread in threads:
        thread.join()
    shares = Counter(served)
    assert set(shares) <= set(NAMES)
    assert len(shares) > 1
    assert shares[owner] < 12
    assert caller.owner(TASKS[0]) == owner  # and comes home


def _share_on_device(fleet: Fleet, caller: Caller) -> float:
    for task in shuffled(TASKS, 2):
        assert caller.ask(task).status_code == 200  # what was there from before is not counted
    before = fleet.looks()
    for task in shuffled(TASKS, 6):
        assert caller.ask(task).status_code == 200
    after = fleet.looks()
    hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
    assert hits + misses == 6 * len(TASKS)
    return hits / (hits + misses)


def test_more_prompts_are_found_on_the_device_than_by_turns(
    fleet: Fleet, caller: Caller, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with Gateway(tmp_path, port, fleet.ports, ROUND_ROBIN) as turns:
        for name in NAMES:
            turns.wait_until(name, "UP")
        by_turns = Caller(turns.url)
        without = _share_on_device(fleet, by_turns)
        by_turns.close()
    by_task = _share_on_device(fleet, caller)
    print(f"found on the device: {by_task:.0%} by task, {without:.0%} by turns")
    assert by_task == 1.0  # every server's share of the tasks fits its slots
    assert without < 0.75


class _Load(threading.Thread):
    """Asks for all tasks in turn, a hundred a second at most, until it is told to end; what was no answer is kept."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._caller, self._over = Caller(url), threading.Event()
        self.answers, self.failures = 0, []  # type: int, list[str]

    def run(self) -> None:
        while not self._over.is_set():
            for task in TASKS:
                time.sleep(0.01)
                try:
                    answer = self._caller.ask(task)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                right = answer.status_code == 200 and answer.json()["task_id"] == task
                self.answers += right
                if not right:
                    self.failures.append(f"{answer.status_code} {answer.text}")

    def end(self) -> None:
        self._over.set()
        self.join()
        self._caller.close()


def test_a_server_that_dies_costs_no_request(fleet: Fleet, gateway: Gateway, caller: Caller) -> None:
    owner = caller.owner(TASKS[0])
    loads = [_Load(gateway.url) for _ in range(3)]
    for load in loads:
        load.start()
    try:
        fleet.kill(owner)
        gateway.wait_until(owner, "DOWN")
    finally:
        for load in loads:
            load.end()
        fleet.start(owner)
        gateway.wait_until(owner, "UP")
    assert [failure for load in loads for failure in load.failures] == []
    assert sum(load.answers for load in loads) > len(TASKS)


def test_a_server_that_leaves_moves_its_own_share_and_no_request_fails(
    fleet: Fleet, gateway: Gateway, caller: Caller
) -> None:
    before = caller.owners(TASKS)
    left = NAMES[1]
    loads = [_Load(gateway.url) for _ in range(3)]
    for load in loads:
        load.start()
    try:
        fleet.ask_to_end(left)
        gateway.wait_until(left, "DOWN")
        assert fleet.ended(left) == 0
        asked = sum(load.answers for load in loads)
        fleet.start(left)
        gateway.wait_until(left, "UP")
    finally:
        for load in loads:
            load.end()
    assert [failure for load in loads for failure in load.failures] == []
    assert asked > len(TASKS)
    assert caller.owners(TASKS) == before  # it is back, and has its tasks again

    fleet.ask_to_end(left)
    gateway.wait_until(left, "DOWN")
    without = caller.owners(TASKS)
    assert fleet.ended(left) == 0
    fleet.start(left)
    gateway.wait_until(left, "UP")
    moved = {task for task in TASKS if before[task] != without[task]}
    assert moved == {task for task in TASKS if before[task] == left}
    assert {without[task] for task in moved} == {NAMES[0], NAMES[2]}  # shared among those that are left
