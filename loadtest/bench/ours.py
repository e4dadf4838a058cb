"""Our own forward as a side of the bench: modes, prompts of many tasks made cheaply, rows that walk through them.

Owns what a mode's name means. Knows nothing of peers or of HTTP.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from backbone import Backbone, DevicePrompt, Row, load_backbone, loader
from backbone.errors import NativeUnavailable
from loadtest.bench.options import Options
from loadtest.prompts import Kind, make_prompt
from prompt_store import BackboneRef

# compiled: what ships, where there is a C++ compiler; eager: the stock model with torch's own operators alone.
MODES: Mapping[str, Callable[[str, str], Backbone]] = {
    "compiled": lambda name, dtype: load_backbone(name, dtype=dtype, kernels="required"),
    "eager": lambda name, dtype: load_backbone(name, dtype=dtype, kernels="off"),
}
_NOISE = 1 << 22  # numbers of which prompts are cut, each from a place of its own


class UnknownMode(ValueError):
    """There is no such way to run the forward."""


def load(mode: str, name: str = "minilm", dtype: str = "auto") -> Backbone:
    """Load the backbone so that it runs in `mode`.

    Raises:
        UnknownMode: with the names there are.

    """
    if mode not in MODES:
        raise UnknownMode(f"mode {mode!r} is unknown; there are: {', '.join(MODES)}")
    return MODES[mode](name, dtype)


def load_all(options: Options, console: Console) -> dict[str, Backbone]:
    """Load the backbone in each mode that was asked for and that this machine has; say which it has not.

    Raises:
        NativeUnavailable: it has none of them.

    """
    loaded: dict[str, Backbone] = {}
    why: NativeUnavailable | None = None
    for mode in options.modes:
        try:
            loaded[mode] = load(mode, options.backbone, options.dtype)
        except NativeUnavailable as error:
            why = error
            console.print(f"{mode} is not measured: {error}", style="bold red", markup=False)
            continue
        found = loaded[mode]
        console.print(f"{mode}: {found.name}, {found.dtype_name}, {found.device}", markup=False)
    if not loaded and why is not None:
        raise why
    return loaded


def folder(name: str) -> Path:
    """Where a backbone's files lie: peers load the very same ones."""
    return loader.locate(name)


def tensors(shape: BackboneRef, kind: Kind, count: int) -> Iterator[dict[str, Tensor]]:
    """The tensors of `count` different tasks' prompts, float32, named as in a prompt file.

    Cut from one line of noise: for 10,000 prefixes, random numbers of their own would take longer to draw than the
    bench takes to run.
    """
    _, named = make_prompt("bench", kind, shape, seed=0)
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)) * 0.1
    for number in range(count):
        cut = {}
        for nth, (name, array) in enumerate(named.items()):
            at = (number * 7919 + nth * 104729) % (_NOISE - array.size)
            cut[name] = noise[at : at + array.size].view(array.shape)
        yield cut


def prompts(backbone: Backbone, kind: Kind, count: int) -> list[DevicePrompt]:
    """Prompts of `count` different tasks as the server would have them, each with memory of its own.

    10,000 prefixes of minilm are 1.8 GB in bfloat16.
    """
    manifest, _ = make_prompt("bench", kind, backbone.shape, seed=0)
    with torch.no_grad():
        return [
            backbone.bind(
                manifest,
                {
                    name: tensor.to(torch.float32 if name.startswith("head.") else backbone.dtype, copy=True)
                    for name, tensor in named.items()
                },
            )
            for named in tensors(backbone.shape, kind, count)
        ]


def encode(backbone: Backbone, kind: Kind, texts: Sequence[str]) -> list[Row]:
    """Texts as rows under a prompt of this kind."""
    manifest, _ = make_prompt("bench", kind, backbone.shape, seed=0)
    return backbone.row_encoder(manifest).encode(texts)


@dataclass
class Side:
    """Rows of one kind, each under the next of `tasks` prompts.

    Each run goes on where the last one ended, so that 10,000 tasks are all met in a few runs of some thousand rows,
    and no run meets a prompt that is still warm from the one before. `order` replaces this walk by fixed numbers of
    prompts, one for each row.
    """

    backbone: Backbone
    rows: Sequence[Row]
    prompts: Sequence[DevicePrompt]
    batch: int
    order: Sequence[int] | None = None
    met: set[int] = field(default_factory=set)
    _next: int = 0

    def run(self) -> float:
        """Seconds for one row: all rows in batches, in the order in which they came."""
        numbers = self._numbers()
        own = [self.prompts[number] for number in numbers]
        self.met.update(numbers)
        began = time.perf_counter()
        for at in range(0, len(self.rows), self.batch):
            self.backbone.score(self.rows[at : at + self.batch], own[at : at + self.batch])
        return (time.perf_counter() - began) / len(self.rows)

    def _numbers(self) -> list[int]:
        if self.order is not None:
            return list(self.order)
        first = self._next
        self._next = (first + len(self.rows)) % len(self.prompts)
        return list(
            itertools.islice(itertools.cycle(range(len(self.prompts))), first, first + len(self.rows))
        )
