"""What a section of the bench found, and how it is shown: on the console, as JSON, as Markdown.

Owns the plain data between measuring and showing. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Ratio:
    """A figure with what it should reach; `at_most` turns the direction around.

    `value` is None where it could not be measured, and `note` then says why.
    """

    name: str
    value: float | None
    least: float | None
    aim: float | None
    at_most: bool = False
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """How the value stands to its targets."""
        if self.value is None:
            return "not measured"
        if self.aim is not None and self._reaches(self.value, self.aim):
            return "aim"
        if self.least is not None:
            return "met" if self._reaches(self.value, self.least) else "missed"
        return "" if self.aim is None else "short of the aim"

    def cells(self) -> tuple[str, ...]:
        """Name, value, least, aim, verdict and note as text."""
        sign = "≤ " if self.at_most else "≥ "
        least, aim = (
            "–" if wanted is None else f"{sign}{wanted:g}{self._unit}" for wanted in (self.least, self.aim)
        )
        value = "–" if self.value is None else self._show(self.value)
        return self.name, value, least, aim, self.verdict, self.note

    def _reaches(self, value: float, wanted: float) -> bool:
        return value <= wanted if self.at_most else value >= wanted

    def _show(self, value: float) -> str:
        digits = 3 if abs(value) < 10 else 1 if abs(value) < 100 else 0
        return f"{value:,.{digits}f}" + self._unit

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


@dataclass(frozen=True)
class Table:
    """A table as text: the first column says what a row is, the others are figures unless named in `prose`."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    prose: tuple[str, ...] = ()

    def left(self, column: str) -> bool:
        """Whether a column is read as words."""
        return column == self.columns[0] or column in self.prose


@dataclass(frozen=True)
class Section:
    """What one section found. `raw` is every figure as measured; `plots` are files it drew."""

    name: str
    tables: Sequence[Table] = ()
    ratios: Sequence[Ratio] = ()
    raw: dict[str, Any] = field(default_factory=dict)
    plots: Sequence[Path] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # of peers, beside the machine's own
    error: str = ""  # why there is nothing else


_COLOURS = {
    "aim": "green",
    "met": "green",
    "missed": "red",
    "not measured": "yellow",
    "short of the aim": "yellow",
}
_RATIO_COLUMNS = ("ratio", "measured", "at least", "aim", "", "note")


def show(section: Section, console: Console) -> None:
    """Print a section."""
    console.rule(f"[bold]{section.name}", align="left")
    if section.error:
        console.print(Text(f"not measured: {section.error}", style="bold red"))
    for table in section.tables:
        console.print(_rich(table.title, table.columns, table.rows, table))
        if table.note:
            console.print(Text(table.note, style="dim"))
        console.print()
    if section.ratios:
        shown = RichTable(box=None, header_style="bold", title="targets", title_justify="left")
        for nth, column in enumerate(_RATIO_COLUMNS):
            shown.add_column(column, justify="right" if 0 < nth < 4 else "left")
        for ratio in section.ratios:
            *cells, verdict, note = (Text(cell) for cell in ratio.cells())
            verdict.stylize(_COLOURS.get(ratio.verdict, ""))
            shown.add_row(*cells, verdict, note)
        console.print(shown)
        console.print()


def write(
    folder: Path, name: str, sections: Sequence[Section], machine: dict[str, Any], options: dict[str, Any]
) -> tuple[Path, Path]:
    """Write `<name>.json` and `<name>.md` and return both."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = {**machine, "versions": machine.get("versions", {}) | _versions(sections)}
    whole = {"machine": machine, "options": options, "sections": {s.name: _plain(s) for s in sections}}
    as_json, as_markdown = folder / f"{name}.json", folder / f"{name}.md"
    as_json.write_text(json.dumps(whole, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    as_markdown.write_text(markdown(sections, machine), encoding="utf-8")
    return as_json, as_markdown


def markdown(sections: Sequence[Section], machine: dict[str, Any]) -> str:
    """The whole run as one page."""
    versions = ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items())
    plain = ", ".join(f"{k}: {v}" for k, v in machine.items() if k != "versions")
    parts = ["# Bench", f"{plain}.", f"Versions: {versions}."]
    for section in sections:
        parts.append(f"## {section.name}")
        if section.error:
            parts.append(f"**Not measured:** {section.error}")
        for table in section.tables:
            parts.append(f"**{table.title}**")
            aligned = ["---" if table.left(column) else "---:" for column in table.columns]
            parts.append(_markdown_table(table.columns, aligned, table.rows))
            if table.note:
                parts.append(table.note)
        if section.ratios:
            aligned = ["---", "---:", "---:", "---:", "---", "---"]
            parts.append(_markdown_table(_RATIO_COLUMNS, aligned, [r.cells() for r in section.ratios]))
        parts += [f"![{plot.stem}]({plot.name})" for plot in section.plots]
    return "\n\n".join(parts) + "\n"


def _versions(sections: Sequence[Section]) -> dict[str, str]:
    return {name: version for section in sections for name, version in section.versions.items()}


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], table: Table) -> RichTable:
    shown = RichTable(box=None, header_style="bold", title=title, title_justify="left")
    for column in columns:
        shown.add_column(column, justify="left" if table.left(column) else "right")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _markdown_table(columns: Sequence[str], aligned: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, aligned, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(section: Section) -> dict[str, Any]:
    return {
        "error": section.error,
        "ratios": [{**asdict(ratio), "verdict": ratio.verdict} for ratio in section.ratios],
        "tables": [asdict(table) for table in section.tables],
        "plots": [plot.name for plot in section.plots],
        "raw": section.raw,
    }
