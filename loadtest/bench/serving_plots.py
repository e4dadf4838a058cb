"""Pictures of the sections over HTTP. Owns how they look; what is drawn comes as plain figures in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.bench.plots import pyplot, save

_CURVES = ("#2f6fb2", "#8c4a5a", "#8a8f98", "#d08a2e")  # ours first
PARTS = {"queue": "#8a8f98", "tokenise": "#d08a2e", "forward": "#2f6fb2", "rest": "#c9ced6"}
Curve = Sequence[tuple[float, float, float]]  # answered in a second, p50, p99


def throughput_against_p99(curves: Mapping[str, Curve], file: Path) -> Path:
    """Latency against throughput in an open loop, one colour a server: p99 as a line, p50 as a thin dashed one."""
    plt = pyplot()
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
    for (name, curve), colour in zip(curves.items(), _CURVES, strict=False):
        # A percentile that was never answered has no place on the axis: the line ends before it.
        shown = [point for point in curve if math.isfinite(point[2])]
        if not shown:
            continue
        rates = [rate for rate, _, _ in shown]
        p99 = [high * 1000 for _, _, high in shown]
        axes.plot(rates, [low * 1000 for _, low, _ in shown], color=colour, linewidth=1, linestyle="--")
        axes.plot(rates, p99, color=colour, linewidth=2, marker="o", markersize=5, label=name)
    axes.plot([], [], color="#777", linewidth=2, label="p99")
    axes.plot([], [], color="#777", linewidth=1, linestyle="--", label="p50")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.set_xlim(left=0)
    axes.set_xlabel("requests answered in a second", fontsize=9)
    axes.set_ylabel("milliseconds from the intended send time", fontsize=9)
    axes.set_title("Throughput against latency, open loop", loc="left", fontsize=11)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eceef1")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return save(figure, file)


def where_time_goes(bars: Mapping[str, Mapping[str, float]], file: Path) -> Path:
    """Stacked bars: each load's mean request, cut into the parts of `PARTS`."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8.6, 0.52 * len(bars) + 1.5), layout="constrained")
    names = list(bars)
    longest = max(sum(parts.values()) for parts in bars.values()) * 1000
    left = [0.0] * len(names)
    for part, colour in PARTS.items():
        widths = [bars[name][part] * 1000 for name in names]
        made = axes.barh(names, widths, left=left, color=colour, height=0.66, label=part)
        inside = [f"{width:.1f}" if width > longest * 0.05 else "" for width in widths]
        dark = part in ("forward", "queue")
        axes.bar_label(made, inside, label_type="center", fontsize=8, color="white" if dark else "#333")
        left = [at + width for at, width in zip(left, widths, strict=True)]
    for name, total in zip(names, left, strict=True):
        axes.annotate(
            f"{total:.1f} ms",
            (total, name),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.12)
    axes.set_xlabel("milliseconds, mean over requests", fontsize=9)
    axes.set_title("Where a request's time goes", loc="left", fontsize=11, pad=22)
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        frameon=False, fontsize=8, ncols=len(PARTS), loc="lower left", bbox_to_anchor=(-0.01, 1.0),
        borderaxespad=0, handlelength=1.2,
    )  # fmt: skip
    return save(figure, file)
