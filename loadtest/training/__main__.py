"""Measure how fast prompts are learned, and keep what was measured.

    python -m loadtest.training mixture --data ../shared/data/trec6 ../shared/data/rte
                                                                        16 prompts of batch 8 at once, or one by one
    python -m loadtest.training race --data ../shared/data/trec6        seconds to PEFT's dev accuracy
    python -m loadtest.training page                                    docs/results/training.md from what was kept

Run it on a machine that does nothing else: ratios are of one run on one machine, sides alternating.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from backbone import load_backbone
from loadtest.bench.machine import machine
from loadtest.training import mixture, peft_side, race
from loadtest.training.data import BATCH, TOKENS, Curve, Plan
from loadtest.training.page import KEPT, write_page

SOFT = ("p-tuning-v2", "prefix-tuning", "prompt-tuning", "p-tuning")
CHOOSING_SEED = 1000  # of the trainings that choose PEFT's learning rates


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code."""
    given = _parser().parse_args(arguments)
    console = Console(width=120)
    if given.what != "page":
        if missing := [str(data) for data in given.data if not (data / "train.jsonl").is_file()]:
            print(
                f"loadtest.training: no train.jsonl in {missing[0]}: give a data set with --data",
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
        "device": str(backbone.device),
        "dtype": backbone.dtype_name,
        "sides": [
            mixture.measure(
                backbone, data, method=method, prompts=given.prompts, batch_size=given.batch_size, steps=given.steps,
                rounds=given.rounds, console=console,
            )
            for data in given.data
            for method in given.methods
        ],
    }  # fmt: skip


def _race(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    races = []

    def plan(seed: int) -> Plan:
        return Plan(given.data[0], given.lines, given.dev_lines, given.epochs, given.evaluations, seed)

    for method, kind in (("p-tuning-v2", "PREFIX_TUNING"), ("prompt-tuning", "PROMPT_TUNING")):
        curves: dict[str, list[Curve]] = {"ours": [], **{side.name: [] for side in peft_side.SIDES}}
        rates = _rates(plan(CHOOSING_SEED), method, kind, given.peft_lr, console)
        _, probe = race.ours(plan(0), method)  # a warm-up, and the head that PEFT at its best starts from
        for nth in range(given.rounds):
            sides = {"ours": None, **{side.name: side for side in peft_side.SIDES}}
            for name, side in list(sides.items())[:: 1 if nth % 2 == 0 else -1]:
                console.print(f"{method}, round {nth + 1} of {given.rounds}: {name}", highlight=False)
                if side is None:
                    curve, probe = race.ours(plan(nth), method)
                else:
                    curve = peft_side.peft(plan(nth), kind, side, lr=rates[name], probe=probe)
                curves[name].append(curve)
        races.append({"method": method, "kind": kind, "lr": rates, "curves": curves, **_ratios(curves)})
    return {
        "data": given.data[0].name, "lines": given.lines, "epochs": given.epochs, "batch_size": BATCH,
        "virtual_tokens": TOKENS, "races": races,
    }  # fmt: skip


def _rates(plan: Plan, method: str, kind: str, tried: Sequence[float], console: Console) -> dict[str, float]:
    """The learning rate of each PEFT side, by its own final dev accuracy in a seed that is not raced."""
    _, probe = race.ours(plan, method)
    found: dict[str, float] = {}
    for side in peft_side.SIDES:
        if side.bfloat16 and not side.best:  # rounding changes no rate
            found[side.name] = found["peft"]
            continue
        ends = {lr: peft_side.peft(plan, kind, side, lr=lr, probe=probe)[-1][1] for lr in tried}
        found[side.name] = max(ends, key=lambda lr: ends[lr])
        told = ", ".join(f"lr {lr:g}: dev {100 * end:.1f} %" for lr, end in ends.items())
        console.print(f"{kind}, {side.name}: {told}", highlight=False)
    return found


def _ratios(sides: dict[str, list[Curve]]) -> dict[str, Any]:
    """For each PEFT side: in each round, its seconds to the best dev accuracy that both reached, over ours."""
    result: dict[str, Any] = {}
    for name in (side.name for side in peft_side.SIDES):
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
    parser.add_argument("--data", type=Path, nargs="+", default=[Path("../shared/data/trec6")])
    parser.add_argument("--methods", nargs="+", default=list(SOFT), choices=SOFT, help="mixture: these alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lines", type=int, help="race: only the first lines of the training set")
    parser.add_argument("--dev-lines", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--peft-lr", type=float, nargs="+", default=[1e-2, 3e-2, 1e-1])
    return parser


if __name__ == "__main__":
    sys.exit(main())
