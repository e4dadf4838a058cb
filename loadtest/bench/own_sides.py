"""Our own sides of the forward: kinds of prompts, numbers of tasks, texts, modes.

Owns which of them there are and the reference that every side is compared with. Knows nothing of peers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone import Backbone, DevicePrompt
from loadtest import workload
from loadtest.bench import ours
from loadtest.bench.options import Options
from loadtest.bench.peers.work import Work
from loadtest.prompts import TOKENS, Kind

PEER_BATCH = 32
ZIPF_TASKS = 100
KINDS: tuple[Kind, ...] = ("soft", "prefix")


@dataclass(frozen=True)
class OwnSide:
    """One row of the table."""

    name: str
    mode: str
    kind: Kind
    tasks: int
    texts: str  # short, long or zipf
    side: ours.Side


@dataclass(frozen=True)
class Corpus:
    """The texts that all sides see; `tasks` are the zipf rows' tasks."""

    short: list[str]
    long: list[str]
    zipf: list[str]
    tasks: list[int]

    @classmethod
    def make(cls, options: Options) -> Corpus:
        """As many short texts as were asked for, fewer of those that take longer."""
        short = workload.texts(options.rows)
        zipf = short[: max(PEER_BATCH, options.rows // 4)]
        choices = workload.task_choices("zipf", ZIPF_TASKS if not options.quick else 8)
        long = workload.long_texts(max(PEER_BATCH, options.rows // 8))
        return cls(short, long, zipf, list(itertools.islice(choices, len(zipf))))

    def of(self, texts: str) -> list[str]:
        """Texts by their name."""
        return {"short": self.short, "long": self.long, "zipf": self.zipf}[texts]

    def groups(self) -> float:
        """How many tasks a batch of zipf rows has on average."""
        batches = [self.tasks[at : at + PEER_BATCH] for at in range(0, len(self.tasks), PEER_BATCH)]
        return sum(len(set(batch)) for batch in batches) / len(batches)


class Prompts:
    """Prompts made once for all modes that compute in one dtype: 10,000 prefixes are too large to have twice."""

    def __init__(self) -> None:
        self._made: dict[tuple[Kind, torch.dtype], list[DevicePrompt]] = {}

    def get(self, backbone: Backbone, kind: Kind, count: int) -> list[DevicePrompt]:
        """The first `count` prompts of a kind."""
        key = kind, backbone.dtype
        if len(self._made.get(key, [])) < count:
            self._made[key] = ours.prompts(backbone, kind, count)
        return self._made[key][:count]


def own_sides(
    mode: str, backbone: Backbone, corpus: Corpus, options: Options, made: Prompts
) -> list[OwnSide]:
    """All sides of one mode."""
    counts = (1, 32) if options.quick else (1, 32, 1000, 10000)
    many = min(1000, counts[-1])

    def side(kind: Kind, tasks: int, texts: str, prompts: Sequence[DevicePrompt], batch: int) -> OwnSide:
        plural = "task" if tasks == 1 else "tasks"
        name = f"ours {mode}: {kind}" + ("" if kind == "bare" else f", {tasks:,} {plural}")
        name += {"short": "", "long": ", long", "zipf": " Zipf"}[texts]
        name += "" if batch == options.batch or texts == "zipf" else f", batches of {batch}"
        rows = ours.encode(backbone, kind, corpus.of(texts))
        order = corpus.tasks if texts == "zipf" else None
        return OwnSide(name, mode, kind, tasks, texts, ours.Side(backbone, rows, prompts, batch, order))

    bare = made.get(backbone, "bare", 1)
    sides = [side("bare", 1, texts, bare, options.batch) for texts in ("short", "long")]
    for kind in KINDS:
        prompts = made.get(backbone, kind, counts[-1])
        sides += [side(kind, tasks, "short", prompts[:tasks], options.batch) for tasks in counts]
        sides.append(side(kind, many, "long", prompts[:many], options.batch))
        tasks = max(corpus.tasks) + 1 if options.quick else ZIPF_TASKS
        sides.append(side(kind, tasks, "zipf", made.get(backbone, kind, tasks), PEER_BATCH))
        if kind == "prefix" and options.batch != PEER_BATCH:
            sides.append(side(kind, many, "short", prompts[:many], PEER_BATCH))
    return sides


class Reference:
    """Pooled states as our own backbone computes them eagerly in float32."""

    def __init__(self, options: Options, corpus: Corpus, rows: int = 16) -> None:
        self.backbone = ours.load("eager", options.backbone, "float32")
        self._corpus, self._rows = corpus, rows
        self._prompts = {
            kind: ours.prompts(self.backbone, kind, max(corpus.tasks) + 1) for kind in ("bare", *KINDS)
        }

    def features(self, kind: Kind, texts: str, *, as_peft: bool = False) -> np.ndarray[Any, Any]:
        """Expected states of the first rows. PEFT lets positions begin behind a prefix; this project does not."""
        tasks = self._corpus.tasks if texts == "zipf" else [0] * self._rows
        prompts = [self._prompts[kind][task] for task in tasks[: self._rows]]
        if as_peft and kind == "prefix":
            prompts = [dataclasses.replace(prompt, position_offset=TOKENS) for prompt in prompts]
        return features(self.backbone, kind, self._corpus.of(texts)[: self._rows], prompts)


@torch.inference_mode()
def features(
    backbone: Backbone, kind: Kind, texts: Sequence[str], prompts: Sequence[DevicePrompt]
) -> np.ndarray[Any, Any]:
    """Pooled states [texts, hidden]."""
    return np.asarray(
        backbone.features(ours.encode(backbone, kind, texts), list(prompts)).float().cpu().numpy()
    )


def write_work(backbone: Backbone, corpus: Corpus, folder: Path) -> dict[str, Path]:
    """Write each kind of texts as a peer's work, and a part of it for trials: name → file."""
    files = {}
    for texts in ("short", "long", "zipf"):
        rows = [
            np.array(row.token_ids, dtype=np.int64) for row in ours.encode(backbone, "bare", corpus.of(texts))
        ]
        tasks = np.array(corpus.tasks if texts == "zipf" else [0] * len(rows), dtype=np.int64)
        part = max(PEER_BATCH, len(rows) // 8)
        for name, count in ((texts, len(rows)), (f"{texts}, trial", part)):
            files[name] = folder / f"{name.replace(', ', '-')}.npz"
            Work(rows[:count], tasks[:count]).save(files[name])
    return files


def write_prompts(backbone: Backbone, tasks: int, file: Path) -> None:
    """The prompts' values in the layout that PEFT's embeddings have: [tasks, virtual tokens, …]."""
    parts: dict[str, list[np.ndarray[Any, Any]]] = {"soft": [], "prefix": [], "weight": [], "bias": []}
    for named in ours.tensors(backbone.shape, "soft", tasks):
        parts["soft"].append(named["soft_prompt"].numpy())
        parts["weight"].append(named["head.0.weight"].numpy())
        parts["bias"].append(named["head.0.bias"].numpy())
    for named in ours.tensors(backbone.shape, "prefix", tasks):
        both = torch.stack([named["prefix.encoder.key"], named["prefix.encoder.value"]])
        parts["prefix"].append(both.permute(2, 1, 0, 3, 4).numpy())  # [P, layers, 2, heads, head_dim]
    np.savez(file, **{name: np.stack(values) for name, values in parts.items()})  # type: ignore[arg-type]
