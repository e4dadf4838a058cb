"""`promptmux similar`: which tasks are alike, by the cosine of their prompts. Needs no backbone and no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptmux.commands.files import named_file, prompt_file
from promptmux.commands.options import Store

if TYPE_CHECKING:
    from prompt_store import Prompt, PromptStore


def run(
    prompts: Annotated[
        list[str], typer.Argument(help="Prompt files or run folders, or ids of tasks in --store.")
    ],
    store: Store = None,
    top: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 20,
) -> None:
    """Compare prompts; one alone is compared with every task of --store: which would it start from best?"""
    from rich.table import Table
    from rich.text import Text

    from promptmux.commands.output import console
    from trainer.similarity import Incomparable, nearest, similarity

    given, others, left_out = _gather(prompts, store)
    if len(given) > 1:
        try:
            found = nearest(given)
        except Incomparable as error:
            raise typer.BadParameter(str(error), param_hint="PROMPTS") from None
    else:
        (name, prompt), found = given[0], []
        for other_name, other in others:
            try:
                found.append((name, other_name, similarity(prompt, other)))
            except Incomparable:
                left_out += 1
        found.sort(key=lambda pair: -pair[2].mean)
    table = Table(box=None, header_style="bold")
    for column in ("prompt", "is like"):
        table.add_column(column, overflow="fold")
    for column in ("mean", "pairwise"):
        table.add_column(column, justify="right")
    for one, another, measures in found[:top]:
        table.add_row(Text(one), Text(another), f"{measures.mean:.3f}", f"{measures.pairwise:.3f}")
    console().print(table)
    if left_out:
        console().print(
            f"not compared: {left_out} (another backbone, another kind of prompt, or a damaged file)"
        )


_Named = list[tuple[str, "Prompt"]]


def _gather(names: Sequence[str], url: str | None) -> tuple[_Named, _Named, int]:
    """The prompts that were named; for one alone, all other tasks' in the store, and how many could not be read."""
    found = {name: prompt_file(Path(name)) if url is None else named_file(name) for name in names}
    files = {name: _file(str(path)) for name, path in found.items() if path.is_file()}
    if url is not None:
        return asyncio.run(_with_store(names, files, url))
    if missing := [name for name in names if name not in files]:
        raise typer.BadParameter(f"no file {missing[0]}; for a task, name its --store", param_hint="PROMPTS")
    if len(names) == 1:
        raise typer.BadParameter(
            "one prompt needs others to be compared with: name more, or a --store", param_hint="PROMPTS"
        )
    return [(name, files[name]) for name in names], [], 0


async def _with_store(
    names: Sequence[str], files: Mapping[str, Prompt], url: str
) -> tuple[_Named, _Named, int]:
    from promptmux.commands.stores import existing_store

    async with existing_store(url) as store:
        given = [(name, files[name] if name in files else await _task(store, name)) for name in names]
        others, damaged = await _currents(store, but=given[0][1]) if len(given) == 1 else ([], 0)
        return given, others, damaged


async def _currents(store: PromptStore, *, but: Prompt) -> tuple[_Named, int]:
    from prompt_store import PromptStoreError

    found: _Named = []
    damaged, after = 0, None
    while True:
        page = await store.list(after=after)
        damaged += len(page.unreadable)
        for record in page.tasks:
            if record.task_id == but.manifest.task_id or "current" not in record.aliases:
                continue
            try:
                found.append((record.task_id, await _task(store, record.task_id)))
            except PromptStoreError:
                damaged += 1
        if (after := page.next) is None:
            return found, damaged


async def _task(store: PromptStore, name: str) -> Prompt:
    from prompt_store import decode_prompt
    from promptmux.commands.stores import fetch

    return decode_prompt(await fetch(store, name))


def _file(name: str) -> Prompt:
    from prompt_store import InvalidPrompt, decode_prompt

    try:
        return decode_prompt(Path(name).read_bytes())
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}", param_hint="PROMPTS") from None
    except InvalidPrompt as error:
        raise typer.BadParameter(f"{name} is no prompt file: {error}", param_hint="PROMPTS") from None
