"""Section "forward": rows per second in process, ours and the peers', with the same weights and the same texts.

Ours: the bare backbone, and soft prompts and prefixes of 1 to 10,000 tasks mixed in every batch. Peers: the bare
backbone on padded batches, which is less work than ours, and PEFT with its rows grouped by task. Every side gets token
ids and gives probabilities; before it is timed, its pooled states are compared with a float32 reference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.bench import ours, plots
from loadtest.bench.options import Options
from loadtest.bench.own_sides import (
    PEER_BATCH,
    Corpus,
    OwnSide,
    Prompts,
    Reference,
    features,
    own_sides,
    write_prompts,
    write_work,
)
from loadtest.bench.peer_sides import Peers, PeerSide, choose, difference, peer_sides, started, told, verify
from loadtest.bench.report import Ratio, Section, Table
from loadtest.bench.rounds import Rounds, alternate
from loadtest.prompts import TOKENS

_CAPTIONS = {
    "short": "sentences of 5 to 64 tokens",
    "zipf": f"sentences, tasks by Zipf's law, batches of {PEER_BATCH}",
    "long": "texts of up to 512 tokens",
}


def measure(options: Options, console: Console) -> Section:
    """Measure all sides by turns."""
    corpus = Corpus.make(options)
    reference = Reference(options, corpus)
    made = Prompts()
    own = [
        side
        for mode, backbone in ours.load_all(options, console).items()
        for side in own_sides(mode, backbone, corpus, options, made)
    ]
    differs = {side.name: _own_difference(side, corpus, reference) for side in own}

    with tempfile.TemporaryDirectory() as folder:
        files = write_work(reference.backbone, corpus, Path(folder))
        prompts = Path(folder) / "prompts.npz"
        write_prompts(reference.backbone, max(corpus.tasks) + 1, prompts)
        asked = [peer for peer in options.peers if peer != "infinity"]  # that one answers over HTTP only
        others = peer_sides(asked, prompts, compiled=not options.quick)
        with started(others, ours.folder(options.backbone), console) as peers:
            verify(
                peers,
                others,
                files,
                lambda side: reference.features(side.kind, side.texts, as_peft=side.peer == "peft"),
                console,
            )
            trials = {texts: files[f"{texts}, trial"] for texts in _CAPTIONS}
            choose(peers, others, trials, 0 if options.quick else 2, console)
            timed: dict[str, Callable[[], float]] = {side.name: side.side.run for side in own}
            timed |= {
                side.name: peers.side(
                    side, peers.chosen[side.name], files[side.texts], len(corpus.of(side.texts))
                )
                for side in others
                if side.name in peers.chosen
            }
            rounds = alternate(timed, options.rounds, console=console, title="forward")
    peers.failed |= rounds.failed
    return _section(rounds, own, others, peers, differs | peers.differs, corpus, options)


def _own_difference(own: OwnSide, corpus: Corpus, reference: Reference) -> float:
    """How far our own pooled states are from the reference's: the price of the dtype."""
    expected = reference.features(own.kind, own.texts)
    tasks = corpus.tasks if own.texts == "zipf" else [0] * len(expected)
    prompts = [own.side.prompts[task] for task in tasks[: len(expected)]]
    texts = corpus.of(own.texts)[: len(expected)]
    return difference(features(own.side.backbone, own.kind, texts, prompts), expected)


def _section(
    rounds: Rounds,
    own: list[OwnSide],
    others: list[PeerSide],
    peers: Peers,
    differs: dict[str, float],
    corpus: Corpus,
    options: Options,
) -> Section:
    rates = {name: 1 / rounds.median(name) for name in rounds.seconds}
    tables = [_table(texts, rounds, rates, own, others, peers, differs) for texts in _CAPTIONS]
    ratios = [ratio for mode in _modes(own) for ratio in _ratios(mode, rounds, rates, own, others, peers)]
    raw: dict[str, Any] = {
        "seconds_per_row": rounds.seconds,
        "rows_per_second": rates,
        "spread": {name: rounds.spread(name) for name in rounds.seconds},
        "differs_from_float32": differs,
        "chosen": {name: told(way) for name, way in peers.chosen.items()},
        "failed": peers.failed,
        "tasks_met": {side.name: len(side.side.met) for side in own},
        "tokens_per_row": {
            texts: sum(len(row) for row in side.side.rows) / len(side.side.rows)
            for side in own
            if side.kind == "bare"
            for texts in (side.texts,)
        },
        "zipf_tasks_per_batch": corpus.groups(),
        "own_sides": [
            {key: value for key, value in vars(side).items() if key != "side"} for side in own
        ],
        "peer_sides": [{key: v for key, v in asdict(side).items() if key != "ways"} for side in others],
    }  # fmt: skip
    return Section("forward", tables, ratios, raw, _draw(rates, own, others, options), peers.versions())


def _table(
    texts: str,
    rounds: Rounds,
    rates: dict[str, float],
    own: list[OwnSide],
    others: list[PeerSide],
    peers: Peers,
    differs: dict[str, float],
) -> Table:
    rows = []
    sides = [side for side in own if side.texts == texts]
    base = (next((side for side in sides if side.kind == "bare"), None) or sides[0]).name
    for side in sides:
        how = f"batches of {side.side.batch}"
        if len(side.side.met) < side.tasks:
            how += f"; only {len(side.side.met):,} tasks met"
        rows.append((side.name, *_figures(side.name, base, rounds, rates, differs), how))
    for other in others:
        if other.texts == texts:
            reason = peers.failed.get(other.name)
            how = f"not measured: {reason}" if reason else told(peers.chosen[other.name])
            rows.append((other.name, *_figures(other.name, base, rounds, rates, differs), how))
    some = sides[0].side
    tokens = sum(len(row) for row in some.rows) / len(some.rows)
    return Table(
        f"forward: {_CAPTIONS[texts]}",
        ("side", "rows/s", "relative", "spread", "differs", "how"),
        rows,
        note=f"{len(some.rows):,} rows a round, {tokens:.1f} tokens each ({sides[0].kind}), {TOKENS} virtual tokens; "
        f"medians over rounds; relative: to {base}, the median of the rounds' own ratios; "
        "spread: slowest round less fastest, of the median; differs: pooled states from float32, at most",
        prose=("how",),
    )


