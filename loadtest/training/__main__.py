"""Measure how fast prompts are learned, and keep what was measured.

    python -m loadtest.training mixture --data ../shared/data/trec6     16 prompts of batch 8 at once, or one by one
    python -m loadtest.training race --data ../shared/data/trec6        seconds to PEFT's dev accuracy
    python -m loadtest.training page                                    docs/results/training.md from what was kept

Run it on a machine that does nothing else: ratios are of one run on one machine, sides alternating.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from backbone import load_backbone
from loadtest.bench.machine import machine
from loadtest.training import mixture, race
from loadtest.training.page import KEPT, write_page


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code."""
    given = _parser().parse_args(arguments)
    console = Console(width=120)
    if given.what != "page":
        if not (given.data / "train.jsonl").is_file():
            print(
                f"loadtest.training: no train.jsonl in {given.data}: give a data set with --data",
                file=sys.stderr,
            )
            return 2
        done = _mixture(given, console) if given.what == "mixture" else _race(given, console)
        kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
        command = "python -m loadtest.training " + " ".join(arguments or sys.argv[1:])
        kept[given.what] = {"command": command, "machine": machine(), **done}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    console.print(write_page(), markup=False, highlight=False)
    return 0


def _mixture(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    backbone = load_backbone(device=given.device)
    return {
        "data": given.data.name,
        "device": str(backbone.device),
        "dtype": backbone.dtype_name,
        "sides": [
            mixture.measure(
                backbone, given.data, method=method, prompts=given.prompts, batch_size=given.batch_size,
                steps=given.steps, rounds=given.rounds, console=console,
            )
            for method in ("p-tuning-v2", "prompt-tuning")
        ],
    }  # fmt: skip


def _race(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    races = []
    for method, kind in (("p-tuning-v2", "PREFIX_TUNING"), ("prompt-tuning", "PROMPT_TUNING")):
        sides: dict[str, list[race.Curve]] = {"ours": [], "peft": [], "peft bf16": []}
        rates: dict[str, float] = {}
        for nth in range(given.rounds):
            plan = race.Plan(given.data, given.lines, given.dev_lines, given.epochs, given.evaluations, nth)
            if not nth:  # PEFT's learning rate is chosen once, by its own final dev accuracy
                tried = {lr: race.peft(plan, kind, lr=lr, autocast=False) for lr in given.peft_lr}
                rates["peft"] = max(tried, key=lambda lr: tried[lr][-1][1])
                console.print(
                    f"{kind}: "
                    + ", ".join(f"lr {lr:g}: dev {100 * c[-1][1]:.1f} %" for lr, c in tried.items())
                )
            names = ["ours", "peft", "peft bf16"][:: 1 if nth % 2 == 0 else -1]
            for name in names:
                console.print(f"{method}, round {nth + 1} of {given.rounds}: {name}", highlight=False)
                if name == "ours":
                    sides[name].append(race.ours(plan, method))
                else:
                    autocast = name == "peft bf16"
                    sides[name].append(race.peft(plan, kind, lr=rates["peft"], autocast=autocast))
        races.append({"method": method, "kind": kind, "lr": rates["peft"], "curves": sides, **_ratios(sides)})
    return {
        "data": given.data.name, "lines": given.lines, "epochs": given.epochs, "batch_size": race.BATCH,
        "virtual_tokens": race.TOKENS, "races": races,
    }  # fmt: skip


def _ratios(sides: dict[str, list[race.Curve]]) -> dict[str, Any]:
    """For each PEFT side: in each round, its seconds to the best dev accuracy that both reached, over ours."""
    result: dict[str, Any] = {}
    for name in ("peft", "peft bf16"):
        rounds = []
        for own, other in zip(sides["ours"], sides[name], strict=True):
            target = min(max(accuracy for _, accuracy in curve) for curve in (own, other))
            first, second = race.seconds_to(own, target), race.seconds_to(other, target)
            assert first is not None
            assert second is not None
            rounds.append({"accuracy": target, "ours": first, name: second, "ratio": second / first})
        whole = [other[-1][0] / own[-1][0] for own, other in zip(sides["ours"], sides[name], strict=True)]
        result[f"against {name}"] = {
            "rounds": rounds,
            "times as fast": statistics.median(r["ratio"] for r in rounds),
            "times as fast, same steps": statistics.median(whole),
        }
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.training", description="How fast prompts are learned."
    )
    parser.add_argument("what", choices=("mixture", "race", "page"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/trec6"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lines", type=int, help="race: only the first lines of the training set")
    parser.add_argument("--dev-lines", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--peft-lr", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2])
    return parser


if __name__ == "__main__":
    sys.exit(main())
