"""A tiny random backbone and a tiny separable task: sentences that hold a good word or a bad one."""

from __future__ import annotations

import functools
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from backbone import Backbone, load_backbone
from backbone.workers import divide
from tests.backbone.families import checkpoint, run_cache, tiny
from trainer import TrainConfig, load_config
from trainer.ranks import Alone, R, Work

GOOD, BAD, FILLER = (
    ("good", "great", "fine"),
    ("bad", "terrible", "dull"),
    ("the", "film", "book", "is", "not", "this"),
)


class Divided(Alone):
    """The rows divided as processes divide them, each part computed here."""

    def __init__(self, count: int) -> None:
        self.count = count

    def share(self, backbone: Backbone, work: Work[R]) -> list[tuple[list[int], R]]:
        return [(own, work.run(backbone, own)) for own in divide(work.lengths, self.count)]


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tiny models are slower with many threads than with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(run_cache().parent))


PROBE_ITERATIONS = 20


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; what they show is tested in test_report.py."""
    monkeypatch.setattr("trainer.outcome.write_curves", lambda *_: None)
    monkeypatch.setattr("trainer.successive_halving.write_sweep", lambda *_: None)


@pytest.fixture
def quick_runs(no_drawing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of how runs go, not of how good they get: the linear probe does not go to its very minimum.

    Every run fits it again, a resumed one too; its own tests (test_head_only.py) fit it to the end.
    """
    monkeypatch.setattr("trainer.head_only.MAX_ITERATIONS", PROBE_ITERATIONS)


@functools.cache
def _load_tiny(name: str, device: str, dtype: str) -> Backbone:
    return load_backbone(name, device=device, dtype=dtype)


def _load(name: str, *, device: str, dtype: str) -> Backbone:
    tiny_one = Path(name).parent == checkpoint("bert").parent
    return _load_tiny(name, device, dtype) if tiny_one else load_backbone(name, device=device, dtype=dtype)


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings share the tiny models as `tiny` does: nobody writes to a frozen one."""
    monkeypatch.setattr("trainer.ranks.load_backbone", _load)
    monkeypatch.setattr("trainer.reference.load_backbone", _load)


@pytest.fixture(scope="session")
def bert() -> Backbone:
    return tiny("bert")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def sentence(words: Sequence[str], generator: random.Random) -> str:
    """A few filler words around two of `words`."""
    chosen = generator.choices(FILLER, k=generator.randint(1, 3)) + generator.choices(words, k=2)
    generator.shuffle(chosen)
    return " ".join(chosen)


def separable(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Short sentences of two labels, told apart by two words."""
    generator = random.Random(seed)
    kinds = (("negative", BAD), ("positive", GOOD))
    return [{"text": sentence(kinds[at % 2][1], generator), "label": kinds[at % 2][0]} for at in range(count)]


def write_jsonl(path: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a small, fast run on the tiny backbone; keyword arguments use "__" for a dot."""
    write_jsonl(tmp_path / "train.jsonl", separable(96))
    write_jsonl(tmp_path / "dev.jsonl", separable(40, seed=1))
    write_jsonl(tmp_path / "test.jsonl", separable(40, seed=2))

    def make(**overrides: object) -> TrainConfig:
        values: dict[str, object] = {
            "task_id": "tiny", "method": "prompt-tuning", "output": str(tmp_path / "run"),
            "backbone": str(checkpoint("bert")), "device": "cpu", "dtype": "float32", "seeds": (0,),
            "data.train": str(tmp_path / "train.jsonl"), "data.dev": str(tmp_path / "dev.jsonl"),
            "data.test": str(tmp_path / "test.jsonl"), "prompt.num_virtual_tokens": 4,
            "optimiser.epochs": 6, "optimiser.batch_size": 16, "optimiser.evaluations": 3,
            "optimiser.prompt_lr": 0.05,
        }  # fmt: skip
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        return load_config(None, values)

    return make


MANY = """
output = "all"
rows_at_once = 40

[defaults]
backbone = "{backbone}"
device = "cpu"
dtype = "float32"
method = "p-tuning-v2"
seeds = [0, 1]
[defaults.prompt]
num_virtual_tokens = 3
[defaults.optimiser]
epochs = 3
batch_size = 16
evaluations = 2
prompt_lr = 0.05

[[task]]
task_id = "film"
data.train = "film.jsonl"

[[task]]
task_id = "book"
seeds = [2]
data.train = "book.jsonl"
optimiser.epochs = 5

[[task]]
task_id = "probe"
method = "head-only"
data.train = "film.jsonl"

[[task]]
task_id = "wild"
data.train = "book.jsonl"
optimiser.prompt_lr = 1e30
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of four tasks: two of different settings, one that trains no prompt, one that diverges."""
    write_jsonl(tmp_path / "film.jsonl", separable(96))
    write_jsonl(tmp_path / "book.jsonl", separable(80, seed=4))
    path = tmp_path / "many.toml"
    path.write_text(MANY.format(backbone=checkpoint("bert")))
    return path
