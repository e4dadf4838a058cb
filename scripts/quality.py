"""Measure docs/results.md's accuracy table cell by cell; write its tables and picture.

    python scripts/quality.py --data ../shared/data                    (a day on two cores; goes on where it stopped)
    python scripts/quality.py --data ../shared/data --only rte --only subj/p-tuning-v2
    python scripts/quality.py --write                                  (the page, from the cells that are there)

A cell is a data set and a run: one `promptmux train` or one comparison with default settings and three seeds, in a
process of its own. Dev chooses, test is reported. A finished cell is kept as JSON with commit, date, machine, command
and settings; an interrupted one goes on from its run folder. End it with Ctrl-C or SIGTERM: the cell's state is saved.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # neither the bench nor the scripts are installed packages

from loadtest.bench.machine import machine  # noqa: E402
from scripts import quality_page  # noqa: E402
from scripts.quality_data import SETS, SPLITS, prepare  # noqa: E402
from scripts.quality_rows import RUNS, Run  # noqa: E402

WORK = ROOT / "runs" / "results"  # run folders and cleaned data; not in the repository
KEPT = ROOT / "docs" / "results" / "quality"


@dataclass(frozen=True)
class Cell:
    """One run on one data set."""

    name: str
    run: Run

    @property
    def kept(self) -> Path:
        """Where its figures are kept."""
        return KEPT / f"{self.name}-{self.run.name}.json"

    @property
    def folder(self) -> Path:
        """Its run folder; of sets that learn together, its folder in theirs."""
        return self.whole / self.name if self.run.together else self.whole

    @property
    def whole(self) -> Path:
        """The folder that the command makes."""
        return WORK / (self.run.name if self.run.together else f"{self.name}-{self.run.name}")

    @property
    def interrupted(self) -> bool:
        """Whether there is a run to go on with by `--resume`; the other commands go on by being given again."""
        mark = "many.json" if self.run.together else "config.toml"
        return self.run.command[1] == "train" and (self.whole / mark).is_file()

    def command(self) -> list[str]:
        """What follows `python -m` for a new run, relative to the repository."""
        if self.run.together:
            return [*self.run.command, str(self.together_file().relative_to(ROOT))]
        files = [part for split in SPLITS for part in (f"--{split}", _data(self.name, split))]
        more = (*self.run.more.get(self.name, ()), "--task", self.name)
        return [*self.run.command, *files, *more, "--output", str(self.folder.relative_to(ROOT))]

    def together_file(self) -> Path:
        """The file that describes all sets' tasks; written anew."""
        lines = [f'output = "{self.run.name}"', self.run.together]
        for name in SETS:
            lines += ["[[task]]", f'task_id = "{name}"']
            lines += [f'data.{split} = "data/{name}/{split}.jsonl"' for split in SPLITS]
        file = WORK / f"{self.run.name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file


def _data(name: str, split: str) -> str:
    return str(WORK.relative_to(ROOT) / "data" / name / f"{split}.jsonl")


def cells(only: Sequence[str]) -> Iterator[Cell]:
    """All cells in the order of their worth, or those that `only` names: SET, RUN or SET/RUN."""
    runs = tuple(run.name for run in RUNS)
    for given in only:
        first, slash, second = given.partition("/")
        if not ((not slash and given in (*SETS, *runs)) or (first in SETS and second in runs)):
            raise SystemExit(
                f"quality: --only {given}: expected SET, RUN or SET/RUN; "
                f"sets: {', '.join(SETS)}; runs: {', '.join(runs)}"
            )
    for early in (True, False):  # what decides "recovered" comes first, on every set
        for name in SETS:
            for run in RUNS:
                wanted = not only or {name, run.name, f"{name}/{run.name}"} & set(only)
                if run.first is early and wanted:
                    yield Cell(name, run)


class Stop:
    """Ctrl-C and SIGTERM while a cell runs: the cell saves its state, and no further one is begun."""

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        # The terminal sends SIGINT to both; a second one would end the cell without saving.
        if self._child is not None and number == signal.SIGTERM:
            self._child.terminate()

    def run(self, command: Sequence[str]) -> int:
        """Run `python -m command` in the repository to its end; its exit code."""
        with subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT) as self._child:
            return self._child.wait()


def measure(cell: Cell, counts: dict[str, Any], stop: Stop) -> str | None:
    """Run a cell and keep its figures; None, or why there are none."""
    metrics, began, resumed = cell.folder / "metrics.json", machine(), cell.interrupted
    if not metrics.is_file():
        command = cell.command()
        if resumed:
            command = [*cell.run.command[:2], "--resume", str(cell.whole.relative_to(ROOT))]
        print("$ python -m", *command, flush=True)
        code = stop.run(command)
        if code != 0 or not metrics.is_file():
            return f"exit code {code}"
    keep(cell, {"machine": began, "command": cell.command(), "resumed": resumed}, counts[cell.name])
    return None


def keep(cell: Cell, how: dict[str, Any], counts: dict[str, Any]) -> None:
    """Write a finished run's figures, without what grows with the number of labels: that stays in the run folder."""
    figures = json.loads((cell.folder / "metrics.json").read_text(encoding="utf-8"))
    for scores in (*figures["seeds"], *(figures.get(part, {}) for part in ("head_only", "ensemble"))):
        scores.pop("curve", None)
        for split in scores.values():
            if isinstance(split, dict):
                split.pop("confusion", None)
                split.pop("per_label", None)
    config = cell.folder / "config.toml"
    if config.is_file():
        figures["settings"] = tomllib.loads(config.read_text(encoding="utf-8"))
        for part in ("output", "data", "labels"):  # places on one machine, and what the data says itself
            figures["settings"].pop(part, None)
        figures["settings"].get("prompt", {}).pop("init_from", None)  # init_version says which prompt it was
    figures = {"set": cell.name, "run": cell.run.name, **how, "cleaned_data": counts["sha256"], **figures}
    cell.kept.parent.mkdir(parents=True, exist_ok=True)
    cell.kept.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """Measure what is asked for, or write the page's section and its picture; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder of the data sets; needed where a cell is run")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SET, RUN or SET/RUN", help="only these cells"
    )
    parser.add_argument("--write", action="store_true", help="run nothing; write the page from what is there")
    options = parser.parse_args()
    if options.write:
        quality_page.write(KEPT)
        return 0
    if options.data is None:
        parser.error("--data is needed: the folder of the data sets (or --write, which runs nothing)")
    return 1 if measure_all([*cells(options.only)], options.data.resolve()) else 0


def measure_all(wanted: Sequence[Cell], data: Path) -> list[str]:
    """Run the cells that are not there yet, one after another; what did not get figures, and why, is printed too."""
    counts = prepare(data, WORK / "data")
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / "data.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    print(quality_page.removed(counts), flush=True)
    failed: list[str] = []
    stop = Stop()
    for cell in wanted:
        if cell.kept.is_file():
            continue
        why = measure(cell, counts, stop)
        if stop.asked:
            print("quality: stopped; the same command goes on", flush=True)
            break
        if why is not None:
            failed.append(f"{cell.name}/{cell.run.name}: {why}")
    for line in failed:
        print("quality: no figures for", line, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
