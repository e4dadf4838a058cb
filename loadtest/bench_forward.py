"""Forward throughput in process: kinds of prompts, and how many different tasks a batch mixes.

`python -m loadtest.bench_forward` (or `make bench`) prints a table and writes bench_forward.json and
bench_forward.png. All sides see the same texts in the same run and take turns; figures are medians over rounds, and
what counts are the ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from backbone import Backbone, DevicePrompt, Row, load_backbone
from loadtest import workload
from loadtest.prompts import TOKENS, Kind, make_prompt
from prompt_store import Prompt


@dataclass(frozen=True)
class Side:
    """One thing that is measured: rows under prompts of so many different tasks."""

    name: str
    rows: Sequence[Row]
    prompts: Sequence[DevicePrompt]


def side(backbone: Backbone, kind: Kind, tasks: int, texts: Sequence[str]) -> Side:
    """Prompts of `tasks` different tasks, given to the texts in turn."""
    made = []
    for seed in range(tasks):
        manifest, tensors = make_prompt(f"t{seed}", kind, backbone.shape, seed=seed)
        made.append(backbone.load_prompt(Prompt(manifest, tensors)))
    rows = backbone.row_encoder(manifest).encode(texts)
    plural = "task" if tasks == 1 else "tasks"
    return Side(f"{kind}, {tasks:,} {plural}", rows, [made[at % tasks] for at in range(len(rows))])


def run(backbone: Backbone, measured: Side, batch: int) -> float:
    """Seconds for all rows of a side, in batches."""
    began = time.perf_counter()
    for at in range(0, len(measured.rows), batch):
        backbone.score(measured.rows[at : at + batch], measured.prompts[at : at + batch])
    return time.perf_counter() - began


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; the order turns around every other round."""
    for warm in sides.values():
        warm()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for nth in track(range(rounds), description="rounds", transient=True):
        for name in list(sides)[:: 1 if nth % 2 == 0 else -1]:
            seconds[name].append(sides[name]())
    return seconds


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        revision = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": revision,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": bool(torch.cpu._is_avx512_bf16_supported()),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=1024, help="rows of one side in one round")
    parser.add_argument("--batch", type=int, default=64, help="rows of one forward")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("loadtest/results"))
    options = parser.parse_args()
    if options.rows < 1000:
        parser.error("--rows: at least 1000, or no round meets 1,000 different tasks")

    console = Console()
    backbone = load_backbone(options.backbone, dtype=options.dtype)
    texts = workload.texts(options.rows)
    measured = [
        side(backbone, "bare", 32, texts),
        side(backbone, "prefix", 1, texts),
        side(backbone, "prefix", 32, texts),
        side(backbone, "prefix", 1000, texts),
        side(backbone, "soft", 1, texts),
        side(backbone, "soft", 32, texts),
        side(backbone, "soft", 1000, texts),
    ]
    seconds = alternate(
        {s.name: lambda s=s: run(backbone, s, options.batch) for s in measured}, options.rounds
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def ratio(one: str, other: str) -> float:
        """Throughput of `one` over `other`, the median of the rounds' own ratios."""
        return statistics.median(b / a for a, b in zip(seconds[one], seconds[other], strict=True))

    ratios = {
        "prefix: 1,000 tasks mixed / 32 tasks mixed": (
            ratio("prefix, 1,000 tasks", "prefix, 32 tasks"),
            0.95,
        ),
        "soft: 1,000 tasks mixed / 32 tasks mixed": (ratio("soft, 1,000 tasks", "soft, 32 tasks"), 0.95),
        "prefix rows / bare rows (32 tasks each)": (ratio("prefix, 32 tasks", "bare, 32 tasks"), 0.8),
    }
    tokens = statistics.mean(len(row) for row in measured[0].rows)
    console.print(
        f"{backbone.name}, {backbone.dtype_name}, {backbone.device}: {options.rows} texts (mean {tokens:.1f} tokens), "
        f"batches of {options.batch}, {TOKENS} virtual tokens, {options.rounds} rounds, medians"
    )
    table = Table(box=None, header_style="bold")
    for column in ("side", "rows/s", "of bare"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name, median in medians.items():
        table.add_row(name, f"{options.rows / median:,.0f}", f"{ratio(name, measured[0].name):.3f}")
    console.print(table)
    for name, (value, least) in ratios.items():
        console.print(f"{name}: {value:.3f} (at least {least})")

    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine(),
        "backbone": backbone.name,
        "dtype": backbone.dtype_name,
        "rows_per_second": {name: options.rows / median for name, median in medians.items()},
        "ratios": {name: value for name, (value, _) in ratios.items()},
        "seconds": seconds,
        "options": {"rows": options.rows, "batch": options.batch, "rounds": options.rounds},
    }
    (options.out / "bench_forward.json").write_text(json.dumps(result, indent=2) + "\n")
    draw({name: options.rows / median for name, median in medians.items()}, options.out / "bench_forward.png")
    console.print(f"written: {options.out}/bench_forward.json and .png")


def draw(rates: dict[str, float], file: Path) -> None:
    """Horizontal bars of rows per second."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = {"bare": "#8a8f98", "prefix": "#2f6fb2", "soft": "#d08a2e"}
    names = list(rates)[::-1]
    figure, axes = pyplot.subplots(figsize=(7.5, 3.4), layout="constrained")
    bars = axes.barh(names, [rates[n] for n in names], color=[colours[n.split(",")[0]] for n in names])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_xlabel("rows per second")
    axes.set_title("Forward throughput by kind of prompt and tasks mixed", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
