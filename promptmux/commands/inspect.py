"""`promptmux inspect`: what is in a prompt file. Needs no backbone and no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptmux.commands.files import prompt_file

if TYPE_CHECKING:
    from pydantic import JsonValue

    from prompt_store import Manifest

_DIGEST = re.compile("[0-9a-f]{64}")


def run(
    file: Annotated[Path, typer.Argument(help="A prompt file (*.safetensors), or a run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Check a prompt file and show its manifest and tensors."""
    from prompt_store import decode_prompt, version_of

    try:
        data = prompt_file(file).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from None
    prompt = decode_prompt(data)
    if as_json:
        print(prompt.manifest.canonical_json().decode())
        return
    from rich.table import Table
    from rich.text import Text

    from promptmux.commands.output import console

    manifest = prompt.manifest
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    shown = ", ".join(manifest.labels[:12]) + (
        f", … ({len(manifest.labels)})" if len(manifest.labels) > 12 else ""
    )
    for name, value in (
        ("task", manifest.task_id),
        ("version", version_of(data)),
        ("method", manifest.method),
        ("labels", shown + (" (multi-label)" if manifest.multi_label else "")),
        ("template", manifest.template),
        ("pooling", str(manifest.pooling)),
        ("head", manifest.head.type),
        ("max length", f"{manifest.max_length.tokens} tokens ({manifest.max_length.counts})"),
        ("backbone", f"{manifest.backbone.name} {manifest.backbone.fingerprint[:12]}"),
        ("virtual tokens", str(prompt.num_virtual_tokens) + _each(prompt.num_virtual_tokens, manifest)),
        ("bytes", f"{len(data):,}"),
        ("golden examples", str(len(manifest.golden))),
        ("training", "" if manifest.training else "not told"),
    ):
        table.add_row(name, Text(value))
    for name, value in _recorded(manifest.training):
        table.add_row(f"  {name}", Text(value))
    for at, member in enumerate(manifest.members):
        said = [member.version[:12]] if member.version else []
        if member.calibration:
            said.append(f"temperature {member.calibration.temperature:g}")
        table.add_row(f"member {at}", Text("  ".join(said)))
        for name, value in _recorded(member.training):
            table.add_row(f"  {name}", Text(value))
    for name, array in sorted(prompt.tensors.items()):
        table.add_row(name, Text(f"{array.dtype} {list(array.shape)}"))
    console().print(table)


def _recorded(record: Mapping[str, JsonValue], within: str = "") -> Iterator[tuple[str, str]]:
    """A training record, which anybody may have written, as rows: what has parts has a row for each part that has
    parts itself, and one for the others.
    """
    plain = []
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _recorded(value, f"{within}{key}.")
        elif within:
            plain.append(f"{key} {_plain(value)}")
        else:
            yield key, _plain(value)
    if plain:
        yield within.removesuffix("."), ", ".join(plain)


def _plain(value: JsonValue) -> str:
    if isinstance(value, str):
        return value[:12] if _DIGEST.fullmatch(value) else value
    if isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
        return " ".join(_plain(part) for part in value)
    return json.dumps(value, ensure_ascii=False)


def _each(tokens: int, manifest: Manifest) -> str:
    """How many each member of an ensemble has; nothing for other prompts."""
    count = len(manifest.members)
    return f" ({tokens // count} in each of {count} members)" if count else ""
