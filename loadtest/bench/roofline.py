"""Section "roofline": which part of the machine's own matrix rate the forward reaches.

The matrix rate is measured in the same rounds as the forward, in bfloat16 and float32, at the shapes of the backbone's
own linear layers for one batch and at a large square shape, in the fastest way found. The roofline is the larger of
the two. Operations are counted by `flops`: real tokens only, so that padding and copies count against the forward.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from backbone import Backbone
from loadtest import workload
from loadtest.bench import matrix, ours
from loadtest.bench.flops import Shape
from loadtest.bench.options import Options
from loadtest.bench.report import Ratio, Section, Table
from loadtest.bench.rounds import Rounds, alternate
from loadtest.prompts import TOKENS, Kind

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Forward:
    """One side of our forward: what it is called, and what one of its rows costs."""

    name: str
    side: ours.Side
    operations: float  # 10¹² for a row, on average
    linear: float  # the linear layers' part of them
    tokens: float


def measure(options: Options, console: Console) -> Section:
    """Measure the machine and our forward by turns."""
    from transformers import AutoConfig

    shape = Shape.of(AutoConfig.from_pretrained(ours.folder(options.backbone)))
    modes = ours.load_all(options, console)
    forwards = [forward for mode, own in modes.items() for forward in _forwards(mode, own, shape, options)]
    backbone = forwards[0].side.backbone
    tokens = round(forwards[0].tokens * options.batch)
    shapes = {
        "linear layers": [(tokens, i, o) for _ in range(shape.layers) for i, o in shape.linears()],
        "square": [(n := _square(options, backbone.device), n, n)],
    }
    seconds = 0.02 if options.quick else 0.4
    ways = {
        (dtype, name): matrix.ways(products, DTYPES[dtype], backbone.device, seconds=seconds)
        for dtype in DTYPES
        for name, products in shapes.items()
    }
    chosen = _fastest(ways, options, console)

    sides: dict[str, Callable[[], float]] = {f"{d}, {name}": way.run for (d, name), way in chosen.items()}
    sides |= {forward.name: forward.side.run for forward in forwards}
    rounds = alternate(sides, options.rounds, console=console, title="roofline")
    return _section(rounds, chosen, forwards, shapes, options)


def _forwards(mode: str, backbone: Backbone, shape: Shape, options: Options) -> list[Forward]:
    tasks = 32 if options.quick else 1000
    mixes = {"short": workload.texts(options.rows), "long": workload.long_texts(max(1, options.rows // 8))}
    wanted: list[tuple[Kind, str]] = [
        ("bare", "short"),
        ("prefix", "short"),
        ("soft", "short"),
        ("bare", "long"),
    ]
    found = []
    for kind, mix in wanted:
        rows = ours.encode(backbone, kind, mixes[mix])
        count = 1 if kind == "bare" else tasks
        side = ours.Side(backbone, rows, ours.prompts(backbone, kind, count), options.batch)
        lengths = [len(row) for row in rows]
        found.append(
            Forward(
                f"ours {mode}: {kind}" + ("" if kind == "bare" else f", {tasks:,} tasks") + f", {mix} texts",
                side,
                shape.rows(lengths, TOKENS if kind == "prefix" else 0) / len(rows) / 1e12,
                shape.linear_per_token * statistics.mean(lengths) / 1e12,
                statistics.mean(lengths),
            )
        )
    return found


def _square(options: Options, device: torch.device) -> int:
    if options.quick:
        return 256
    return 2048 if device.type == "cpu" else 8192


def _fastest(
    ways: dict[tuple[str, str], list[matrix.Way]], options: Options, console: Console
) -> dict[tuple[str, str], matrix.Way]:
    """The fastest way for each dtype and shape, by a few short rounds among all of them."""
    named = {
        f"{dtype}, {shape}, {way.name}": way for (dtype, shape), all_ways in ways.items() for way in all_ways
    }
    trial = alternate({n: way.run for n, way in named.items()}, 1 if options.quick else 3, console=console)
    return {
        (dtype, shape): min(all_ways, key=lambda way: trial.median(f"{dtype}, {shape}, {way.name}"))
        for (dtype, shape), all_ways in ways.items()
    }


def _section(
    rounds: Rounds,
    chosen: dict[tuple[str, str], matrix.Way],
    forwards: list[Forward],
    shapes: dict[str, list[matrix.Product]],
    options: Options,
) -> Section:
    rates = {key: 1 / rounds.median(f"{key[0]}, {key[1]}") for key in chosen}
    roof = {dtype: max(shapes, key=lambda s: rates[dtype, s]) for dtype in DTYPES}

    def fraction(forward: Forward, dtype: str, shape: str) -> float:
        """Of the matrix rate, the median of the rounds' own fractions."""
        ratios = rounds.ratios(forward.name, f"{dtype}, {shape}")
        return statistics.median(ratios) * forward.operations

    machine = Table(
        "the machine's matrix rate, 10¹² operations a second",
        ("shape", "bfloat16", "float32", "bfloat16's fastest way", "float32's fastest way"),
        [
            (name, *(f"{rates[d, name]:.3f}" for d in DTYPES), *(chosen[d, name].name for d in DTYPES))
            for name in shapes
        ],
        prose=("bfloat16's fastest way", "float32's fastest way"),
        note=f"linear layers: those of {forwards[0].side.backbone.name} for one batch of {options.batch} texts, "
        f"{shapes['linear layers'][0][0]} tokens; square: {shapes['square'][0][0]}",
    )
    own = forwards[0].side.backbone.dtype_name
    dtype = (
        own if own in DTYPES else "bfloat16"
    )  # float16's products run at bfloat16's rate where there are any
    table = Table(
        "the forward alone",
        ("side", "rows/s", "tokens/row", "10⁹ op/row", "linear", "10¹² op/s", f"of {dtype} roofline",
         f"of {dtype} linear layers' rate"),
        [
            (
                f.name,
                f"{1 / rounds.median(f.name):,.0f}",
                f"{f.tokens:.1f}",
                f"{f.operations * 1000:.2f}",
                f"{f.linear / f.operations:.0%}",
                f"{f.operations / rounds.median(f.name):.3f}",
                f"{fraction(f, dtype, roof[dtype]):.3f}",
                f"{fraction(f, dtype, 'linear layers'):.3f}",
            )
            for f in forwards
        ],
        note="operations of the layers' matrix products on real tokens (linear: the linear layers' part of them); "
        f"the roofline is the faster shape: {roof[dtype]}",
    )  # fmt: skip
    gpu = forwards[0].side.backbone.device.type == "cuda"
    least, aim = (0.45, 0.5) if gpu else (0.35, 0.5)
    ratios = [
        Ratio(f"forward / measured {dtype} roofline: {f.name}", fraction(f, dtype, roof[dtype]), least, aim)
        for f in forwards
        if f.name.endswith("short texts")
    ]
    raw: dict[str, Any] = {
        "seconds": rounds.seconds,  # for 10¹² operations of the machine's sides, for a row of ours
        "rates": {f"{d}, {s}": rate for (d, s), rate in rates.items()},
        "ways": {f"{d}, {s}": way.name for (d, s), way in chosen.items()},
        "operations_per_row": {f.name: f.operations * 1e12 for f in forwards},
        "tokens_per_row": {f.name: f.tokens for f in forwards},
    }
    return Section("roofline", [machine, table], ratios, raw)
