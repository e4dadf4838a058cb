"""`promptmux publish`: bring prompt files to a store or to a running server, and move an alias to each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands.options import (
    DEFAULT_ADMIN,
    PUBLISH_TIMEOUT,
    AdminKey,
    AdminServer,
    Store,
    Timeout,
)
from promptmux.commands.output import tell_durability


def run(
    files: Annotated[list[Path], typer.Argument(help="Prompt files (*.safetensors).")],
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    alias: Annotated[
        str, typer.Option(help="The alias that then leads to it; an empty one moves none.")
    ] = "current",
    key: AdminKey = None,
    timeout: Timeout = PUBLISH_TIMEOUT,
) -> None:
    """Publish prompt files; a running server serves them at once."""
    from trainer import publish

    for file in files:
        done = publish(file, store or server, alias=alias or None, key=key, timeout=timeout)
        news = "published" if done.created else "already there:"
        leads = f", alias {done.alias}" if done.alias else ""
        print(f"{news} {done.task_id} {done.version}{leads} in {done.target}")
        tell_durability(done.durable)
