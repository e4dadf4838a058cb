"""The peers' sides of the forward: what each can be asked for, that it computes the same thing, its fastest way.

Owns the list of sides and their choice; how a worker is started and spoken to is `peer_process`'s, what it does with a
request is its own. A peer that fails is never left out in silence: it stays in the table with the reason.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from loadtest.bench.peer_process import PeerUnavailable, Worker, environment
from loadtest.bench.rounds import SideFailed, alternate
from loadtest.prompts import Kind

Way = Mapping[str, Any]
Texts = Literal["short", "long", "zipf"]  # zipf: short texts, each for one of many tasks
# How far pooled states may be from the reference in float32, as a part of their length.
TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2, "int8": 0.5}


@dataclass(frozen=True)
class PeerSide:
    """One row of the table: the fastest of `ways` is measured, which differ in how but not in what is computed.

    `counts` is False where a side is shown but is not the peer that ours is compared with. `sorted` says that the
    whole workload is sorted by length beforehand, which a server of single requests cannot do; short texts are measured
    both ways, long ones the faster way.
    """

    name: str
    peer: str
    texts: Texts
    dtype: str
    ways: tuple[Way, ...]
    kind: Kind = "bare"
    counts: bool = True
    sorted: bool = False


def peer_sides(peers: Sequence[str], prompts: Path, *, compiled: bool = True) -> list[PeerSide]:
    """All sides of these peers; `prompts` is the file of their prompts' values.

    Without `compiled`, engines are left out that take minutes to compile.
    """
    given = {"prompts": str(prompts)}
    batches: dict[str, Sequence[Any]] = {"batch": (32, 64)}
    engines = {**batches, "engine": ("eager", "compiled") if compiled else ("eager",)}
    hints = {**batches, "hint": ("THROUGHPUT", "LATENCY")}
    graphs = {**batches, "graph": ("exported", "fused")}
    sides: list[PeerSide] = []

    def add(
        texts: Texts, name: str, dtype: str, choices: Mapping[str, Sequence[Any]], *, counts: bool = True
    ) -> None:
        peer = name.split()[0]
        if texts == "long":  # slow: one side each, its fastest way of both
            ways = _ways({**choices, "sort": (False, True)}, dtype=dtype)
            sides.append(PeerSide(f"{name}, long", peer, texts, dtype, ways, counts=counts))
            return
        for sort in (False, True):
            full = f"{name}, sorted" if sort else name
            ways = _ways(choices, dtype=dtype, sort=sort)
            sides.append(PeerSide(full, peer, texts, dtype, ways, counts=counts, sorted=sort))

    both: tuple[Texts, ...] = ("short", "long")
    for texts in both:
        for dtype in ("float32", "bfloat16"):
            add(texts, f"huggingface {dtype}", dtype, engines)
        for dtype in ("float32", "bfloat16"):
            add(texts, f"openvino {dtype}", dtype, hints)
        add(texts, "onnxruntime float32", "float32", graphs)
        add(texts, "onnxruntime int8 (less exact)", "int8", graphs, counts=False)
    for dtype in ("float32", "bfloat16"):
        name, ways = f"huggingface {dtype}, one soft prompt", _ways(batches, dtype=dtype, sort=False, **given)
        sides.append(PeerSide(name, "huggingface", "short", dtype, ways, "soft"))
    kinds: tuple[Kind, ...] = ("soft", "prefix")
    for kind, dtype in itertools.product(kinds, ("float32", "bfloat16")):
        way = {"dtype": dtype, "kind": kind, "batch": 32, **given}
        sides.append(PeerSide(f"peft {kind} {dtype}", "peft", "zipf", dtype, (way,), kind))
    return [side for side in sides if side.peer in peers]


def _ways(choices: Mapping[str, Sequence[Any]], **fixed: Any) -> tuple[Way, ...]:
    return tuple(
        {**fixed, **dict(zip(choices, made, strict=True))} for made in itertools.product(*choices.values())
    )


def told(way: Way) -> str:
    """A way in words."""
    words = [f"batches of {way['batch']}"]
    if way.get("sort"):
        words.append("sorted by length")
    words += [str(way[key]) for key in ("engine", "hint", "graph") if key in way]
    return ", ".join(words)


@dataclass
class Peers:
    """Running workers; which ways of a side work, which is the fastest, and why others are out."""

    workers: dict[str, Worker] = field(default_factory=dict)
    ways: dict[str, list[Way]] = field(default_factory=dict)
    chosen: dict[str, Way] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    differs: dict[str, float] = field(default_factory=dict)

    def versions(self) -> dict[str, str]:
        """What the workers run on."""
        return {
            f"{peer}: {name}": version
            for peer, worker in self.workers.items()
            for name, version in worker.versions.items()
        }

    def side(self, side: PeerSide, way: Way, file: Path, rows: int) -> Callable[[], float]:
        """Return the function that does the work once and gives the seconds for one row."""
        worker = self.workers[side.peer]
        return lambda: float(worker.ask("run", file=str(file), **way)["seconds"]) / rows


@contextlib.contextmanager
def started(sides: Sequence[PeerSide], model: Path, console: Console) -> Iterator[Peers]:
    """Install and start the peers of these sides; end them at the end."""
    peers = Peers()
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(side.peer for side in sides):
            try:
                command = [str(environment(name, console)), "-m", f"loadtest.bench.peers.{name}"]
                peers.workers[name] = stack.enter_context(
                    Worker([*command, "--model", str(model)], name=name)
                )
            except PeerUnavailable as error:
                console.print(f"{name} is not measured: {error}", style="bold red", markup=False)
                peers.failed |= {side.name: str(error) for side in sides if side.peer == name}
        yield peers


def verify(
    peers: Peers,
    sides: Sequence[PeerSide],
    files: Mapping[str, Path],
    reference: Callable[[PeerSide], np.ndarray[Any, Any]],
    console: Console,
) -> None:
    """Compare each side's pooled states with the reference's; a way that computes something else is out."""
    for side in sides:
        if side.name in peers.failed:
            continue
        expected = reference(side)
        found: dict[str, float | str] = {}
        for way in side.ways:
            if _what(way) not in found:
                found[_what(way)] = _compare(
                    peers.workers[side.peer], way, files[side.texts], expected, side.dtype
                )
        peers.ways[side.name] = [way for way in side.ways if isinstance(found[_what(way)], float)]
        for what, said in found.items():
            if isinstance(said, str):
                console.print(f"{side.name} {what}: {said}", style="bold red", markup=False)
                peers.failed[side.name] = said
        if peers.ways[side.name]:
            peers.failed.pop(side.name, None)
            peers.differs[side.name] = max(said for said in found.values() if isinstance(said, float))


def _compare(worker: Worker, way: Way, file: Path, expected: np.ndarray[Any, Any], dtype: str) -> float | str:
    """How far a way's pooled states are from the expected ones, or why it is out."""
    try:
        answer = worker.ask("features", file=str(file), rows=len(expected), **way)
    except SideFailed as error:
        return str(error)
    apart = difference(np.array(answer["features"]), expected)
    return apart if apart <= TOLERANCE[dtype] else f"computes something else: {apart:.2g} from the reference"


def _what(way: Way) -> str:
    """What a way computes: its request without that which only says in which order."""
    return repr({key: value for key, value in way.items() if key not in ("batch", "sort", "hint")})


def difference(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """How far the farthest row is from what it should be, as a part of its length."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    return float((np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def choose(
    peers: Peers,
    sides: Sequence[PeerSide],
    trials: Mapping[str, Path],
    rounds: int,
    console: Console,
) -> None:
    """Find each side's fastest way in a few short rounds among its ways; without rounds, take the first."""
    for side in sides:
        if side.name in peers.failed:
            continue
        ways = peers.ways[side.name]
        if len(ways) == 1 or not rounds:
            peers.chosen[side.name] = ways[0]
            continue
        tried = alternate(
            {told(way): peers.side(side, way, trials[side.texts], 1) for way in side.ways},
            rounds,
            console=console,
        )
        if not tried.seconds:
            peers.failed[side.name] = next(iter(tried.failed.values()))
            continue
        best = min(tried.seconds, key=tried.median)
        peers.chosen[side.name] = next(way for way in ways if told(way) == best)
        console.print(f"{side.name}: fastest with {best}", markup=False)
