"""Owns what a finished run leaves behind: which seed is the prompt, the table's rows, metrics.json, every
file.

Knows scores and bytes; knows no model and no training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

from rich.table import Table

from prompt_store import decode_prompt, version_of
from trainer.config import TrainConfig
from trainer.data import TaskData
from trainer.gate import judge
from trainer.head_only import LinearProbe
from trainer.prompt_file import PromptFile
from trainer.report import (
    Point,
    TableRow,
    plain_text,
    results_table,
    write_curves,
    write_metrics,
)
from trainer.run_folder import RunFolder
from trainer.scores import Scores, majority, one_hot
from trainer.state import write_atomically


@dataclass(frozen=True)
class Reference:
    """The linear probe on frozen features, how it scores on what the run reports, and how many of its texts are cut."""

    probe: LinearProbe
    test: Scores
    texts: int
    cut: int


@dataclass(frozen=True)
class Outcome:
    """Everything a run learned. `files` and `curves` are by seed; a method without seeds has the one key
    None. `joint` is the ensemble of all seeds, where that is the prompt.
    """

    config: TrainConfig
    data: TaskData
    backbone: str
    reference: Reference
    files: Mapping[int | None, PromptFile]
    curves: Mapping[int, tuple[Point, ...]]
    joint: PromptFile | None = None

    @cached_property
    def best_seed(self) -> int | None:
        """The best seed on dev, the first of equals; test scores choose nothing."""
        return max(
            self.files, key=lambda seed: (self.files[seed].dev.accuracy, self.files[seed].dev.macro_f1)
        )

    @property
    def prompt(self) -> PromptFile:
        """The file to publish: the best seed's, or the ensemble of all seeds where that was asked for."""
        return self.joint or self.files[self.best_seed]

    @property
    def version(self) -> str:
        """The version that the prompt file will have."""
        return version_of(self.prompt.data)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the prompt file."""
        refusal = judge(decode_prompt(self.prompt.data).manifest).refusal
        return (
            *self.prompt.notes,
            *([f"publishing is refused unless it is forced: {refusal}"] if refusal else []),
        )

    @property
    def split(self) -> str:
        """Which set the table reports."""
        return "test" if self.data.test else "dev"

    @cached_property
    def rows(self) -> tuple[TableRow, ...]:
        """The table's rows: majority, head only, the run's own method, and the ensemble of its seeds."""
        data = self.data
        train, reported = (
            one_hot([example.labels for example in examples], data.labels)
            for examples in (data.train, data.test or data.dev)
        )
        floor = majority(train, reported, data.labels, multi_label=data.multi_label)
        rows = [TableRow("majority", (floor,)), TableRow("head only", (self.reference.test,))]
        if self.config.method != "head-only":
            rows.append(TableRow(self.config.method, tuple(file.test for file in self.files.values())))
        if self.joint is not None:
            rows.append(TableRow(f"ensemble of {len(self.files)}", (self.joint.test,)))
        return tuple(rows)

    def write(self, folder: RunFolder, *, seconds: float) -> Table:
        """Write every file of the run folder, metrics.json last; returns the table."""
        for seed, file in self.files.items():
            if seed is not None:
                write_atomically(folder.seed_prompt(seed), file.data)
        write_atomically(folder.prompt, self.prompt.data)
        table = results_table(self.config.task_id, self.split, self.rows)
        write_atomically(folder.table, plain_text(table).encode())
        if self.curves:
            title = f"{self.config.task_id}: {self.config.method} on {self.backbone}"
            write_curves(folder.curves, title, self.curves, self.reference.probe.dev.accuracy)
        write_metrics(folder.metrics, self._metrics() | {"seconds": round(seconds, 1)})
        return table

    def _metrics(self) -> dict[str, object]:
        return {
            "task_id": self.config.task_id,
            "method": self.config.method,
            "reported_split": self.split,
            "summary": {row.name: row.summary() for row in self.rows},
            "best_seed": self.best_seed,
            "version": self.version,
            "head_only": {
                "strength": self.reference.probe.strength,
                "dev": self.reference.probe.dev.as_dict(),
                self.split: self.reference.test.as_dict(),
            },
            "seeds": [
                {
                    "seed": seed,
                    "version": version_of(file.data),
                    "dev": file.dev.as_dict(),
                    self.split: file.test.as_dict(),
                    "curve": [asdict(point) for point in (() if seed is None else self.curves[seed])],
                }
                for seed, file in self.files.items()
            ],
            **self._joint_metrics(),
            "data": {
                "sizes": self.data.sizes(),
                "digests": self.data.digests(),
                "notes": list(self.data.notes),
            },
        }

    def _joint_metrics(self) -> dict[str, object]:
        if self.joint is None:
            return {}
        return {"ensemble": {"dev": self.joint.dev.as_dict(), self.split: self.joint.test.as_dict()}}
