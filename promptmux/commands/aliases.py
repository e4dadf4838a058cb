"""What an alias leads to, in a store or behind a running server, for the subcommands that move one.

Owns: reading an alias with its shares, and the words for what is missing. Must not know: what is to be moved where.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import typer

from client import TaskInfo
from prompt_store import TaskRecord

Shares = Sequence[tuple[str, int]]
"""Versions and their weights, the one that was added last at the end."""


@dataclass(frozen=True)
class Standing:
    """An alias as it stands; `versions` are all of the task, `revision` is what the next move must name."""

    versions: Sequence[str]
    shares: Shares
    revision: int


def standing(task: TaskInfo | TaskRecord, alias: str) -> Standing:
    """The alias, as a server or a store has it."""
    known = task.aliases.get(alias)
    if known is None:
        raise no_alias(task.task_id, alias)
    shares = [
        target if isinstance(target, tuple) else (target.version, target.weight) for target in known.targets
    ]
    return Standing([version.version for version in task.versions], shares, known.revision)


def no_alias(task: str, alias: str) -> typer.BadParameter:
    """The error for an alias that is not there."""
    return typer.BadParameter(f"{task} has no alias {alias}", param_hint="--alias")


def find(prefix: str, versions: Iterable[str], *, hint: str = "VERSION") -> str:
    """The version that begins with `prefix`."""
    matching = [version for version in versions if version.startswith(prefix)]
    if len(matching) != 1:
        found = "no version" if not matching else f"{len(matching)} versions"
        raise typer.BadParameter(f"{found} of this task begin with {prefix}", param_hint=hint)
    return matching[0]


def percent(weight: int, shares: Shares) -> str:
    """A share as a person reads it."""
    return f"{100 * weight / sum(weight for _, weight in shares):.3g} %"
