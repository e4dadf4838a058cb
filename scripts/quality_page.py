"""Owns what is shown of the quality table's cells: docs/results.md's section and its picture. Runs nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scripts.quality_data import SETS
from scripts.quality_rows import FULL, HEAD, MAJORITY, ROWS, RUNS, SEEDED, TRAINED
from trainer.methods import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "images" / "accuracy.png"
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
# Below this distance from the linear head to full fine-tuning, a share of it says nothing.
LEAST_DISTANCE = 0.02
# A cell whose own head-only figure is further than this from the row's is told: its share would be another.
OTHER_HEAD = 0.003
COLOURS = (
    "#c9ccd1", "#8a8f98", "#b9a3d0", "#d08a2e", "#2f6fb2", "#1a1c1f", "#5aa469", "#b2453f", "#7fb2d9", "#8c6d31",
    "#c977a8", "#3d7f86", "#e0b13c", "#6b5b95",
)  # fmt: skip

Scores = dict[str, Any]
Found = Mapping[str, Mapping[str, Scores]]


def measured(kept: Path) -> dict[str, dict[str, Scores]]:
    """Data set → row → accuracy, macro-F1, accuracy on dev, seeds and minutes, of all finished cells below `kept`.

    Raises SystemExit where a cell was measured on other data than data.json tells of.
    """
    found: dict[str, dict[str, Scores]] = {name: {} for name in SETS}
    file = kept / "data.json"
    counts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in SETS:
        for run in RUNS:
            file = kept / f"{name}-{run.name}.json"
            if not file.is_file():
                continue
            cell = json.loads(file.read_text(encoding="utf-8"))
            if cell["cleaned_data"] != counts.get(name, {}).get("sha256"):
                raise SystemExit(
                    f"quality: {file} was measured on other data; delete it and measure it again"
                )
            own_head = cell.get("head_only", {}).get("test", {}).get("accuracy")
            for row, theirs in run.rows.items():
                seeded = row in SEEDED
                minutes = (
                    cell["seconds"] / 60 / len(cell["seeds"]) if seeded and not cell["resumed"] else None
                )
                seeds = len(cell["seeds"]) if seeded else None
                found[name][row] = {
                    **cell["summary"][theirs], "dev": _on_dev(cell, theirs), "seeds": seeds, "minutes": minutes,
                    "own_head": own_head, "earlier": earlier_defaults(cell),
                }  # fmt: skip
    return found


def earlier_defaults(cell: Mapping[str, Any]) -> dict[str, float]:
    """The optimiser's settings of a cell that were the method's defaults when it was measured and are no longer."""
    if cell.get("method") not in DEFAULTS:
        return {}
    defaults, given = DEFAULTS[cell["method"]], cell["settings"]["optimiser"]
    today = {
        "batch_size": defaults.batch_size,
        "prompt_lr": defaults.networks[cell["settings"]["prompt"]["reparameterisation"]],
        "head_lr": defaults.head_lr,
        "averaging": defaults.averaging,
        "word_dropout": defaults.word_dropout,
    }
    return {f"optimiser.{name}": given[name] for name, value in today.items() if given[name] != value}


def _on_dev(cell: Mapping[str, Any], theirs: str) -> dict[str, float] | None:
    """A row's accuracy on the set that chose; None where none was kept."""
    if theirs == HEAD:
        of = [cell["head_only"]]
    elif theirs == MAJORITY:
        return None
    else:
        of = [cell["ensemble"]] if theirs.startswith("ensemble") else cell["seeds"]
    shares = [one["dev"]["accuracy"] for one in of]
    return {"mean": mean(shares), "spread": stdev(shares) if shares[1:] else 0.0}


def recovered(rows: Mapping[str, Scores], row: str) -> float | None:
    """Which share of the way from the linear head to full fine-tuning a row goes; None where there is no such way."""
    if not {HEAD, FULL, row} <= set(rows) or row not in TRAINED or row == FULL:
        return None
    low, here, high = (rows[name]["accuracy"]["mean"] for name in (HEAD, row, FULL))
    return float((here - low) / (high - low)) if high - low > LEAST_DISTANCE else None


def shown(found: Found) -> list[str]:
    """The rows that at least one set has, in their order."""
    return [row for row in ROWS if any(row in rows for rows in found.values())]


def left_out(found: Found) -> str:
    """A sentence that names the rows that no set has, and what measures them; nothing where there are none."""
    there = shown(found)
    missing = {row: run.name for run in RUNS for row in run.rows if row not in there}
    told = ", ".join(f"{row} (`--only {run}`)" for row, run in missing.items())
    return f"Not run on any set: {told}." if missing else ""


