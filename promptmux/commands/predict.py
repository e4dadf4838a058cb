"""`promptmux predict`: try a prompt on one's own sentences, from a file, a store or a running server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptmux.commands.files import named_file
from promptmux.commands.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Store, Timeout

if TYPE_CHECKING:
    from client import Client

_BATCH = 64


@dataclass(frozen=True)
class _Prediction:
    label: str
    score: float
    above: tuple[str, ...] | None  # multi-label: the labels above their thresholds


def run(
    prompt: Annotated[str, typer.Argument(help="A prompt file, a run folder (./NAME), or the id of a task.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Sentences; lines of standard input if none.")
    ] = None,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="The second text of each sentence, in the same order.")
    ] = None,
    store: Store = None,
    server: Annotated[
        str, typer.Option(help="A running server, for a task id without --store.", envvar="PROMPTMUX_URL")
    ] = DEFAULT_SERVER,
    version: Annotated[str, typer.Option(help="The alias or version to ask.")] = "current",
    backbone: Annotated[str, typer.Option(help="minilm, a folder or a Hugging Face id.")] = "minilm",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16; a running server has its own.")
    ] = "auto",
    key: Annotated[
        str | None, typer.Option(help="An API key with the scope infer.", envvar="PROMPTMUX_KEY")
    ] = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Label sentences."""
    sentences = list(texts) if texts else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not sentences:
        raise typer.BadParameter(
            "give sentences as arguments, or one a line on standard input", param_hint="TEXTS"
        )
    for text in (*sentences, *(pair or ())):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise typer.BadParameter(
                "the text is no valid UTF-8: save or type it as UTF-8", param_hint="TEXTS"
            )
    if pair is not None and len(pair) != len(sentences):
        raise typer.BadParameter(f"{len(sentences)} sentences, but {len(pair)} pairs", param_hint="--pair")
    file = named_file(prompt)
    if not file.is_file() and ("/" in prompt or prompt.endswith(".safetensors")):  # no id of a task
        missing = f"no prompt in the folder {prompt}" if file.is_dir() else f"no file {prompt}"
        raise typer.BadParameter(missing, param_hint="PROMPT")
    if file.is_file() or store is not None:
        data = _read(file) if file.is_file() else asyncio.run(_fetch(str(store), prompt, version))
        results = _locally(data, backbone, dtype, sentences, pair)
    else:
        from client import Client

        with Client(server, key=key, timeout=timeout) as client:
            results = _remotely(client, prompt, None if version == "current" else version, sentences, pair)
    _show(sentences, results, as_json=as_json)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="PROMPT") from None


async def _fetch(url: str, task: str, version: str) -> bytes:
    from promptmux.commands.stores import existing_store, fetch

    async with existing_store(url) as opened:
        return await fetch(opened, task, version)


def _locally(
    data: bytes, name: str, dtype: str, texts: list[str], pairs: list[str] | None
) -> list[_Prediction]:
    from backbone import load_backbone
    from prompt_store import decode_prompt

    prompt = decode_prompt(data)
    manifest = prompt.manifest
    frozen = load_backbone(name, dtype=dtype)
    loaded, encoder = frozen.load_prompt(prompt), frozen.row_encoder(manifest)
    results = []
    for begin in range(0, len(texts), _BATCH):
        rows = encoder.encode(texts[begin : begin + _BATCH], pairs[begin : begin + _BATCH] if pairs else None)
        for probabilities in frozen.score(rows, [loaded] * len(rows)):
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            above = tuple(manifest.chosen_labels(probabilities)) if manifest.multi_label else None
            results.append(_Prediction(manifest.labels[best], probabilities[best], above))
    return results


def _remotely(
    client: Client, task: str, version: str | None, texts: list[str], pairs: list[str] | None
) -> list[_Prediction]:
    asked: Sequence[str | tuple[str, str]] = texts if pairs is None else list(zip(texts, pairs, strict=True))
    results: list[_Prediction] = []
    for begin in range(0, len(asked), _BATCH):
        answer = client.classify(task, asked[begin : begin + _BATCH], version=version)
        results += [_Prediction(r.label, r.score, r.labels) for r in answer.results]
    return results


def _show(texts: list[str], results: list[_Prediction], *, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from promptmux.commands.output import console

    if as_json:
        for text, r in zip(texts, results, strict=True):
            body = {"text": text, "label": r.label, "score": round(r.score, 6)}
            print(json.dumps(body if r.above is None else {**body, "labels": r.above}, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold")
    table.add_column("label")
    table.add_column("score", justify="right")
    table.add_column("text", overflow="fold")
    for text, r in zip(texts, results, strict=True):
        shown = r.label if r.above is None else ", ".join(r.above) or "none"
        # As Text: brackets in somebody's sentence are no markup.
        table.add_row(Text(shown), f"{r.score:.3f}", Text(text))
    console().print(table)
