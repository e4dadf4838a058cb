"""Measuring for `sizing`: bytes of what is really there, and processor time.

Bytes are those of files, Redis's own count, and resident memory of a server with many tasks less that of one with a
single task. Processor time, not the clock: what else runs here matters less. Knows nothing of formulas or pages.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backbone import Backbone, load_backbone
from loadtest import http_client, workload
from loadtest.bench import serving
from loadtest.bench.machine import machine
from loadtest.faults.redis_process import RedisProcess
from loadtest.faults.replicas import shape_of
from loadtest.prompts import KINDS, fill_store, make_prompt
from loadtest.server_process import running_server
from loadtest.target import FAKE
from prompt_store import BackboneRef, Prompt, encode_prompt
from server.prompt_cache import SLOT_OVERHEAD

_WORDS = "story song train garden city morning friend letter river window market kitchen winter road".split()
_PATIENCE = 600.0  # seconds until a server must be there: on a busy machine a start takes minutes
_NO_PROMPTS = ("--prompt-cache-bytes", "0", "--host-cache-bytes", "0", "--disk-cache-bytes", "0")


def measure(tasks: int, *, quick: bool = False) -> dict[str, Any]:
    """All figures of this machine."""
    where = machine()
    backbone, fake = load_backbone("minilm"), shape_of("fake")
    tasks = 40 if quick else tasks
    return {
        "machine": where,
        "dtype": backbone.dtype_name,
        "tasks": tasks,
        "a_task": a_task(backbone),
        # What a server keeps of its tasks is the same whatever model it has: in short, the one that needs none.
        "places": places(fake, tasks, FAKE) if quick else places(backbone.shape, tasks),
        "forward_ms": forward(
            backbone,
            (8, 32) if quick else (8, 32, 128, 512),
            (1, 4) if quick else (1, 16),
            0.0 if quick else 0.3,
        ),
        "request_ms": request(backbone.shape, 0.3 if quick else 4.0),
        "http_ms": request(fake, 0.3 if quick else 4.0, FAKE),
    }


def a_task(backbone: Backbone) -> dict[str, dict[str, float]]:
    """Bytes of one prompt of each kind: its file, its place in host memory, its slot on the device."""
    found = {}
    for kind in KINDS:
        manifest, tensors = make_prompt("load-000000", kind, backbone.shape, seed=0)
        file = len(encode_prompt(manifest, tensors))
        slot = backbone.load_prompt(Prompt(manifest, tensors)).nbytes + SLOT_OVERHEAD
        found[kind] = {"file": float(file), "device": float(slot)}
    return found


def places(shape: BackboneRef, tasks: int, module: str | None = None) -> dict[str, float]:
    """Bytes that one more task takes where all tasks are kept, beside its prompt's file.

    Servers run `module`, by default `promptmux serve`; `shape` is its backbone's.
    """
    ids, bare = (
        workload.task_ids(tasks),
        len(encode_prompt(*make_prompt("load-000000", "bare", shape, seed=0))),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(fill_store(f"file://{folder}/one", ids[:1], "bare", shape))
        asyncio.run(fill_store(f"file://{folder}/all", ids, "bare", shape))
        one, every = (_disk(folder / part / "catalogue.sqlite3") for part in ("one", "all"))
        blob = (_disk(folder / "all") - every) / tasks
        with RedisProcess(folder, appendfsync="no") as redis:
            few = redis.url + "?prefix=one:"
            asyncio.run(fill_store(few, ids[:1], "bare", shape))
            before = _used(redis)
            asyncio.run(fill_store(redis.url, ids, "bare", shape))
            in_redis = (_used(redis) - before) / tasks - bare
            single = _served(few, folder / "cache-one", ids[:1], module)
            many = _served(redis.url, folder / "cache-all", ids, module)
    return {
        "file store: catalogue": (every - one) / (tasks - 1),
        "file store: blob, in whole blocks, beside its bytes": blob - bare,
        "redis, beside the file's bytes": in_redis,
        "host memory: a task that is not loaded": (many["resident"] - single["resident"]) / (tasks - 1),
        "snapshot in cache_dir": (many["snapshot"] - single["snapshot"]) / (tasks - 1),
        "a server with one task, nothing loaded": single["resident"],
    }


def _served(store: str, cache: Path, ids: Sequence[str], module: str | None) -> dict[str, float]:
    """Resident bytes of a server that knows all tasks and keeps no prompt, and bytes of its snapshot."""
    flags = ("--store", store, "--cache-dir", str(cache), *_NO_PROMPTS)
    with running_server(*flags, module=module, patience=_PATIENCE) as server:
        serving.clean(http_client.closed_loop(server.url, _requests(server.url, ids, 200)))
        resident = server.process.resident_bytes()
    # The last snapshot is written when the server leaves.
    return {
        "resident": float(resident),
        "snapshot": float(sum(f.stat().st_size for f in cache.glob("*.sqlite3*"))),
    }


def forward(
    backbone: Backbone, lengths: Sequence[int], batches: Sequence[int], least: float
) -> list[dict[str, Any]]:
    """Processor milliseconds for one row, its tokenising as well, by kind of prompt, tokens, and rows of the batch."""
    found = []
    for kind in KINDS:
        manifest, tensors = make_prompt("load-000000", kind, backbone.shape, seed=0)
        prompt, encoder = backbone.load_prompt(Prompt(manifest, tensors)), backbone.row_encoder(manifest)
        for tokens in lengths:
            text = " ".join(_WORDS[at % len(_WORDS)] for at in range(tokens - 2))
            for batch in batches:

                def call(
                    texts: list[str] = [text] * batch, *, own: Any = prompt, encoder: Any = encoder
                ) -> None:
                    backbone.score(encoder.encode(texts), [own] * len(texts))

                cost = _processor(call, least)
                found.append({"kind": kind, "tokens": tokens, "batch": batch, "ms": 1000 * cost / batch})
    return found


def _processor(call: Callable[[], object], least: float) -> float:
    """The median call's processor seconds, over all threads; calls go on until `least` seconds are used."""
    call()
    costs: list[float] = []
    while len(costs) < 2 or sum(costs) < least:
        began = time.process_time()
        call()
        costs.append(time.process_time() - began)
    return statistics.median(costs)