def table(found: Found) -> str:
    """A Markdown table of every set and row that there is; what is missing on a set says so."""
    lines = [
        "| data set | row | test accuracy % | macro-F1 % | dev accuracy % | recovered % | minutes a seed | seeds |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in SETS:
        for row in shown(found):
            scores = found[name].get(row)
            if scores is None:
                lines.append(f"| {name} | {row} | not run | | | | | |")
                continue
            share, minutes = recovered(found[name], row), scores["minutes"]
            cells = (
                name, row, _percent(scores, "accuracy"), _percent(scores, "macro_f1"),
                _percent(scores, "dev") if scores["dev"] else "–",
                "–" if share is None else f"{100 * share:.0f}",
                f"{minutes:.1f}" if minutes else "–",
                str(scores["seeds"] or "–"),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(scores: Scores, measure: str) -> str:
    spread = f" ± {100 * scores[measure]['spread']:.1f}" if scores["seeds"] else ""
    return f"{100 * scores[measure]['mean']:.1f}{spread}"


def verdict(found: Found, row: str = "p-tuning-v2") -> str:
    """One sentence a set: how far P-Tuning v2 gets of what full fine-tuning gains."""
    lines = []
    for name in SETS:
        rows = found[name]
        if not {HEAD, FULL, row} <= set(rows):
            continue
        gain = 100 * (rows[FULL]["accuracy"]["mean"] - rows[HEAD]["accuracy"]["mean"])
        share = recovered(rows, row)
        way = f"{name}: from head only to full fine-tuning are {gain:+.1f} points"
        told = f"P-Tuning v2 recovers {100 * share:.0f} %" if share is not None else "too few for a share"
        lines.append(f"- {way}; {told}")
        head = rows[HEAD]["accuracy"]["mean"]
        others = {
            other: scores["own_head"]
            for other, scores in rows.items()
            if scores["own_head"] is not None and abs(scores["own_head"] - head) > OTHER_HEAD
        }
        if others:
            listed = ", ".join(f"{other} {100 * value:.1f}" for other, value in others.items())
            than = f"of another day or machine than the row's {100 * head:.1f}"
            lines.append(f"- {name}: {than} is the linear head of these: {listed}")
    return "\n".join(lines)


def outdated(found: Found) -> str:
    """What was measured before a default changed: one line for each setting, and none where nothing was."""
    groups: dict[str, dict[str, list[str]]] = {}
    for row in shown(found):
        for name in SETS:
            for setting, value in found[name].get(row, {}).get("earlier", {}).items():
                groups.setdefault(f"`{setting}={value}`", {}).setdefault(row, []).append(name)
    return "\n".join(
        f"- still with {setting}, the default when they were measured: "
        + "; ".join(
            f"{row} ({'all sets' if names == list(SETS) else ', '.join(names)})"
            for row, names in rows.items()
        )
        for setting, rows in groups.items()
    )


def removed(counts: Mapping[str, Any]) -> str:
    """A Markdown table of the training texts that were left out, and where else they stand."""
    lines = [
        "| data set | train | left out | because they are also in | dev | test |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for name, numbers in counts.items():
        places = ", ".join(f"{place} {count:,}" for place, count in numbers["also in"].items()) or "–"
        lines.append(
            f"| {name} | {numbers['train']:,} | {numbers['train'] - numbers['kept']:,} | {places} "
            f"| {numbers['dev']:,} | {numbers['test']:,} |"
        )
    return "\n".join(lines)


def draw(found: Found, file: Path) -> None:
    """Accuracy of every row as points with error bars, one panel a data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = shown(found)
    figure = Figure(figsize=(11, 0.6 + 0.3 * len(names)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(SETS), sharey=True)
    for axes, name in zip(panels, SETS, strict=True):
        # Majority, and a zero-shot near it, would squeeze all others together.
        least = min(
            (found[name][row]["accuracy"]["mean"] for row in TRAINED if row in found[name]), default=0
        )
        least = min(least, found[name].get(HEAD, {}).get("accuracy", {}).get("mean", 1))
        most = max((scores["accuracy"]["mean"] for scores in found[name].values()), default=1)
        left = 100 * least - 6
        for at, row in enumerate(names):
            scores = found[name].get(row)
            if scores is None:
                axes.text(left + 0.3, at, "not run", va="center", fontsize=7, color="0.6")
                continue
            mean, spread = (100 * scores["accuracy"][part] for part in ("mean", "spread"))
            if mean < left:
                axes.text(left + 0.3, at, f"◂ {mean:.1f}", va="center", fontsize=8, color="0.35")
                continue
            axes.errorbar(
                mean,
                at,
                xerr=spread or None,
                fmt="o",
                color=COLOURS[ROWS.index(row)],
                capsize=3,
                markersize=5,
            )
            axes.text(mean, at - 0.32, f"{mean:.1f}", ha="center", va="center", fontsize=7, color="0.25")
        axes.set_title(name, fontsize=10)
        axes.set_xlim(left, 100 * most + 3)
        axes.grid(visible=True, axis="x", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.7)
    figure.suptitle("One minilm: test accuracy, %, mean ± spread over seeds", x=0.01, ha="left", fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})


def write(kept: Path) -> None:
    """Replace the page's section and the picture."""
    found = measured(kept)
    if not any(found.values()):
        sys.exit("quality: no finished cells; run without --write first")
    counts = json.loads((kept / "data.json").read_text(encoding="utf-8"))
    draw(found, PICTURE)
    told = "\n".join(part for part in (verdict(found), outdated(found)) if part)
    parts = (removed(counts), told, table(found), left_out(found))
    section = "\n\n".join(part for part in parts if part)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(table(found))
