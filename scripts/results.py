"""Train what docs/results.md reports, and write its tables and picture.

    python scripts/results.py --data ../shared/data            (hours on two cores; goes on where it stopped)
    python scripts/results.py --data ../shared/data --write    (only the page, from the runs that are there)

Each run is one `promptmux train` with default settings and three seeds, or `python -m trainer.reference`, which trains
every weight; dev chooses, test is reported. A data set's folder holds train.jsonl, dev.jsonl and test.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the bench is no installed package

from loadtest.bench.machine import machine  # noqa: E402

RUNS = ROOT / "runs" / "results"
KEPT = ROOT / "docs" / "results"  # each run's metrics.json, so that the page can be written without the runs
PAGE = ROOT / "docs" / "results.md"
SETS = ("rt-polarity", "trec6", "clinc150")
METHODS = ("p-tuning-v2", "prompt-tuning")
FULL = "full fine-tuning"
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"


def files_of(data: Path, name: str) -> list[str]:
    """The flags that name a data set's files."""
    return [
        part
        for split in ("train", "dev", "test")
        for part in (f"--{split}", str(data / name / f"{split}.jsonl"))
    ]


def kept(name: str, row: str) -> Path:
    """Where a run's figures are kept."""
    return KEPT / f"accuracy-{name}-{row.replace(' ', '-')}.json"


def train(data: Path) -> None:
    """Run what is missing; an interrupted run is resumed."""
    missing = [str(data / name) for name in SETS if not (data / name).is_dir()]
    if missing:
        sys.exit(f"results: no folder {missing[0]}; give the folder of the data sets with --data")
    # Prompts first: training all weights takes longest.
    for methods in (METHODS, (FULL,)):
        for name, method in itertools.product(SETS, methods):
            if kept(name, method).is_file():
                continue
            folder = RUNS / f"{name}-{method.replace(' ', '-')}"
            metrics = folder / "metrics.json"
            line = ["promptmux", "train", "--task", name, "--method", method, *files_of(data, name)]
            line += ["--output", str(folder.relative_to(ROOT))]
            if method == FULL:
                folder.mkdir(parents=True, exist_ok=True)
                line = [
                    "trainer.reference",
                    *files_of(data, name),
                    "--output",
                    str(metrics.relative_to(ROOT)),
                ]
            elif (folder / "config.toml").is_file():
                line = ["promptmux", "train", "--resume", str(folder.relative_to(ROOT))]
            print("$ python -m", " ".join(line), flush=True)
            subprocess.run([sys.executable, "-m", *line], cwd=ROOT, check=True)
            figures = json.loads(metrics.read_text(encoding="utf-8"))
            write(kept(name, method), {"machine": machine(), "resumed": "--resume" in line, **figures})


def write(file: Path, figures: dict[str, Any]) -> None:
    """One run's figures, with where and with which code they were made; without confusion matrices, which grow with
    the square of the labels and stay in the run folder.
    """
    for scores in (*figures["seeds"], figures.get("head_only", {})):
        for split in scores.values():
            if isinstance(split, dict):
                split.pop("confusion", None)
    file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def measured() -> dict[str, dict[str, dict[str, Any]]]:
    """Data set → row → accuracy and macro-F1, of all finished runs."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in SETS:
        for method in (*METHODS, FULL):
            file = kept(name, method)
            if file.is_file():
                metrics = json.loads(file.read_text())
                for row, scores in metrics["summary"].items():
                    seeded = {"seeds": len(metrics["seeds"]), "minutes": None}
                    if row == method and not metrics.get("resumed", True):
                        seeded["minutes"] = metrics["seconds"] / 60 / len(metrics["seeds"])
                    found.setdefault(name, {})[row] = {**scores, **seeded}
    return found


def recovered(rows: dict[str, dict[str, Any]], row: str) -> str:
    """Which part of the way from the linear head to full fine-tuning a row goes, in percent."""
    if row not in METHODS or FULL not in rows:
        return "–"
    low, here, high = (rows[name]["accuracy"]["mean"] for name in ("head only", row, FULL))
    return f"{100 * (here - low) / (high - low):.0f}" if high > low else "–"


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A Markdown table of test accuracy and macro-F1."""
    lines = [
        "| data set | row | accuracy % | macro-F1 % | recovered % | minutes a seed | seeds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, rows in found.items():
        for row, scores in rows.items():
            seeded = row in (*METHODS, FULL)

            def show(score: dict[str, float], seeded: bool = seeded) -> str:
                spread = f" ± {100 * score['spread']:.1f}" if seeded else ""
                return f"{100 * score['mean']:.1f}{spread}"

            minutes = f"{scores['minutes']:.1f}" if scores["minutes"] else "–"
            lines.append(
                f"| {name} | {row} | {show(scores['accuracy'])} | {show(scores['macro_f1'])} "
                f"| {recovered(rows, row)} | {minutes} | {scores['seeds'] if seeded else '–'} |"
            )
    return "\n".join(lines)


def draw(found: dict[str, dict[str, dict[str, Any]]], file: Path) -> None:
    """Accuracy of every row, grouped by data set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = {
        "majority": "#c9ccd1",
        "head only": "#8a8f98",
        "prompt-tuning": "#d08a2e",
        "p-tuning-v2": "#2f6fb2",
        FULL: "#4c4f55",
    }
    figure, axes = pyplot.subplots(figsize=(8.5, 3.8), layout="constrained")
    width = 0.17
    for nth, (row, colour) in enumerate(colours.items()):
        places, heights, spreads = [], [], []
        for at, rows in enumerate(found.values()):
            if row in rows:
                places.append(at + (nth - 2) * width)
                heights.append(100 * rows[row]["accuracy"]["mean"])
                spreads.append(100 * rows[row]["accuracy"]["spread"])
        if not places:
            continue
        bars = axes.bar(places, heights, width, yerr=spreads, color=colour, label=row, capsize=2)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 108)
    axes.set_title("One frozen minilm: what prompts add to a linear head", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Train if asked to, then write the page's section and its picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument(
        "--write", action="store_true", help="train nothing; write the page from what is there"
    )
    options = parser.parse_args()
    if not options.write:
        train(options.data.resolve())
    found = measured()
    if not found:
        sys.exit("results: no finished runs; run without --write first")
    draw(found, PAGE.parent / "images" / "accuracy.png")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