def _figures(
    name: str, base: str, rounds: Rounds, rates: dict[str, float], differs: dict[str, float]
) -> tuple[str, str, str, str]:
    apart = f"{differs[name]:.1g}" if name in differs else "–"
    if name not in rates:
        return "–", "–", "–", apart
    return f"{rates[name]:,.0f}", f"{rounds.ratio(name, base):.3f}", f"{rounds.spread(name):.0%}", apart


def _modes(own: list[OwnSide]) -> list[str]:
    return list(dict.fromkeys(side.mode for side in own))


def _ratios(
    mode: str,
    rounds: Rounds,
    rates: dict[str, float],
    own: list[OwnSide],
    others: list[PeerSide],
    peers: Peers,
) -> list[Ratio]:
    """The issue's targets for one mode."""
    mine = [side for side in own if side.mode == mode]
    most = max(side.tasks for side in mine)
    many = min(1000, most)

    def find(kind: str, tasks: int, texts: str = "short") -> str:
        sides = [side for side in mine if (side.kind, side.texts) == (kind, texts)]
        return next(side.name for side in sides if side.tasks == tasks or texts == "zipf")

    def ratio(name: str, one: str, other: str, least: float | None, aim: float | None) -> Ratio:
        return Ratio(f"{mode}: {name}", rounds.ratio(one, other), least, aim)

    found = [
        ratio(f"{kind}: {most:,} tasks mixed / 32", find(kind, most), find(kind, 32), 0.97, 1.0)
        for kind in ("prefix", "soft")
    ]
    prefixes, bare = find("prefix", many), find("bare", 1)
    found.append(ratio(f"prefix rows, {many:,} tasks / own bare rows", prefixes, bare, 0.85, 0.95))
    for sort, least, aim in ((False, 1.5, 2.0), (True, None, None)):
        best = _best([side for side in others if side.sorted == sort], rates, "bare", "short")
        name = f"prefix, {many:,} tasks / best peer's bare backbone, {'sorted' if sort else 'padded'}"
        if best is None:
            found.append(Ratio(f"{mode}: {name}", None, least, aim, note=_why(others, peers, "bare")))
        else:
            found.append(ratio(f"{name} ({best})", prefixes, best, least, aim))
    zipf_tasks = next(side.tasks for side in mine if side.texts == "zipf")
    for kind in ("prefix", "soft"):
        best = _best([side for side in others if side.peer == "peft"], rates, kind, "zipf")
        name = f"{kind} / PEFT at its best dtype, {zipf_tasks} tasks Zipf, batch {PEER_BATCH}"
        if best is None:
            found.append(Ratio(f"{mode}: {name}", None, 5, 8, note=_why(others, peers, kind)))
        else:
            found.append(ratio(f"{name} ({best})", find(kind, 0, "zipf"), best, 5, 8))
    return found


def _best(others: list[PeerSide], rates: dict[str, float], kind: str, texts: str) -> str | None:
    """The fastest of the peers' sides that count."""
    names = [s.name for s in others if (s.kind, s.texts) == (kind, texts) and s.counts and s.name in rates]
    return max(names, key=lambda name: rates[name], default=None)


def _why(others: list[PeerSide], peers: Peers, kind: str) -> str:
    reasons = {peers.failed[s.name] for s in others if s.kind == kind and s.name in peers.failed}
    return "; ".join(sorted(reasons)) or "no such peer was asked for"


def _draw(
    rates: dict[str, float], own: list[OwnSide], others: list[PeerSide], options: Options
) -> list[Path]:
    groups: dict[str, list[plots.Bar]] = {}
    for texts, caption in _CAPTIONS.items():
        mine = [plots.Bar(s.name, rates[s.name], s.kind) for s in own if s.texts == texts and s.name in rates]
        theirs = [
            plots.Bar(s.name, rates[s.name], "peft" if s.peer == "peft" else "peer")
            for s in others
            if s.texts == texts and s.name in rates
        ]
        groups[caption] = mine + theirs
    lines = []
    for nth, mode in enumerate(_modes(own)):
        for kind in ("prefix", "soft"):
            sides = [
                s for s in own
                if (s.mode, s.kind, s.texts, s.side.batch) == (mode, kind, "short", options.batch)
            ]  # fmt: skip
            points = [rates[s.name] for s in sides]
            lines.append(plots.Line(f"{kind}, {mode}", kind, nth, [s.tasks for s in sides], points))
    levels = {s.name: rates[s.name] for s in own if s.kind == "bare" and s.texts == "short"}
    for peer in dict.fromkeys(side.peer for side in others):
        best = _best([side for side in others if side.peer == peer], rates, "bare", "short")
        if best is not None:
            levels[best] = rates[best]
    name = own[0].side.backbone.name
    return [
        plots.bars(groups, options.out / "forward.png", title=f"Forward of {name}, rows per second"),
        plots.against_tasks(
            lines, levels, options.out / "forward-tasks.png",
            title=f"Forward of {name}: throughput against tasks mixed in one batch",
        ),
    ]  # fmt: skip