def request(shape: BackboneRef, seconds: float, module: str | None = None) -> dict[str, float]:
    """Processor milliseconds of the whole server for one request with one text of 27 tokens on average, by connections.

    Of the fake, whose formula takes next to nothing, it is what all but the model takes.
    """
    ids = workload.task_ids(64)
    costs: dict[int, list[float]] = {1: [], 16: [], 64: []}
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(fill_store(f"file://{folder}/store", ids, "prefix", shape))
        with running_server("--store", f"file://{folder}/store", module=module, patience=_PATIENCE) as server:
            written = _requests(server.url, ids, 4096)
            serving.clean(http_client.closed_loop(server.url, written[:256]))
            for connections in (*costs, *costs, *costs):  # in turn: what else runs here meets both
                before = server.process.cpu_seconds()
                load = http_client.closed_loop(
                    server.url, itertools.cycle(written), connections=connections, seconds=seconds / 2
                )
                used = server.process.cpu_seconds() - before
                costs[connections].append(1000 * used / serving.clean(load).answered)
    return {f"{connections}": statistics.median(found) for connections, found in costs.items()}


def _requests(url: str, ids: Sequence[str], count: int) -> list[bytes]:
    choices = workload.task_choices("uniform", len(ids))
    texts = workload.texts(1024)
    return http_client.requests(url, ids, texts, choices, count)


def _disk(place: Path) -> int:
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def _used(redis: RedisProcess) -> int:
    return int(redis.run("INFO", "memory")["used_memory"])
