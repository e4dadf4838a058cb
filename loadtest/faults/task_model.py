"""One task of a prompt store as a sequential object: what each call may answer in each state.

Owns: the contract of `prompt_store.store`, one call at a time. Must not know: time, concurrency, any backend.

A write whose answer was lost may have happened without anybody having been told its revision. Such a revision is a
range, from the change before it to the change after it, which the first answer that names it narrows to one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from prompt_store import Target, TaskRecord

Action = Literal["publish", "set_alias", "delete_alias", "delete_version", "delete_task", "task", "get"]
READS: Final = frozenset({"task", "get"})
_OPEN: Final = 1 << 62  # the upper end of a revision that nobody has named yet


class Span(NamedTuple):
    """A revision that lies in `low … high`."""

    low: int
    high: int

    def __str__(self) -> str:
        if self.low == self.high:
            return str(self.low)
        return f"{self.low} or later" if self.high == _OPEN else f"{self.low}…{self.high}"


_NO_CHANGE: Final = Span(0, 0)


class Alias(NamedTuple):
    """Where an alias leads, and the revision that a compare-and-set names."""

    targets: tuple[Target, ...]
    revision: Span


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked."""

    action: Action
    task: str
    version: str = ""
    alias: str = ""
    targets: tuple[Target, ...] = ()
    expected: int | None = None
    force: bool = False

    def __str__(self) -> str:
        words: list[str] = [self.action]
        if self.alias:
            words.append(self.alias)
        if self.targets:
            words.append("→ " + shown_targets(self.targets))
        if self.version:
            words.append(self.version[:6])
        if self.expected is not None:
            words.append(f"if at {self.expected}")
        return " ".join(words) + (" by force" if self.force else "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: an error's code, or what the call gives."""

    error: str = ""
    epoch: str = ""
    revision: int = 0  # of a write that succeeded: its receipt's
    alias_revision: int = 0  # of set_alias
    created: bool = True  # of publish
    current: int = 0  # of a RevisionConflict
    record: TaskRecord | None = None  # of task

    def __str__(self) -> str:
        if self.error:
            return self.error + (f", it is at {self.current}" if self.error == "revision_conflict" else "")
        if self.record is not None:
            aliases = (
                f"{a.name} → {shown_targets(a.targets)} at {a.revision}" for a in self.record.aliases.values()
            )
            versions = " ".join(record.version[:6] for record in self.record.versions)
            return f"[{versions}] {', '.join(aliases) or 'no alias'}, revision {self.record.revision}"
        return ("" if self.created else "was there, ") + (
            f"revision {self.revision}" if self.revision else "ok"
        )


@dataclass(frozen=True, slots=True)
class State:
    """A task: `versions` newest first, `last` the revision of its last change."""

    exists: bool = False
    versions: tuple[str, ...] = ()
    aliases: tuple[tuple[str, Alias], ...] = ()
    last: Span = _NO_CHANGE

    def alias(self, name: str) -> Alias | None:
        """The alias of that name."""
        return dict(self.aliases).get(name)

    def __str__(self) -> str:
        if not self.exists:
            return f"no such task, last change {self.last}"
        aliases = (
            f"{name} → {shown_targets(alias.targets)} at {alias.revision}" for name, alias in self.aliases
        )
        versions = " ".join(version[:6] for version in self.versions)
        return f"[{versions}] {', '.join(aliases) or 'no alias'}, last change {self.last}"


def shown_targets(targets: tuple[Target, ...]) -> str:
    """Targets, short enough for a line."""
    return "+".join(f"{target.version[:6]}×{target.weight}" for target in targets)


def step(state: State, call: Call, answer: Answer | None) -> State | str:
    """The state after `call` was made in `state` and answered so, or in words why it cannot have been.

    No answer: the call changed something, and nobody was told.
    """
    refusals = _refusals(state, call)
    if answer is not None and answer.error:
        if answer.error not in refusals:
            return f"nothing allows {answer.error} here"
        if answer.error != "revision_conflict":
            return state
        if answer.current == call.expected:
            return "a conflict with the very revision that was expected"
        return _observe(state, call.alias, answer.current)
    if call.action in READS:
        if refusals:
            return f"this can only be {' or '.join(sorted(refusals))}"
        return state if answer is None or answer.record is None else _read(state, answer.record)
    if certain := refusals - {"revision_conflict"}:
        return f"this can only be {' or '.join(sorted(certain))}"
    if call.expected is not None:
        expected = _observe(state, call.alias, call.expected)
        if isinstance(expected, str):
            return expected
        state = expected
    if call.action == "publish" and call.version in state.versions:
        return _published_again(state, answer)
    if answer is not None and not answer.created:
        return "the version was not there"
    if answer is not None and call.action == "set_alias" and answer.alias_revision != answer.revision:
        return f"the alias got revision {answer.alias_revision}, its change was {answer.revision}"
    return _changed(state, call, answer)


def _refusals(state: State, call: Call) -> set[str]:
    """The errors that the contract has for this call in this state; of several, any may be the answer."""
    if call.action == "publish":
        return set()
    if not state.exists:
        return {"unknown_task"}
    found: set[str] = set()
    if call.expected is not None:
        found.add("revision_conflict")  # or not: the revision decides
    wanted = {target.version for target in call.targets} | ({call.version} if call.version else set())
    if not wanted <= set(state.versions):
        found.add("unknown_version")
    if call.action == "delete_alias" and state.alias(call.alias) is None:
        found.add("unknown_alias")
    if call.action == "delete_task" and state.aliases and not call.force:
        found.add("version_in_use")
    if call.action == "delete_version" and any(
        call.version == target.version for _, alias in state.aliases for target in alias.targets
    ):
        found.add("version_in_use")
    return found


def _observe(state: State, name: str, revision: int) -> State | str:
    """The state, knowing that this alias is at `revision` (0: there is none)."""
    alias = state.alias(name)
    if alias is None:
        return state if revision == 0 else f"{name} does not exist, so it is not at {revision}"
    if not alias.revision.low <= revision <= alias.revision.high:
        return f"{name} is at {alias.revision}, not at {revision}"
    # What happened at a known revision orders what is still open on either side of it.
    known = dict(state.aliases) | {name: alias._replace(revision=Span(revision, revision))}
    last = Span(max(state.last.low, revision), state.last.high)
    return replace(state, aliases=tuple(sorted(known.items())), last=last)


def _read(state: State, record: TaskRecord) -> State | str:
    versions = tuple(version.version for version in record.versions)
    if versions != state.versions:
        return f"the versions are [{' '.join(v[:6] for v in state.versions)}]"
    if set(record.aliases) != {name for name, _ in state.aliases}:
        return f"the aliases are [{' '.join(name for name, _ in state.aliases)}]"
    for name, alias in state.aliases:
        if record.aliases[name].targets != alias.targets:
            return f"{name} leads to {shown_targets(alias.targets)}"
        seen = _observe(state, name, record.aliases[name].revision)
        if isinstance(seen, str):
            return seen
        state = seen
    if not state.last.low <= record.revision <= state.last.high:
        return f"the last change was {state.last}, not {record.revision}"
    return replace(_closed(state, record.revision), last=Span(record.revision, record.revision))


def _published_again(state: State, answer: Answer | None) -> State | str:
    if answer is None:
        return "the version is there: nothing to do"
    if answer.created:
        return "the version was there already"
    if answer.revision < state.last.low:
        return f"the history stood at {state.last} already, not at {answer.revision}"
    return state


def _changed(state: State, call: Call, answer: Answer | None) -> State | str:
    """The state after one change, at the revision that was answered or at one that is still open."""
    if answer is None:
        now = Span(state.last.low + 1, _OPEN)
    elif answer.revision <= state.last.low:
        return f"the last change was {state.last}: the next cannot be {answer.revision}"
    else:
        now = Span(answer.revision, answer.revision)
        state = _closed(state, answer.revision - 1)
    aliases: Mapping[str, Alias] = dict(state.aliases)
    versions = state.versions
    if call.action == "publish":
        versions = (call.version, *versions)
    elif call.action == "set_alias":
        aliases = {**aliases, call.alias: Alias(call.targets, now)}
    elif call.action == "delete_alias":
        aliases = {name: alias for name, alias in aliases.items() if name != call.alias}
    elif call.action == "delete_version":
        versions = tuple(version for version in versions if version != call.version)
    else:
        return State(last=now)
    return State(True, versions, tuple(sorted(aliases.items())), now)


def _closed(state: State, high: int) -> State:
    """The state, knowing that everything in it happened at `high` or before."""
    aliases = tuple(
        (name, alias._replace(revision=Span(alias.revision.low, min(alias.revision.high, high))))
        for name, alias in state.aliases
    )
    return replace(state, aliases=aliases)
