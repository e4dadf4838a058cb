"""`promptmux export-peft`: write a prompt file as a folder that PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptmux.commands.files import prompt_file


def run(
    file: Annotated[Path, typer.Argument(help="A prompt file, or a run folder.", metavar="PROMPT_FILE")],
    folder: Annotated[Path, typer.Argument(help="The folder to write; new or empty.", metavar="DIR")],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="The base model: minilm, a folder or a Hugging Face id.",
            show_default="as the prompt names it",
        ),
    ] = None,
) -> None:
    """Write a folder that PEFT loads and that gives the prompt's logits."""
    from prompt_store import InvalidPrompt, decode_prompt
    from trainer.peft_export import export_peft

    try:
        data = prompt_file(file).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="PROMPT_FILE") from None
    try:
        decode_prompt(data)
    except InvalidPrompt as error:
        raise typer.BadParameter(
            f"{file} is no prompt file: {error}; a folder of PEFT's is read by promptmux import-peft",
            param_hint="PROMPT_FILE",
        ) from None
    done = export_peft(data, folder, backbone=backbone)
    if done.reason:
        print(f"note: {done.reason}: PEFT gives the states, and README.md has the lines that score them")
    print(f"wrote {done.folder} ({done.task_type}); {done.folder / 'README.md'} shows how to load it")
