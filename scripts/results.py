"""Train what docs/results.md reports, and write its tables and picture.

    python scripts/results.py --data ../shared/data            (hours on two cores; goes on where it stopped)
    python scripts/results.py --data ../shared/data --write    (only the page, from the runs that are there)

Each run is one `promptmux train` with default settings and three seeds; dev chooses, test is reported. A data set's
folder holds train.jsonl, dev.jsonl and test.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "results"
KEPT = ROOT / "docs" / "results"  # each run's metrics.json, so that the page can be written without the runs
PAGE = ROOT / "docs" / "results.md"
SETS = ("rt-polarity", "trec6", "clinc150")
METHODS = ("p-tuning-v2", "prompt-tuning")
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"


def command(data: Path, name: str, method: str) -> list[str]:
    """The training's command line."""
    files = [
        part
        for split in ("train", "dev", "test")
        for part in (f"--{split}", str(data / name / f"{split}.jsonl"))
    ]
    output = RUNS / f"{name}-{method}"
    return [
        "promptmux",
        "train",
        "--task",
        name,
        "--method",
        method,
        *files,
        "--output",
        str(output.relative_to(ROOT)),
    ]


def kept(name: str, method: str) -> Path:
    """Where a run's figures are kept."""
    return KEPT / f"accuracy-{name}-{method}.json"


def train(data: Path) -> None:
    """Run what is missing; an interrupted run is resumed."""
    for name in SETS:
        if not (data / name).is_dir():
            sys.exit(f"results: no folder {data / name}; give the folder of the data sets with --data")
        for method in METHODS:
            folder = RUNS / f"{name}-{method}"
            if kept(name, method).is_file():
                continue
            line = command(data, name, method)
            if (folder / "config.toml").is_file():
                line = ["promptmux", "train", "--resume", str(folder.relative_to(ROOT))]
            print("$", " ".join(line), flush=True)
            subprocess.run([sys.executable, "-m", *line], cwd=ROOT, check=True)
            shutil.copy(folder / "metrics.json", kept(name, method))


def measured() -> dict[str, dict[str, dict[str, Any]]]:
    """Data set → row → accuracy and macro-F1, of all finished runs."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in SETS:
        for method in METHODS:
            file = kept(name, method)
            if file.is_file():
                metrics = json.loads(file.read_text())
                for row, scores in metrics["summary"].items():
                    found.setdefault(name, {})[row] = {**scores, "seeds": len(metrics["seeds"])}
    return found


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A Markdown table of test accuracy and macro-F1."""
    lines = ["| data set | row | accuracy % | macro-F1 % | seeds |", "|---|---|---:|---:|---:|"]
    for name, rows in found.items():
        for row, scores in rows.items():
            seeded = row in METHODS

            def show(score: dict[str, float], seeded: bool = seeded) -> str:
                spread = f" ± {100 * score['spread']:.1f}" if seeded else ""
                return f"{100 * score['mean']:.1f}{spread}"

            count = str(scores["seeds"]) if seeded else "–"
            lines.append(
                f"| {name} | {row} | {show(scores['accuracy'])} | {show(scores['macro_f1'])} | {count} |"
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
    }
    figure, axes = pyplot.subplots(figsize=(7.5, 3.6), layout="constrained")
    width = 0.2
    for nth, (row, colour) in enumerate(colours.items()):
        places, heights, spreads = [], [], []
        for at, rows in enumerate(found.values()):
            if row in rows:
                places.append(at + (nth - 1.5) * width)
                heights.append(100 * rows[row]["accuracy"]["mean"])
                spreads.append(100 * rows[row]["accuracy"]["spread"])
        bars = axes.bar(places, heights, width, yerr=spreads, color=colour, label=row, capsize=2)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 108)
    axes.set_title("One frozen minilm: what prompts add to a linear head", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
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
