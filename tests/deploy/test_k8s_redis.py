"""The Redis of components/redis, really run: doctor approves of it, it starts and stops as its pod does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from loadtest.faults.fetched_program import NoProgram
from loadtest.faults.redis_server import find_redis_server
from prompt_store import open_store
from prompt_store.checkup import examine
from prompt_store.codec import MAX_BYTES
from tests.deploy.in_cluster_redis import ClusterRedis
from tests.deploy.manifests import ROOT, Object, named, quantity, rendered
from tests.server.fakes import REF, prompt_bytes


@pytest.fixture(scope="module", autouse=True)
def _there_is_a_redis() -> None:
    try:
        find_redis_server()
    except NoProgram as error:
        pytest.skip(f"NO REDIS-SERVER, THE MANIFEST'S REDIS IS NOT TESTED: {error}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterRedis]:
    one = ClusterRedis(tmp_path)
    yield one
    one.kill()


def pod() -> Object:
    return named(rendered("overlays/cpu"), "StatefulSet", "promptmux-redis")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def tool(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"NO {name.upper()}: WHAT THE POD OF REDIS RUNS IS NOT RUN HERE")


async def test_doctor_approves(cluster: ClusterRedis) -> None:
    url = cluster.new_password()
    cluster.start()
    store = open_store(url)
    try:
        published = await store.publish(prompt_bytes(), actor="test")
    finally:
        await store.aclose()
    assert published.durability.durable
    findings = await examine(url, deep=True)
    assert [one for one in findings if one.verdict == "problem"] == []
    # The image's Redis has that flaw mended, the one of this machine may not.
    assert {one.name for one in findings if one.verdict == "warning"} <= {"Lua flaw", "ping"}


async def test_the_image_has_the_flaw_in_lua_mended() -> None:
    from prompt_store.redis_checkup import _LUA_MENDED

    (image,) = {one["image"] for one in [*pod()["containers"], *pod()["initContainers"]]}
    version = tuple(map(int, image.rpartition(":")[2].partition("-")[0].split(".")))
    assert any(version[:2] == mended[:2] and version >= mended for mended in _LUA_MENDED["Redis"])


def test_unfilled_secrets_let_nobody_in_but_the_kubelet(cluster: ClusterRedis) -> None:
    cluster.start()
    assert cluster.client(
        "probe", "none"
    ).ping()  # else its pod never became ready, and held up its own mending
    with pytest.raises(redis.exceptions.NoPermissionError):
        cluster.client("probe", "none").get("promptmux:store")
    assert (
        named(rendered("overlays/cpu"), "StatefulSet", "promptmux-redis")["spec"]["podManagementPolicy"]
        == "Parallel"
    )
    with pytest.raises(redis.AuthenticationError):
        cluster.client().ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(cluster.url).ping()


def test_a_new_password_shuts_the_old_one_out(cluster: ClusterRedis) -> None:
    old = cluster.new_password()
    assert cluster.new_password() != old
    cluster.start()
    assert redis.Redis.from_url(cluster.url).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(old).ping()
    with pytest.raises(redis.AuthenticationError):
        cluster.client().ping()


def test_the_kubelets_user_may_say_ping_and_nothing_else(cluster: ClusterRedis) -> None:
    cluster.new_password()
    cluster.start()
    probe = cluster.client("probe", "none")
    assert probe.ping()
    for command in (
        ["GET", "promptmux:store"],
        ["CONFIG", "GET", "*"],
        ["ACL", "LIST"],
        ["PUBLISH", "x", "y"],
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            probe.execute_command(*command)


def test_it_is_ready_when_it_answers(cluster: ClusterRedis) -> None:
    tool("redis-cli")
    cluster.new_password()
    (container,) = pod()["containers"]
    command = container["readinessProbe"]["exec"]["command"]
    here = [part.replace("6379", str(cluster.port)) for part in command]
    assert here != command
    assert subprocess.run(here, capture_output=True, timeout=600).returncode != 0
    cluster.start()
    assert subprocess.run(here, capture_output=True, timeout=600).returncode == 0


def mend(cluster: ClusterRedis) -> subprocess.CompletedProcess[str]:
    (container,) = pod()["initContainers"]
    script = named(rendered("overlays/cpu"), "ConfigMap", "promptmux-redis-conf")["data"]["mend-log.sh"]
    file = cluster.data.parent / "mend-log.sh"
    file.write_text(script)
    there = {"/etc/redis/mend-log.sh": str(file), "/data": str(cluster.data)}
    command = [there.get(part, part) for part in container["command"]]
    assert command == ["sh", *there.values()]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


async def test_what_was_written_outlives_its_end_and_a_torn_log(cluster: ClusterRedis) -> None:
    tool("redis-check-aof")
    url = cluster.new_password()
    assert mend(cluster).returncode == 0  # the first start of all: there is no log
    cluster.start()
    store = open_store(url)
    try:
        published = await store.publish(prompt_bytes(), actor="test")
    finally:
        await store.aclose()
    assert cluster.stop() == 0
    logs = list(cluster.data.glob("appendonlydir/*.incr.aof"))
    if not logs:
        pytest.skip("THIS REDIS IS OLDER THAN 7: ITS ONE LOG IS NOT WHERE THE POD MENDS IT")
    with logs[0].open("ab") as log:
        log.write(b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\nx")  # a power cut in a transaction
    told = mend(cluster)
    assert told.returncode == 0, told.stderr
    assert b"MULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\nx" not in logs[0].read_bytes()
    cluster.start()
    store = open_store(url)
    try:
        assert await store.get(published.task_id, published.version) == prompt_bytes()
    finally:
        await store.aclose()


def copies(cluster: ClusterRedis) -> list[Path]:
    return sorted(cluster.data.glob("appendonlydir.before-mending-*"))


async def _three_published(cluster: ClusterRedis) -> Path:
    """The log of a Redis that has ended with three tasks in it."""
    url = cluster.new_password()
    cluster.start()
    store = open_store(url)
    try:
        for task in ("one", "two", "three"):
            await store.publish(prompt_bytes(task), actor="test")
    finally:
        await store.aclose()
    assert cluster.stop() == 0
    logs = list(cluster.data.glob("appendonlydir/*.incr.aof"))
    if not logs:
        pytest.skip("THIS REDIS IS OLDER THAN 7: ITS ONE LOG IS NOT WHERE THE POD MENDS IT")
    return logs[0]


async def test_of_a_log_that_is_mended_one_copy_is_kept(cluster: ClusterRedis) -> None:
    tool("redis-check-aof")
    log = await _three_published(cluster)
    whole = log.read_bytes()
    assert mend(cluster).returncode == 0
    assert copies(cluster) == []  # nothing was to be mended
    (cluster.data / "appendonlydir.before-mending-20200101T000000Z").mkdir()
    for torn in (b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSE", bytes(5000)):  # as a power cut leaves the last write
        log.write_bytes(whole + torn)
        assert mend(cluster).returncode == 0
        assert log.read_bytes() == whole
        (copy,) = copies(cluster)
        assert (copy / log.name).read_bytes() == whole + torn


async def test_a_log_that_is_damaged_in_its_middle_is_left_as_it_is(cluster: ClusterRedis) -> None:
    tool("redis-check-aof")
    log = await _three_published(cluster)
    whole = log.read_bytes()
    middle = whole.index(b"MULTI", len(whole) // 3) - len(b"*1\r\n$5\r\n")
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged, why in (
        (flipped, "whole transactions follow"),
        (whole + bytes(cut_at_most() + 1), "more than one write is"),
    ):
        log.write_bytes(damaged)
        told = mend(cluster)
        assert told.returncode == 1
        assert why in told.stderr
        assert "NOTHING WAS CHANGED" in told.stderr
        assert log.read_bytes() == damaged
        assert copies(cluster) == []


def cut_at_most() -> int:
    """The bound of mend-log.sh."""
    (most,) = re.findall(r"MEND_AT_MOST:-([0-9]+)", (ROOT / "docker/redis/mend-log.sh").read_text())
    return int(most)


async def test_the_largest_prompt_may_be_torn(cluster: ClusterRedis) -> None:
    """A publish is one transaction: a power cut in it leaves nearly the whole file behind the last whole one."""
    tool("redis-check-aof")
    largest = prompt_bytes("largest", ref=REF.model_copy(update={"hidden_size": MAX_BYTES // 8 - 1024}))
    assert MAX_BYTES - 16384 < len(largest) <= MAX_BYTES
    log = await _three_published(cluster)
    whole = log.stat().st_size
    cluster.start()
    store = open_store(cluster.url)
    try:
        await store.publish(largest, actor="test")
    finally:
        await store.aclose()
    assert cluster.stop() == 0
    written = log.stat().st_size
    assert len(largest) < written - whole <= MAX_BYTES * 1.25 <= cut_at_most()
    os.truncate(log, written - 5)  # the end of EXEC
    told = mend(cluster)
    assert told.returncode == 0, told.stderr
    assert whole <= log.stat().st_size <= whole + len(b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n")
    (copy,) = copies(cluster)
    assert (copy / log.name).stat().st_size == written - 5


def test_compose_mends_by_the_same_script() -> None:
    ours, theirs = (ROOT / one / "mend-log.sh" for one in ("docker/redis", "deploy/k8s/components/redis"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_it_may_take_twice_what_it_keeps() -> None:
    objects = rendered("overlays/cpu")
    conf = named(objects, "ConfigMap", "promptmux-redis-conf")["data"]["redis.conf"]
    (most,) = (line.split()[1] for line in conf.splitlines() if line.startswith("maxmemory "))
    (container,) = pod()["containers"]
    kept = quantity(most.replace("gb", "Gi"))
    assert quantity(container["resources"]["limits"]["memory"]) >= 2 * kept + 128 * 2**20
    (claim,) = named(objects, "StatefulSet", "promptmux-redis")["spec"]["volumeClaimTemplates"]
    assert (
        quantity(claim["spec"]["resources"]["requests"]["storage"]) >= 4 * kept
    )  # a rewrite keeps the old log, too
