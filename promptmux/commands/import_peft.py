"""`promptmux import-peft`: make a prompt file of a folder that PEFT wrote, and publish it if asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from promptmux.commands.options import PUBLISH_TIMEOUT, AdminKey, Timeout
from promptmux.commands.output import tell_durability


def run(
    folder: Annotated[Path, typer.Argument(help="What PEFT's save_pretrained wrote.", metavar="DIR")],
    task: Annotated[str | None, typer.Option(help="The task's id.", show_default="the folder's name")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="The base model: a folder or a Hugging Face id.", show_default="as the adapter names it"
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The labels, separated by commas, in the order of training.",
            metavar="A,B,C",
            show_default="the base model's id2label",
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="A language model's adapter needs it: the words that mean a label. Once for each label.",
            metavar="LABEL=WORD,WORD",
        ),
    ] = None,
    aggregate: Annotated[
        Literal["mean", "max"],
        typer.Option(help="Of the scores of a label's words: the mean, or the highest."),
    ] = "mean",
    template: Annotated[
        str | None,
        typer.Option(
            help="What was written around the text, without virtual tokens.",
            show_default="{text}{text_pair}, of a language model {text} {mask}",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens of text and special tokens, as the tokenizer's max_length was.",
            show_default="its model_max_length, or all that the base model has room for",
        ),
    ] = None,
    task_index: Annotated[
        int | None, typer.Option(min=0, help="Which task of a MULTITASK_PROMPT_TUNING adapter.")
    ] = None,
    truncation_side: Annotated[
        Literal["right", "left"] | None,
        typer.Option(
            help="Which side of a long text the tokenizer cut off.",
            show_default="as the base model's tokenizer has it",
        ),
    ] = None,
    multi_label: Annotated[
        bool | None,
        typer.Option(
            "--multi-label/--single-label",
            help="A text may have several labels, each with its own sigmoid, or has one.",
            show_default="as the base model's problem_type says",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The prompt file to write.", show_default="TASK.safetensors")
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            help="Publish it: a store's folder or URL, or a server's admin address.", metavar="TARGET"
        ),
    ] = None,
    alias: Annotated[
        str, typer.Option(help="The alias that then leads to it; an empty one moves none.")
    ] = "current",
    key: AdminKey = None,
    timeout: Timeout = PUBLISH_TIMEOUT,
) -> None:
    """Make a prompt file that answers as PEFT does with this adapter."""
    from trainer import publish as send
    from trainer.peft_import import Choices, import_peft

    made = import_peft(
        folder,
        Choices(
            task_id=task,
            backbone=backbone,
            labels=None if labels is None else [label.strip() for label in labels.split(",")],
            words=_words(words),
            template=template,
            task_index=task_index,
            max_tokens=max_length,
            truncation_side=truncation_side,
            multi_label=multi_label,
            aggregate=aggregate,
        ),
    )
    file = output or Path(f"{made.manifest.task_id}.safetensors")
    _write(file, made.data)
    for note in made.notes:
        print(f"note: {note}")
    print(f"wrote {file}: {made.manifest.method} for {made.manifest.backbone.name}")
    for target in publish or ():
        done = send(made.data, target, alias=alias or None, key=key, timeout=timeout)
        leads = f", alias {done.alias}" if done.alias else ""
        print(f"published {done.task_id} {done.version}{leads} in {done.target}")
        if done.note:
            print(f"note: {done.note}")
        tell_durability(done.durable)


def _words(given: list[str] | None) -> dict[str, list[str]] | None:
    if not given:
        return None
    words: dict[str, list[str]] = {}
    for pair in given:
        label, equals, listed = pair.partition("=")
        found = [word.strip() for word in listed.split(",") if word.strip()]
        if not equals or not label.strip() or not found:
            raise typer.BadParameter(
                f"{pair}: expected LABEL=WORD,WORD, such as positive=great,good", param_hint="--words"
            )
        if label.strip() in words:
            raise typer.BadParameter(f"{label.strip()} is given twice", param_hint="--words")
        words[label.strip()] = found
    return words


def _write(file: Path, data: bytes) -> None:
    """Write a new file; one that is there already may only be the same."""
    try:
        if file.exists() and file.read_bytes() != data:
            raise typer.BadParameter(
                f"{file} is there already: name another, or remove it", param_hint="--output"
            )
        file.write_bytes(data)
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--output") from None
