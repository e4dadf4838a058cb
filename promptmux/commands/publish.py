"""`promptmux publish`: bring prompt files to a store or to a running server, and move an alias to each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands.files import prompt_file
from promptmux.commands.options import (
    DEFAULT_ADMIN,
    PUBLISH_TIMEOUT,
    AdminKey,
    AdminServer,
    Force,
    Store,
    Timeout,
)
from promptmux.commands.output import tell_durability
from promptmux.commands.training_options import not_published


def run(
    files: Annotated[list[Path], typer.Argument(help="Prompt files (*.safetensors), or run folders.")],
    store: Store = None,
    server: AdminServer = DEFAULT_ADMIN,
    alias: Annotated[
        str, typer.Option(help="The alias that then leads to it; an empty one moves none.")
    ] = "current",
    key: AdminKey = None,
    timeout: Timeout = PUBLISH_TIMEOUT,
    force: Force = False,
) -> None:
    """Publish prompt files; a running server serves them at once."""
    from trainer import NotAllPublishedError, TrainerError, publish

    missing = 0
    for file in map(prompt_file, files):
        try:
            done = publish(file, store or server, alias=alias or None, key=key, timeout=timeout, force=force)
        except TrainerError as error:
            if len(files) == 1:
                raise
            missing += 1  # nothing is wrong with the next
            print(not_published(file, error), file=sys.stderr)
            continue
        news = "published" if done.created else "already there:"
        leads = f", alias {done.alias}" if done.alias else ""
        print(f"{news} {done.task_id} {done.version}{leads} in {done.target}")
        if done.note:
            print(f"note: {done.note}")
        tell_durability(done.durable)
    if missing:
        raise NotAllPublishedError(f"{missing} of {len(files)} prompts were not published: see above")
