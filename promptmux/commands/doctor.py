"""`promptmux doctor`: what is wrong with the store and with this machine, and what to change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from prompt_store.finding import Finding
    from server import Settings

Sections = dict[str, "list[Finding]"]

_WIDE = 120  # columns, from which what to change stands beside what was found
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def run(
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="A prompt store: a folder, a file:// or a redis:// URL. Default: as `promptmux serve` finds it.",
            metavar="URL",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The server's TOML file, for its settings.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every version, and check its digest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check the store and this machine, and say what to change; ends with 1 when there is a problem.

    Changes nothing.
    """
    from prompt_store.checkup import examine
    from prompt_store.redis_url import without_secrets
    from promptmux.machine import examine_machine

    settings = _settings(config)
    url = store or settings.store
    sections: Sections = {
        "store": asyncio.run(examine(url, deep=deep)),
        "machine": examine_machine(settings.device, settings.dtype, settings.kernels),
    }
    problems, warnings = (_count(sections, verdict) for verdict in ("problem", "warning"))
    if as_json:
        body = {
            "store": without_secrets(url),
            "problems": problems,
            "warnings": warnings,
            "findings": [
                {"section": section, **asdict(one)} for section, found in sections.items() for one in found
            ],
        }
        print(json.dumps(body, indent=1, ensure_ascii=False))
    else:
        _show(without_secrets(url), sections)
    raise typer.Exit(1 if problems else 0)


def _settings(config: Path | None) -> Settings:
    from server import Settings, SettingsError

    try:
        return Settings.load([] if config is None else ["--config", str(config)])
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None


def _count(sections: Sections, verdict: str) -> int:
    return sum(one.verdict == verdict for found in sections.values() for one in found)


def _show(url: str, sections: Sections) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from promptmux.commands.output import console

    out = console()
    wide = out.width >= _WIDE
    for title, findings in zip(
        (f"store[/bold] {escape(url)}", "this machine[/bold]"), sections.values(), strict=True
    ):
        out.print(f"[bold]{title}", soft_wrap=True)
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("check", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        table.add_column("found", overflow="fold", ratio=2 if wide else None)
        if wide:
            table.add_column("what to change", overflow="fold", ratio=3)
        for one in findings:
            cells = [Text(one.found), Text(_lines(one.advice))]
            table.add_row(one.name, Text(one.verdict, style=_STYLES[one.verdict]), *cells[: 2 if wide else 1])
        out.print(table)
        out.print()
    findings = [one for found in sections.values() for one in found]
    if not wide:
        _advise(out, findings)
    _conclude(out, findings)


def _lines(advice: str) -> str:
    """A command begins a line of its own, to be copied from there."""
    return advice.replace(": redis-cli ", ":\nredis-cli ")


def _advise(out: Console, findings: Sequence[Finding]) -> None:
    """What to change, below the table: beside it there is no room on a narrow terminal."""
    from rich.padding import Padding
    from rich.text import Text

    alike: dict[tuple[str, str], list[str]] = {}
    for one in sorted(findings, key=lambda one: one.verdict == "problem"):  # what matters most stands last
        if one.advice:
            alike.setdefault((one.verdict, one.advice), []).append(one.name)
    for (verdict, advice), names in alike.items():
        out.print(Text(f"{', '.join(names)}: {verdict}", style=_STYLES[verdict]))
        out.print(Padding(Text(_lines(advice)), (0, 0, 0, 2)))
        out.print()


def _conclude(out: Console, findings: Sequence[Finding]) -> None:
    if any("CONFIG SET" in one.advice for one in findings):
        out.print(
            "CONFIG SET holds until Redis restarts. To keep it: redis-cli CONFIG REWRITE, or the same name and value as"
            " a line of redis.conf. Where Redis is not on this machine: redis-cli -u redis://…",
            style="dim",
        )
    for verdict in ("warning", "problem"):  # what matters most stands last, above the prompt
        names = [one.name for one in findings if one.verdict == verdict]
        if names:
            plural = "" if len(names) == 1 else "s"
            out.print(f"{len(names)} {verdict}{plural}: {', '.join(names)}", style=_STYLES[verdict])
    if all(one.verdict == "ok" for one in findings):
        out.print("nothing to change", style=_STYLES["ok"])
