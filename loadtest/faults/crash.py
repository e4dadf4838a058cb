"""A power cut at every operation on the disk, and what the store has afterwards; then once more without each sync.

Owns: trying the cuts, judging what is found, and the table. Must not know: how a scenario is recorded, what is durable
on a disk, how a store is looked at.

What is demanded of every state that a cut may leave: the store opens, and shows exactly what had been acknowledged, or
that and all of the one call under way; all bytes of all versions are there; publishing goes on. A sync that can be left
out without any state failing this is not needed, or not tried well enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from loadtest.faults.crash_gaps import MENDED, UNMENDED, known_gap
from loadtest.faults.crash_recording import OURS, Expected, Recording
from loadtest.faults.crash_scenarios import SCENARIOS
from loadtest.faults.crash_states import FileOpener, Found, Opener, RedisOpener
from loadtest.faults.operations import Tree
from loadtest.faults.outcome import Outcome
from loadtest.faults.power_cut import Cut, Tear

OPENERS: Final[Mapping[str, Callable[[], FileOpener | RedisOpener]]] = {
    "file": FileOpener,
    "redis, mended": partial(RedisOpener, mended=True),
    "redis": partial(RedisOpener, mended=False),
}
# What is found against these is Redis's own, and told. On a disk with a journal, and a log that is mended before every
# start, there must be nothing; without the journal, nothing but these.
GAPS: Final[Mapping[str, tuple[str, ...]]] = {"redis, mended": tuple(MENDED), "redis": UNMENDED}
SORTED: Final = "redis, mended"  # its gaps are held against the known ones
TOLD_ONLY: Final = "redis"
_SAMPLES: Final = 6
_SECTORS: Final = 16
# Beside ours, the syncs of others that make a commit durable: without them nothing that is acknowledged is kept.
COMMITS: Final = ("SQLite: catalogue.sqlite3-wal", "Redis: appendonly.aof.1.incr.aof")
_WANTED: Final = (
    "after every cut the store opens, shows what was acknowledged and no half call, and goes on; there are syncs of"
    " ours, or of a commit, and every one that is left out makes this fail; Redis with its log mended before each start"
    " (unmended: told), and by the letter of POSIX with no gap but the known ones"
)


@dataclass(frozen=True)
class Violation:
    """A cut after which the store is not as it must be."""

    at: int
    kind: str
    detail: str
    gap: str = ""  # the known one that shows in what the cut left


class Trial:
    """Tries the cuts of recordings of one kind of store; what was found in a folder once is not looked for again."""

    def __init__(
        self,
        opener: Opener,
        *,
        samples: int = 4,
        sectors: int = 2,
        seed: int = 0,
        gap: Callable[[Tree], str] | None = None,
    ) -> None:
        self.cuts = 0
        self._gap = gap
        self._opener, self._samples, self._sectors, self._seed = opener, samples, sectors, seed
        self._digests: dict[tuple[Recording, int, tuple[Tear, ...]], str] = {}
        self._found: dict[str, Found] = {}

    @property
    def states(self) -> int:
        """How many different folders a store was opened on."""
        return len(self._found)

    def violations(
        self, recording: Recording, *, deaf: Collection[str] = (), journal: bool = False
    ) -> Iterator[Violation]:
        """Each cut after which the store is not as it must be, the syncs by `deaf` having done nothing."""
        how = {"samples": self._samples, "sectors": self._sectors, "seed": self._seed}
        cuts = [*recording.disk.cuts(deaf=deaf, journal=journal, **how)]
        if deaf:  # those that lose the most first: whoever wants one violation has it soon
            cuts.sort(key=lambda cut: cut.kept.bit_count() - cut.at)
        else:
            self.cuts += len(cuts)
        for cut in cuts:
            violation = judge(cut.at, recording.expected[cut.at], self._look(recording, cut))
            if violation:
                known = self._gap(recording.disk.tree(cut)) if self._gap else ""
                yield dataclasses.replace(violation, gap=known)

    def _look(self, recording: Recording, cut: Cut) -> Found:
        key = (recording, cut.kept, cut.torn)
        if key not in self._digests:
            tree = recording.disk.tree(cut)
            digest = self._digests[key] = _digest(tree)
            if digest not in self._found:
                self._found[digest] = self._opener.examine(tree)
        return self._found[self._digests[key]]


def judge(at: int, expected: Expected, found: Found) -> Violation | None:
    """Compare what was found with what may be."""
    during = f" during {expected.call}" if expected.call else ""
    acknowledged, state = expected.acknowledged, found.state
    if state is None:
        return Violation(at, "does not open", found.wrong + during)
    if found.wrong:
        return Violation(at, "does not work", found.wrong + during)
    if state in (acknowledged, expected.under_way):
        return None
    if acknowledged is None:
        if not state["tasks"] and state["revision"][1] == 0:
            return None
        return Violation(at, "appeared", f"revision {state['revision'][1]} out of nothing{during}")
    epoch, number = acknowledged["revision"]
    if state["revision"][0] != epoch or state["revision"][1] < number:
        return Violation(at, "lost", f"revision {state['revision'][1]} after {number}{during}")
    if not set(state["lost"]) <= set(acknowledged["lost"]):
        return Violation(at, "half visible", f"a version without its bytes{during}")
    return Violation(at, "neither before nor after", f"revision {state['revision'][1]}{during}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Define this experiment's options."""
    parser.add_argument("--stores", nargs="+", choices=OPENERS, default=[*OPENERS])
    parser.add_argument(
        "--samples", type=int, default=_SAMPLES, help="combinations of un-synced operations per cut"
    )
    parser.add_argument(
        "--sectors", type=int, default=_SECTORS, help="places to tear the last write, beside odd bytes"
    )


