"""What one run of the bench is asked for. Owns the values, not how they are spelled on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SECTIONS = ("roofline", "forward", "http", "latency", "memory")
PEERS = ("huggingface", "peft", "openvino", "onnxruntime", "infinity")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """`rows` texts go through each side in each of `rounds` rounds, `batch` rows at a time."""

    rounds: int = 5
    rows: int = 2048
    batch: int = 64
    only: tuple[str, ...] = SECTIONS
    peers: tuple[str, ...] = PEERS
    modes: tuple[str, ...] = ("eager",)
    backbone: str = "minilm"
    dtype: str = "auto"
    out: Path = ROOT / "loadtest" / "results"
    quick: bool = False  # seconds instead of minutes: shows that everything runs, its figures mean nothing
