"""What a task takes and what a request costs on this machine, and what so many of both would need.

    python -m loadtest.sizing measure                              (some minutes; --write puts it into docs/sizing.md)
    python -m loadtest.sizing estimate --tasks 50000 --rate 200    (from the figures in docs/results/sizing.json)

Sizes are bytes of what is really there: files, Redis's own count, resident memory of a server with many tasks less that
of one with a single task. Costs are processor time, not the clock: what else runs here matters less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbone import Backbone, load_backbone
from loadtest import http_client, workload
from loadtest.bench import serving
from loadtest.bench.machine import ROOT, machine
from loadtest.faults.redis_process import RedisProcess
from loadtest.prompts import TOKENS, Kind, fill_store, make_prompt
from loadtest.server_process import leave_on_sigterm, running_server
from prompt_store import Prompt, encode_prompt
from server.prompt_cache import SLOT_OVERHEAD

KINDS: tuple[Kind, ...] = ("bare", "soft", "prefix")
PAGE, KEPT = ROOT / "docs" / "sizing.md", ROOT / "docs" / "results" / "sizing.json"
BEGIN, END = "<!-- sizing: begin -->", "<!-- sizing: end -->"
BUSY = 0.7  # of the cores: beyond that a queue's length is a matter of luck
_WORDS = "story song train garden city morning friend letter river window market kitchen winter road".split()
_NO_PROMPTS = ("--prompt-cache-bytes", "0", "--host-cache-bytes", "0", "--disk-cache-bytes", "0")


def a_task(backbone: Backbone) -> dict[str, dict[str, float]]:
    """Bytes of one prompt of each kind: its file, its place in host memory, its slot on the device."""
    found = {}
    for kind in KINDS:
        manifest, tensors = make_prompt("load-000000", kind, backbone.shape, seed=0)
        file = len(encode_prompt(manifest, tensors))
        slot = backbone.load_prompt(Prompt(manifest, tensors)).nbytes + SLOT_OVERHEAD
        found[kind] = {"file": float(file), "device": float(slot)}
    return found


def places(backbone: Backbone, tasks: int) -> dict[str, float]:
    """Bytes that one more task takes where all tasks are kept, beside its prompt's file."""
    ids, bare = (
        workload.task_ids(tasks),
        len(encode_prompt(*make_prompt("load-000000", "bare", backbone.shape, seed=0))),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(fill_store(f"file://{folder}/one", ids[:1], "bare", backbone.shape))
        asyncio.run(fill_store(f"file://{folder}/all", ids, "bare", backbone.shape))
        one, every = (_disk(folder / part / "catalogue.sqlite3") for part in ("one", "all"))
        blob = (_disk(folder / "all") - every) / tasks
        with RedisProcess(folder, appendfsync="no") as redis:
            few = redis.url + "?prefix=one:"
            asyncio.run(fill_store(few, ids[:1], "bare", backbone.shape))
            before = _used(redis)
            asyncio.run(fill_store(redis.url, ids, "bare", backbone.shape))
            in_redis = (_used(redis) - before) / tasks - bare
            single = _served(few, folder / "cache-one", ids[:1])
            many = _served(redis.url, folder / "cache-all", ids)
    return {
        "file store: catalogue": (every - one) / (tasks - 1),
        "file store: blob, in whole blocks, beside its bytes": blob - bare,
        "redis, beside the file's bytes": in_redis,
        "host memory: a task that is not loaded": (many["resident"] - single["resident"]) / (tasks - 1),
        "snapshot in cache_dir": (many["snapshot"] - single["snapshot"]) / (tasks - 1),
        "a server with one task, nothing loaded": single["resident"],
    }


def _served(store: str, cache: Path, ids: Sequence[str]) -> dict[str, float]:
    """Resident bytes of a server that knows all tasks and keeps no prompt, and bytes of its snapshot."""
    with running_server("--store", store, "--cache-dir", str(cache), *_NO_PROMPTS) as server:
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
    """Processor milliseconds for one row, by kind of prompt, tokens of its text, and rows of the batch."""
    found = []
    for kind in KINDS:
        manifest, tensors = make_prompt("load-000000", kind, backbone.shape, seed=0)
        prompt, encoder = backbone.load_prompt(Prompt(manifest, tensors)), backbone.row_encoder(manifest)
        for tokens in lengths:
            text = " ".join(_WORDS[at % len(_WORDS)] for at in range(tokens - 2))
            for batch in batches:
                rows = encoder.encode([text] * batch)
                cost = _processor(lambda r=rows, p=prompt: backbone.score(r, [p] * len(r)), least)  # type: ignore[misc]
                found.append({"kind": kind, "tokens": tokens, "batch": batch, "ms": 1000 * cost / batch})
    return found


def _processor(call: Any, least: float) -> float:
    """The median call's processor seconds, over all threads; calls go on until `least` seconds are used."""
    call()
    costs: list[float] = []
    while len(costs) < 3 or sum(costs) < least:
        began = time.process_time()
        call()
        costs.append(time.process_time() - began)
    return statistics.median(costs)


def request(backbone: Backbone, seconds: float) -> dict[str, float]:
    """Processor milliseconds of the whole server for one request with one text of 27 tokens on average."""
    ids = workload.task_ids(64)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(fill_store(f"file://{folder}/store", ids, "prefix", backbone.shape))
        with running_server("--store", f"file://{folder}/store") as server:
            serving.clean(http_client.closed_loop(server.url, _requests(server.url, ids, 256)))
            costs = {}
            for connections in (1, 32):
                before = server.process.cpu_seconds()
                written = _requests(server.url, ids, 100_000)
                load = http_client.closed_loop(server.url, written, connections=connections, seconds=seconds)
                costs[f"{connections}"] = (
                    1000 * (server.process.cpu_seconds() - before) / serving.clean(load).answered
                )
            return costs


def _requests(url: str, ids: Sequence[str], count: int) -> Iterator[bytes]:
    choices = workload.task_choices("uniform", len(ids))
    texts = workload.texts(1024)
    return iter(http_client.requests(url, ids, texts, choices, count))


def _disk(place: Path) -> int:
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def _used(redis: RedisProcess) -> int:
    return int(redis.run("INFO", "memory")["used_memory"])


def estimate(
    figures: Mapping[str, Any], *, tasks: int, rate: float, kind: str, tokens: int
) -> dict[str, float]:
    """Bytes and cores for so many tasks and requests a second, by the formulas of docs/sizing.md."""
    file, device = figures["a_task"][kind]["file"], figures["a_task"][kind]["device"]
    place = figures["places"]
    return {
        "server: memory with no prompt loaded": place["a server with one task, nothing loaded"]
        + tasks * place["host memory: a task that is not loaded"],
        "server: device memory for all prompts": tasks * device,
        "server: disk for cache_dir": tasks * (file + place["snapshot in cache_dir"]),
        "redis: memory": tasks * (file + place["redis, beside the file's bytes"]),
        "cores, of all servers": rate * request_ms(figures, kind, tokens) / 1000 / BUSY,
    }


def request_ms(figures: Mapping[str, Any], kind: str, tokens: int) -> float:
    """Processor milliseconds of one request with one text of so many tokens, in batches: the forward's by the straight
    line between the lengths that were measured, and what HTTP adds.
    """
    return (
        _forward_ms(figures, kind, tokens) + figures["request_ms"]["32"] - _forward_ms(figures, "prefix", 27)
    )


def _forward_ms(figures: Mapping[str, Any], kind: str, tokens: float) -> float:
    most = max(one["batch"] for one in figures["forward_ms"])
    line = sorted(
        (o["tokens"], o["ms"]) for o in figures["forward_ms"] if o["kind"] == kind and o["batch"] == most
    )
    return float(np.interp(tokens, [at for at, _ in line], [ms for _, ms in line]))


def shown(figures: Mapping[str, Any]) -> str:
    """The figures as docs/sizing.md has them."""
    where = figures["machine"]
    kinds = [
        (
            f"{kind}, {TOKENS} virtual tokens" if kind != "bare" else kind,
            _kib(one["file"]),
            _kib(one["device"]),
        )
        for kind, one in figures["a_task"].items()
    ]
    places = [(name, _kib(size)) for name, size in figures["places"].items()]
    lengths = sorted({one["tokens"] for one in figures["forward_ms"]})
    costs: dict[tuple[str, int], list[str]] = {}
    for one in figures["forward_ms"]:
        costs.setdefault((one["kind"], one["batch"]), []).append(f"{one['ms']:.2f}")
    rows = [(kind, str(batch), *found) for (kind, batch), found in costs.items()]
    requests = [(connections, f"{ms:.2f}") for connections, ms in figures["request_ms"].items()]
    return "\n\n".join(
        (
            f"`python -m loadtest.sizing measure`, {where['date']}, commit {where['commit']}, {where['cores']} cores of"
            f" {where['cpu']}, {figures['dtype']}, {figures['tasks']:,} tasks.",
            _table(("prompt (two labels)", "file, KiB", "device slot, KiB"), kinds),
            _table(("one more task takes, beside its file", "KiB"), places),
            _table(
                ("processor ms a row: prompt", "rows in the batch", *(f"{n} tokens" for n in lengths)), rows
            ),
            _table(("connections", "processor ms a request, the whole server, 27 tokens"), requests),
        )
    )


def _kib(size: float) -> str:
    return f"{size / 1024:,.1f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of this machine."""
    where = machine()
    backbone = load_backbone("minilm")
    quick = options.quick
    tasks = 40 if quick else options.tasks
    return {
        "machine": where,
        "dtype": backbone.dtype_name,
        "tasks": tasks,
        "a_task": a_task(backbone),
        "places": places(backbone, tasks),
        "forward_ms": forward(
            backbone,
            (8, 32) if quick else (8, 32, 128, 512),
            (1, 4) if quick else (1, 32),
            0.0 if quick else 0.5,
        ),
        "request_ms": request(backbone, 0.3 if quick else 6.0),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.sizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="measure this machine")
    one.add_argument(
        "--tasks", type=int, default=2000, help="over which a task's part is measured (%(default)s)"
    )
    one.add_argument("--write", action="store_true", help="keep the figures and write docs/sizing.md")
    one.add_argument(
        "--quick", action="store_true", help="shows that everything runs; its figures mean nothing"
    )
    two = commands.add_parser("estimate", help="what so many tasks and requests need, by the kept figures")
    two.add_argument("--tasks", type=int, required=True)
    two.add_argument("--rate", type=float, required=True, help="requests a second, one text each")
    two.add_argument("--kind", choices=KINDS, default="prefix", help="of prompts (%(default)s)")
    two.add_argument("--tokens", type=int, default=27, help="of a text (%(default)s)")
    two.add_argument("--figures", type=Path, default=KEPT, help="another machine's figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure or estimate, and print."""
    leave_on_sigterm()
    options = parse(arguments)
    if options.command == "estimate":
        figures = json.loads(options.figures.read_text(encoding="utf-8"))
        needs = estimate(
            figures, tasks=options.tasks, rate=options.rate, kind=options.kind, tokens=options.tokens
        )
        for name, value in needs.items():
            print(
                f"{name:40}{value:8.1f}" if name.startswith("cores") else f"{name:40}{value / 2**30:8.2f} GiB"
            )
        return
    figures = measure(options)
    print(shown(figures))
    if options.write and not options.quick:
        KEPT.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{shown(figures)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
