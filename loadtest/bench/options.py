"""What one run of the bench is asked for. Owns the values, not how they are spelled on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.prompts import Kind
    from loadtest.workload import Mix

SECTIONS = ("roofline", "forward", "http", "latency", "memory")
PEERS = ("huggingface", "peft", "openvino", "onnxruntime", "infinity")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """`rows` texts go through each side in each of `rounds` rounds, `batch` rows at a time.

    Over HTTP `connections` ask for `seconds` a side and round; our server has `tasks` prompts of one `kind`.
    """

    rounds: int = 5
    rows: int = 2048
    batch: int = 64
    only: tuple[str, ...] = SECTIONS
    peers: tuple[str, ...] = PEERS
    modes: tuple[str, ...] = ("compiled", "eager")
    backbone: str = "minilm"
    dtype: str = "auto"
    kind: Kind = "prefix"
    mix: Mix = "uniform"
    tasks: int = 1000
    connections: int = 64
    seconds: float = 8.0
    out: Path = ROOT / "loadtest" / "results"
    quick: bool = False  # seconds instead of minutes: shows that everything runs, its figures mean nothing
