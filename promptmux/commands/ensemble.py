"""`promptmux ensemble`: several prompt files of one task joined into one, whose members answer together."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands.files import prompt_file


def run(
    files: Annotated[
        list[Path], typer.Argument(help="Prompt files (*.safetensors) or run folders of one task.")
    ],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Join prompt files that agree in all but what was learned; their answer is the mean of their probabilities."""
    from prompt_store import join_prompts, version_of

    parts = []
    for file in files:
        try:
            parts.append((str(file), prompt_file(file).read_bytes()))
        except OSError as error:
            raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="FILES") from None
    if output.exists() and not force:
        raise typer.BadParameter(
            f"{output} is there already: name another, or --force", param_hint="--output"
        )
    data = join_prompts(parts)
    try:
        output.write_bytes(data)
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from None
    print(f"{output}: version {version_of(data)}")
    print(f"publish it: promptmux publish {shlex.quote(str(output))}")
