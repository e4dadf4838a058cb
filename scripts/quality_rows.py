"""Owns what the quality table compares: its rows, and the run that each row's figures come from.

Knows no figures and starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FULL, HEAD, MAJORITY, ZERO = "full fine-tuning", "head only", "majority", "zero-shot"
ENSEMBLE = "prompt-tuning, 3 seeds together"
SEEDS = "0,1,2"

# What labels mean where their names are no words: only zero-shot, which has nothing else to go by, is told.
_TREC6 = (
    'head.descriptions={ABBR="abbreviation", DESC="description or definition", ENTY="entity, thing", HUM="person", '
    'LOC="place", NUM="number, amount or date"}'
)


# What another task's prompt is started from: the largest set's, and for that one the next questions'.
_SOURCES = {
    "rte": "clinc150",
    "trec6": "clinc150",
    "rt-polarity": "clinc150",
    "subj": "clinc150",
    "clinc150": "trec6",
}


@dataclass(frozen=True)
class Run:
    """One training run a data set. `rows`: the table's rows that it gives, as its metrics.json calls them.

    `command` follows `python -m`; `more` is said for some sets besides. `first`: needed for the share that is
    recovered, so these go before the others. `together`: all sets learn in one run of a file that has these lines
    above its tasks; `method` and `seeds` are every task's.
    """

    name: str
    rows: Mapping[str, str]
    command: tuple[str, ...]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first: bool = False
    together: str = ""


def _train(method: str, *more: str) -> tuple[str, ...]:
    return ("promptmux", "train", "--method", method, *more, "--seeds", SEEDS)


def _reference(strategy: str) -> tuple[str, ...]:
    return ("promptmux", "reference", "--strategy", strategy, "--seeds", SEEDS)


def _together(name: str, row: str, method: str, share: str) -> Run:
    lines = f'share = "{share}"\n\n[defaults]\nmethod = "{method}"\nseeds = [{SEEDS}]\n'
    return Run(name, {row: method}, ("promptmux", "train"), together=lines)


def _source(name: str) -> tuple[str, ...]:
    return ("--set", f"prompt.init_from=runs/results/{_SOURCES[name]}-p-tuning-v2")


RUNS = (
    Run(
        "zero-shot",
        {MAJORITY: MAJORITY, HEAD: HEAD, ZERO: "hard-prompt"},
        ("promptmux", "train", "--method", "hard-prompt"),
        {"trec6": ("--set", _TREC6)},
        first=True,
    ),
    Run("p-tuning-v2", {"p-tuning-v2": "p-tuning-v2"}, _train("p-tuning-v2"), first=True),
    Run("full-fine-tuning", {FULL: FULL}, _reference("full-fine-tuning"), first=True),
    Run(
        "prompt-tuning",
        {"prompt-tuning": "prompt-tuning", ENSEMBLE: "ensemble of 3"},
        _train("prompt-tuning", "--ensemble"),
    ),
    Run("prefix-tuning", {"prefix-tuning": "prefix-tuning"}, _train("prefix-tuning")),
    Run("p-tuning", {"p-tuning": "p-tuning"}, _train("p-tuning")),
    Run(
        "residual",
        {"prompt-tuning, residual": "prompt-tuning"},
        _train("prompt-tuning", "--set", "prompt.reparameterisation=residual"),
    ),
    Run(
        "other-task",
        {"p-tuning-v2 from another task": "p-tuning-v2"},
        _train("p-tuning-v2"),
        {name: _source(name) for name in _SOURCES},
    ),
    Run(
        "fixed-prompt", {"fixed prompt, model tuned": "fixed prompt, model tuned"}, _reference("fixed-prompt")
    ),
    _together("tasks-first", "p-tuning-v2 after all tasks", "p-tuning-v2", "prompt"),
    _together("mpt", "prompt-tuning, shared × own", "prompt-tuning", "factored"),
)
# The table's order.
ROWS = (
    MAJORITY, HEAD, ZERO, "prompt-tuning", ENSEMBLE, "prompt-tuning, residual", "prompt-tuning, shared × own",
    "p-tuning", "prefix-tuning", "p-tuning-v2", "p-tuning-v2 from another task", "p-tuning-v2 after all tasks",
    "fixed prompt, model tuned", FULL,
)  # fmt: skip
TRAINED = tuple(row for row in ROWS if row not in (MAJORITY, HEAD, ZERO))
# Rows that have one value for each seed. Of the others there is one whatever the seed, or of all seeds together.
SEEDED = tuple(row for row in TRAINED if row != ENSEMBLE)
