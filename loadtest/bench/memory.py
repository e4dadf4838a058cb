"""Section "memory": what a task takes on disk, in host memory and on the device, and what a cold task's request costs.

Three servers are asked for as many tasks as often, one request after the other: one with a single task, one with all of
them that keeps no prompt on the device, so that every request is the first of a cold task, and one that keeps them all.
The second less the first is what tasks take, the third less the second what loaded prompts take. On a CPU the device's
memory is the host's. The second and the third take turns for the latency of cold and warm tasks.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from backbone import load_backbone
from loadtest import http_client, workload
from loadtest.bench import serving
from loadtest.bench.options import Options
from loadtest.bench.report import Section, Table
from loadtest.bench.rounds import Rounds, SideFailed, alternate
from loadtest.prompts import TOKENS, Kind, make_prompt
from loadtest.server_process import Running
from prompt_store import BackboneRef, encode_prompt

KINDS: tuple[Kind, ...] = ("bare", "soft", "prefix")
COLD, WARM = "cold: the prompt is in the store only", "warm: the prompt is on the device"
_KEEP_NONE = ("--prompt-cache-bytes", "0")
_KEEP_ALL = ("--prompt-cache-bytes", str(64 * 2**30))
_ASKED = 300  # tasks in one round
_DEVICE = '{tier="device"}'


@dataclass(frozen=True)
class Held:
    """What a server holds: bytes of resident memory, prompts on the device and their bytes."""

    resident: int
    slots: int
    device: int


@dataclass
class Asked:
    """A server that is asked for one task after the other, round after round."""

    server: Running
    task_ids: list[str]
    loads: list[http_client.Load] = field(default_factory=list)

    def all(self) -> None:
        """Ask for each task once, unmeasured."""
        serving.clean(http_client.closed_loop(self.server.url, _once(self.server.url, self.task_ids)))

    def run(self) -> float:
        """The median request's seconds; each round asks for the next tasks."""
        at = len(self.loads) * _ASKED % len(self.task_ids)
        asked = (self.task_ids + self.task_ids)[at : at + min(_ASKED, len(self.task_ids))]
        load = serving.clean(http_client.closed_loop(self.server.url, _once(self.server.url, asked)))
        self.loads.append(load)
        return load.percentile(0.5)

    def held(self) -> Held:
        """What the server holds now."""
        return Held(
            self.server.process.resident_bytes(),
            int(serving.metric(self.server, f"promptmux_tier_entries{_DEVICE}")),
            int(serving.metric(self.server, f"promptmux_tier_bytes{_DEVICE}")),
        )

    def misses(self) -> float:
        """Requests that had to wait for their prompt."""
        return serving.metric(self.server, f"promptmux_tier_misses_total{_DEVICE}")


def measure(options: Options, console: Console) -> Section:
    """Look at one server with a single task, then let two with all tasks take turns."""
    backbone = load_backbone(options.backbone, dtype=options.dtype)
    shape, dtype = backbone.shape, backbone.dtype_name
    del backbone
    ids = workload.task_ids(options.tasks)
    single = dataclasses.replace(options, tasks=1)
    with (
        serving.filled_store(single, shape, console) as store,
        serving.running(single, store, *_KEEP_NONE) as server,
    ):
        one = Asked(server, ids[:1] * len(ids))
        one.all()
        base = one.held()
    with serving.filled_store(options, shape, console) as store:
        disk = disk_bytes(store)
        with (
            serving.running(options, store, *_KEEP_NONE) as keeps_none,
            serving.running(options, store, *_KEEP_ALL) as keeps_all,
        ):
            cold, warm = Asked(keeps_none, ids), Asked(keeps_all, ids)
            for asked in (cold, warm):
                asked.all()
            tasks, prompts, missed = cold.held(), warm.held(), warm.misses()
            if prompts.slots != len(ids) or tasks.slots:
                raise SideFailed(f"{prompts.slots} and {tasks.slots} prompts loaded, not {len(ids)} and 0")
            rounds = alternate({COLD: cold.run, WARM: warm.run}, options.rounds, console=console)
            if warm.misses() != missed:
                raise SideFailed("a warm task was not on the device")
    a_task = {
        **{f"prompt file ({kind})": float(file_bytes(kind, shape)) for kind in KINDS},
        "disk: its part of the store, catalogue included": disk / len(ids),
        "host: a task that is not loaded": (tasks.resident - base.resident) / max(1, len(ids) - 1),
        "host: a loaded prompt, device included": (prompts.resident - tasks.resident) / len(ids),
        f"device: a loaded prompt, {dtype}": prompts.device / len(ids),
    }
    for asked in (cold, warm):
        del asked.loads[0]  # the warm-up
    return _section(options, a_task, rounds, {COLD: cold.loads, WARM: warm.loads})


def file_bytes(kind: Kind, shape: BackboneRef) -> int:
    """The size of one prompt's file."""
    return len(encode_prompt(*make_prompt("load-000000", kind, shape, seed=0)))


def disk_bytes(folder: Path) -> int:
    """Bytes that a folder's files take on disk, in whole blocks where the system tells."""
    sizes = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(getattr(size, "st_blocks", 0) * 512 or size.st_size for size in sizes)


def _once(url: str, task_ids: list[str]) -> list[bytes]:
    """One request for each of the tasks, in order."""
    numbers = iter(range(len(task_ids)))
    return http_client.requests(url, task_ids, workload.texts(256), numbers, len(task_ids))


def _section(
    options: Options, a_task: dict[str, float], rounds: Rounds, loads: dict[str, list[http_client.Load]]
) -> Section:
    memory = Table(
        "what a task takes",
        ("", "KiB"),
        [(name, f"{size / 1024:,.1f}") for name, size in a_task.items()],
        note=f"{TOKENS} virtual tokens; host, device and the store's part are measured with {options.tasks:,} tasks "
        f"({options.kind})",
    )
    shares = (0.5, 0.95, 0.99)
    cost = Table(
        "a cold task's request",
        ("task", *(f"p{share * 100:.0f} ms" for share in shares)),
        [
            (
                name,
                *(
                    f"{statistics.median(one.percentile(share) for one in found) * 1000:,.2f}"
                    for share in shares
                ),
            )
            for name, found in loads.items()
        ],
        note=f"one request at a time; medians of {options.rounds} rounds; a cold task takes "
        f"{1 / rounds.ratio(COLD, WARM):.2f} times as long as a warm one",
    )
    raw = {
        "bytes_per_task": a_task,
        "percentiles": {
            name: {p: [one.percentile(p / 100) for one in found] for p in (50, 95, 99)}
            for name, found in loads.items()
        },
    }
    return Section("memory", [memory, cost], raw=raw)
