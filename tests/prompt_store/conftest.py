"""Builders of prompts, and the store backends that the contract runs over."""

import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from loadtest.faults.redis_process import RedisProcess
from prompt_store import (
    BackboneRef,
    LinearHead,
    LinearLayer,
    Manifest,
    MaxLength,
    PromptStore,
    encode_prompt,
    join_prompts,
    open_store,
    version_of,
)

ROOT = Path(__file__).parents[2]
BACKBONE = BackboneRef(
    name="tiny", fingerprint="ab" * 32, embedding_width=6, hidden_size=8, layers=2, kv_heads=2, head_dim=4
)


class Build:
    """Makes prompts; everything has a default, everything can be another."""

    backbone = BACKBONE

    def manifest(self, task_id: str = "sentiment", **other: Any) -> Manifest:
        fields: dict[str, Any] = {
            "task_id": task_id,
            "labels": ("negative", "positive"),
            "method": "prompt-tuning",
            "backbone": BACKBONE,
            "template": "{soft:3}{text}",
            "pooling": "cls",
            "position_offset": 3,
            "max_length": MaxLength(tokens=128),
            "head": LinearHead(layers=(LinearLayer(in_features=8, out_features=2),)),
        }
        return Manifest(**fields | other)

    def tensors(self, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors of the default manifest."""
        random = np.random.default_rng(seed)
        return {
            "soft_prompt": random.normal(size=(3, 6)).astype(np.float32),
            "head.0.weight": random.normal(size=(2, 8)).astype(np.float16),
            "head.0.bias": np.full(2, seed, np.float32),
        }

    def prompt(self, task_id: str = "sentiment", seed: int = 0) -> bytes:
        """A prompt file; another seed is another version."""
        return encode_prompt(self.manifest(task_id), self.tensors(seed))

    def ensemble(self, members: int = 2) -> bytes:
        """The file of an ensemble of prompts of seeds 0, 1, …"""
        return join_prompts([(f"seed {seed}", self.prompt(seed=seed)) for seed in range(members)])


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


@dataclass
class Backend:
    """A place for a store, that several stores can be opened on."""

    url: str
    damage: Callable[[str, bytes | None], None]  # puts other bytes in place of a version's; None: loses them
    damage_version: Callable[
        [str, str, str, Any], None
    ]  # of a task, a version: a field of its record, and its value
    damage_alias: Callable[[str, str, str], None]  # of a task, an alias: the text of its targets

    def open(self) -> PromptStore:
        return open_store(self.url)


def file_backend(folder: Path) -> Backend:
    def damage(version: str, data: bytes | None) -> None:
        path = folder / "blobs" / f"{version}.safetensors"
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    def change(sql: str, *values: object) -> None:
        database = sqlite3.connect(folder / "catalogue.sqlite3")
        with database:
            assert database.execute(sql, values).rowcount == 1
        database.close()

    def damage_version(task_id: str, version: str, name: str, value: object) -> None:
        change(f"UPDATE versions SET {name} = ? WHERE task_id = ? AND version = ?", value, task_id, version)

    def damage_alias(task_id: str, alias: str, targets: str) -> None:
        change("UPDATE aliases SET targets = ? WHERE task_id = ? AND name = ?", targets, task_id, alias)

    return Backend(folder.as_uri(), damage, damage_version, damage_alias)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A real Redis, for all tests of the session: each uses a prefix of its own."""
    with RedisProcess(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of the test's own, to do as it likes with."""
    (tmp_path / "redis").mkdir()
    with RedisProcess(tmp_path / "redis") as running:
        yield running


def redis_backend(redis: RedisProcess) -> Backend:
    prefix = f"{{{secrets.token_hex(4)}}}:"

    def damage(version: str, data: bytes | None) -> None:
        key = f"{prefix}blob:{version}"
        if data is None:
            redis.run("DEL", key)
        else:
            redis.run("SET", key, data)

    def damage_version(task_id: str, version: str, name: str, value: object) -> None:
        key, field = f"{prefix}task:{task_id}", f"v:{version}"
        revision, size, text = redis.run("HGET", key, field).decode().split(" ", 2)
        if name == "size":
            size = str(value)
        else:
            text = json.dumps(json.loads(text) | {name: value})
        redis.run("HSET", key, field, f"{revision} {size} {text}")

    def damage_alias(task_id: str, alias: str, targets: str) -> None:
        redis.run("HSET", f"{prefix}task:{task_id}", f"a:{alias}", f"3 {targets}")

    return Backend(f"{redis.url}?prefix={quote(prefix)}&timeout=60", damage, damage_version, damage_alias)


@pytest.fixture(params=["file", "redis"])
def make_backend(request: pytest.FixtureRequest) -> Callable[[Path], Backend]:
    """A backend from an empty folder: whoever asks for this runs over every kind of store."""
    if request.param == "file":
        return file_backend
    return lambda _: redis_backend(request.getfixturevalue("redis"))


@pytest.fixture
def backend(make_backend: Callable[[Path], Backend], tmp_path: Path) -> Backend:
    return make_backend(tmp_path / "a store")


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[PromptStore]:
    store = backend.open()
    yield store
    await store.aclose()


@pytest.fixture(scope="session")
def whole() -> Callable[[PromptStore], Awaitable[dict[str, list[str]]]]:
    """Every version of every task, newest first, having seen that each is intact."""

    async def whole(store: PromptStore) -> dict[str, list[str]]:
        state = {}
        for task in (await store.list()).tasks:
            state[task.task_id] = [record.version for record in task.versions]
            for version in state[task.task_id]:
                assert version_of(await store.get(task.task_id, version)) == version
        return state

    return whole


@pytest.fixture(scope="session")
def start_worker() -> Callable[..., subprocess.Popen[str]]:
    """Start `worker.py` with these arguments: a process of its own beside this one."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    return start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a FileStore may be made; its parent is not there either."""
    return tmp_path / "a" / "store"
