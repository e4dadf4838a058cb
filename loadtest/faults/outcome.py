"""What an experiment found, and keeping it.

Owns: the form of a result, its JSON file and its table. Must not know: any experiment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.bench.machine import machine


@dataclass(frozen=True)
class Outcome:
    """One experiment's result: `rows` are its table, `facts` everything else that a reader needs to repeat it."""

    name: str
    passed: bool
    wanted: str  # in words: what `passed` means
    seed: int
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)


def keep(outcome: Outcome, folder: Path, *, command: str, seconds: float) -> Path:
    """Write the outcome as JSON into `folder`, with the command and the machine; the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.name}.json"
    body = {
        **asdict(outcome),
        "command": command,
        "seconds": round(seconds, 1),
        "machine": machine(),
    }
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def show(outcome: Outcome, console: Console) -> None:
    """Print the outcome's table and its verdict."""
    verdict = "passed" if outcome.passed else "FAILED"
    table = Table(title=f"{outcome.name}: {verdict} (seed {outcome.seed})", title_justify="left")
    columns = list(dict.fromkeys(name for row in outcome.rows for name in row))
    for name in columns:
        numeric = all(isinstance(row.get(name, 0), int | float) for row in outcome.rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in outcome.rows:
        table.add_row(*(_shown(row.get(name, "")) for name in columns))
    console.print(table)
    console.print(f"wanted: {outcome.wanted}", highlight=False)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