def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Cut every scenario of every kind of store everywhere; then leave each sync out."""
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {
        "backbone": "no model",
        "samples": options.samples,
        "sectors": options.sectors,
        "gaps": GAPS,
    }
    for kind in dict.fromkeys(options.stores):
        console.rule(f"{kind} store", align="left")
        with closing(OPENERS[kind]()) as opener, Progress(console=console, transient=True) as progress:
            trial = Trial(
                opener,
                samples=options.samples,
                sectors=options.sectors,
                seed=options.seed,
                gap=known_gap if kind == SORTED else None,
            )
            recordings = {
                name: Recording(kind, name)
                for name in progress.track(SCENARIOS[kind], description="recording")
            }
            scenarios = {
                name: _cut(trial, one, console, kind, name)
                for name, one in progress.track(recordings.items(), description="cutting")
            }
            # A scenario that fails as it is would notice everything.
            sound = {name: one for name, one in recordings.items() if not scenarios[name]["violations"]}
            by_whom = sorted({by for one in sound.values() for by in one.syncs})
            syncs = {
                by: _leave_out(trial, sound, console, kind, by)
                for by in progress.track(by_whom, description="leaving out")
            }
        facts[kind] = {"scenarios": scenarios, "syncs": syncs}
        needed = [one for by, one in syncs.items() if by.startswith(OURS) or by in COMMITS]
        added = ("operations", "crash points", "ways to lose", "violations", "gaps")
        rows.append(
            {
                "store": kind,
                **{what: sum(one[what] for one in scenarios.values()) for what in added},
                # What an unmended Redis makes of a cut is not sorted: all of it is only told.
                "unknown gaps": "–"
                if kind == TOLD_ONLY
                else sum(one["unknown gaps"] for one in scenarios.values()),
                "states opened": trial.states,
                "syncs": sum(sum(one.syncs.values()) for one in recordings.values()),
                "kinds of sync": len(syncs),
                "noticed": sum(bool(one["noticed"]) for one in syncs.values()),
                "needed": len(needed),
                "needed and noticed": sum(bool(one["noticed"]) for one in needed),
            }
        )
    return _outcome(options, rows, facts)


def _outcome(options: argparse.Namespace, rows: list[dict[str, Any]], facts: Mapping[str, Any]) -> Outcome:
    """The verdict. Fewer stores or cuts than all are not the experiment, and are kept under a name of their own."""
    asked = set(options.stores)
    whole = asked == set(OPENERS) and options.samples >= _SAMPLES and options.sectors >= _SECTORS
    judged = [row for row in rows if row["store"] != TOLD_ONLY]
    wanted = _WANTED
    if not whole:
        wanted = f"of a part ({'; '.join(sorted(asked))}): {wanted}"
    if not judged:
        wanted += "; here nothing was judged"
    return Outcome(
        "crash" if whole else "crash-part",
        bool(judged) and {row["store"] for row in rows} == asked and all(_is_good(row) for row in judged),
        wanted,
        options.seed,
        rows,
        facts,
    )


def _is_good(row: Mapping[str, Any]) -> bool:
    return (
        not row["violations"]
        and not row["unknown gaps"]
        and row["crash points"] > 0
        and row["ways to lose"] > 0
        and row["needed and noticed"] == row["needed"] > 0
    )


def _cut(trial: Trial, recording: Recording, console: Console, kind: str, name: str) -> dict[str, Any]:
    """One scenario, cut after every operation."""
    cuts, states = trial.cuts, trial.states
    found = [*trial.violations(recording)]
    counted = [*trial.violations(recording, journal=True)] if kind in GAPS else found
    told = {
        "operations": len(recording.disk.operations),
        "crash points": len(recording.expected),
        "ways to lose": trial.cuts - cuts,
        "new states": trial.states - states,
        "violations": len(counted),
        "gaps": len(found) if kind in GAPS else 0,
        "unknown gaps": sum(not one.gap for one in found) if kind == SORTED else 0,
    }
    console.print(
        f"{name}: " + ", ".join(f"{number:,} {what}" for what, number in told.items()), highlight=False
    )
    return {
        **told,
        "examples": [dataclasses.asdict(one) for one in {(one.kind, one.gap): one for one in found}.values()],
    }


def _leave_out(
    trial: Trial, recordings: Mapping[str, Recording], console: Console, kind: str, by: str
) -> dict[str, Any]:
    """Every scenario in which there is this sync, with it doing nothing, until one cut tells."""
    noticed = {}
    for name, recording in recordings.items():
        if by in recording.syncs:
            first = next(trial.violations(recording, deaf=[by], journal=kind in GAPS), None)
            if first is not None:
                noticed[name] = first.kind
    told = ", ".join(f"{what} ({name})" for name, what in noticed.items()) or "nothing is noticed"
    console.print(f"without {by}: {told}", highlight=False)
    return {"calls": sum(one.syncs[by] for one in recordings.values()), "noticed": noticed}


def _digest(tree: Tree) -> str:
    digest = hashlib.sha256()
    for path, data in sorted(tree.items()):
        digest.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
        digest.update(data or b"")
    return digest.hexdigest()
