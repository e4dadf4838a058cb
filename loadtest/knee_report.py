"""The knee as a table, as JSON and as a picture.

Owns: how it looks, and what is kept with it. Must not know: how it was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loadtest.bench.machine import machine
from loadtest.bench.plots import pyplot, save

if TYPE_CHECKING:
    from loadtest.knee import Knee, Level, Rules
    from loadtest.target import Target

_GOOD, _BAD, _INK = "#2f6fb2", "#b3261e", "#222222"


def circumstances() -> dict[str, Any]:
    """The machine, as it is before anything is sent."""
    return machine()


def tell(level: Level, console: Console) -> None:
    """One line as soon as a level is over."""
    verdict = "carried" if level.good else f"[red]not carried[/red]: {level.why}"
    console.print(
        f"{level.rate:9,.1f}/s offered  {level.median('goodput'):9,.1f}/s answered  "
        f"p50 {_ms(level.median('p50')):>8}  p99 {_ms(level.median('p99')):>8} ms  {verdict}",
        highlight=False,
    )


def show(knee: Knee, rules: Rules, console: Console) -> None:
    """The whole table, and the knee in one sentence."""
    table = Table(title="medians of the trials at each rate", title_justify="left")
    for name in (
        "asked for/s", "offered/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "p99 of each trial", "refused",
        "failed", "generator's CPU", "lag p99 ms", "",
    ):  # fmt: skip
        table.add_column(name, justify="right" if name else "left")
    for level in knee.levels:
        table.add_row(
            f"{level.rate:,.1f}",
            *(f"{level.median(name):,.1f}" for name in ("offered", "goodput")),
            *(_ms(level.median(name)) for name in ("p50", "p95", "p99")),
            " ".join(_ms(trial.p99) for trial in level.trials),
            f"{sum(trial.refused for trial in level.trials):,}",
            f"{sum(trial.failed for trial in level.trials):,}",
            f"{level.median('generator_cpu'):.0%}",
            _ms(level.median("lag_p99")),
            "" if level.good else level.why,
        )
    console.print(table)
    console.print(sentence(knee.rate, knee.beyond, knee.limit, rules.p99), highlight=False)


def sentence(rate: float | None, beyond: float | None, limit: str, p99: float) -> str:
    """The knee for a person."""
    bound = f"p99 of {p99 * 1000:,.0f} ms or less"
    if rate is None and limit == "generator":
        return (
            f"no knee: the GENERATOR was late at {beyond:,.1f} requests a second already, and tells nothing"
        )
    if rate is None:
        return f"no knee: not even {beyond:,.1f} requests a second are carried with {bound}"
    if beyond is None:
        return f"no knee up to {rate:,.1f} requests a second, with {bound}: ask for more (--most)"
    said = f"knee: {rate:,.1f} requests a second are carried with {bound}, {beyond:,.1f} are not"
    return said if limit == "server" else f"{said}; the GENERATOR was late there: the server may carry more"


def as_plain(
    knee: Knee,
    rules: Rules,
    target: Target,
    *,
    command: str,
    seconds: float,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """For JSON, which knows no infinity: null is for ever."""
    return {
        "knee_per_second": knee.rate,
        "beyond_per_second": knee.beyond,
        "limit": knee.limit,
        "told": sentence(knee.rate, knee.beyond, knee.limit, rules.p99),
        "rules": asdict(rules),
        "settings": dict(settings),
        "target": {"told": target.told, **target.facts},
        "command": command,
        "seconds": round(seconds, 1),
        "machine": dict(facts),
        "levels": [
            {
                "rate": level.rate,
                "good": level.good,
                "why": level.why,
                "trials": [
                    {name: _plain(value) for name, value in asdict(trial).items()} for trial in level.trials
                ],
            }
            for level in knee.levels
        ],
    }


def draw(plain: Mapping[str, Any], file: Path) -> Path:
    """Throughput against p99: a dot for each trial, a line through each level's middle, the knee marked."""
    plt = pyplot()
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = plt.subplots(figsize=(8.6, 4.8), layout="constrained")
    bound = plain["rules"]["p99"] * 1000
    line = []
    for level in plain["levels"]:
        shown = [(one["goodput"], one["p99"] * 1000) for one in level["trials"] if one["p99"] is not None]
        if not shown:
            continue
        colour = _GOOD if level["good"] else _BAD
        axes.scatter(*zip(*shown, strict=True), s=14, color=colour, alpha=0.35, linewidths=0, zorder=2)
        if len(shown) == len(level["trials"]):
            line.append((_middle([x for x, _ in shown]), _middle([y for _, y in shown]), level["good"]))
    good = [(x, y) for x, y, fine in line if fine]
    beyond = [(x, y) for x, y, fine in line if not fine]
    if good and beyond:
        axes.plot(
            *zip(*[good[-1], *beyond], strict=True), color=_BAD, linewidth=1.2, linestyle="--", zorder=3
        )
    if beyond:
        axes.plot(
            *zip(*beyond, strict=True),
            color=_BAD,
            linestyle="",
            marker="o",
            markersize=5,
            zorder=4,
            label="not carried",
        )
    if good:
        axes.plot(
            *zip(*good, strict=True),
            color=_GOOD,
            linewidth=2,
            marker="o",
            markersize=5,
            zorder=4,
            label="carried",
        )
    axes.axhline(bound, color="#9aa0a8", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    heights = [
        one["p99"] * 1000 for level in plain["levels"] for one in level["trials"] if one["p99"] is not None
    ]
    axes.set_yscale("log")
    axes.set_ylim(min([bound, *heights]) / 2, max([bound, *heights]) * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, max([x for x, _, _ in line] or [1.0]) * 1.12)
    axes.annotate(
        f"bound {bound:,.0f} ms", (0.005, bound), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", fontsize=8, color="#777",
    )  # fmt: skip
    rate = plain["knee_per_second"]
    if rate is not None and good:
        at, high = good[-1]
        axes.axvline(at, color=_INK, linewidth=1, alpha=0.5, zorder=1)
        axes.annotate(
            f"knee: {rate:,.0f} a second\np99 {high:,.0f} ms", (at, 0.99), xycoords=("data", "axes fraction"),
            xytext=(-6, 0), textcoords="offset points", ha="right", va="top", fontsize=9, color=_INK,
        )  # fmt: skip
    axes.set_xlabel("requests answered in a second", fontsize=9)
    axes.set_ylabel("p99, milliseconds from the intended time", fontsize=9)
    axes.set_title(f"Throughput against p99, open loop: {plain['target']['told']}", loc="left", fontsize=10)
    where = plain["machine"]
    if where:
        axes.annotate(
            f"{where['cpu']}, {where['cores']} cores, load average {where['load_average']} before, "
            f"commit {where['commit']}, {where['date']}",
            (1.0, -0.17), xycoords="axes fraction", ha="right", fontsize=7, color="#777",
        )  # fmt: skip
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eceef1")
    axes.set_axisbelow(True)
    if line:
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return save(figure, file)


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}" if math.isfinite(seconds) else "–"
