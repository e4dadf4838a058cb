"""Any sequence of calls on a store gives what a few dictionaries give."""

import asyncio
import itertools
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from prompt_store import (
    CorruptVersion,
    PromptStore,
    PromptStoreError,
    Revision,
    RevisionConflict,
    Target,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
    version_of,
)

TASKS = ("a", "b")
ALIASES = ("current", "canary")
SEEDS = (0, 1, 2)


class Model:
    """The contract in memory: no files, no processes, no time."""

    def __init__(self) -> None:
        self.number = 0
        self.versions: dict[str, list[str]] = {}  # of living tasks, oldest first
        self.aliases: dict[str, dict[str, tuple[tuple[Target, ...], int]]] = {}
        self.actions: dict[str, list[str]] = {}
        self.changed: dict[str, int] = {}

    def change(self, task: str, action: str) -> int:
        self.number += 1
        self.changed[task] = self.number
        self.actions.setdefault(task, []).append(action)
        return self.number

    def need(self, task: str) -> None:
        if task not in self.versions:
            raise UnknownTask

    def compare(self, task: str, alias: str, expected: int | None) -> None:
        current = self.aliases[task].get(alias, ((), 0))[1]
        if expected is not None and expected != current:
            raise RevisionConflict("", current=current)

    def publish(self, task: str, version: str) -> bool:
        if version in self.versions.get(task, ()):
            return False
        self.change(task, "publish")
        self.versions.setdefault(task, []).append(version)
        self.aliases.setdefault(task, {})
        return True

    def set_alias(self, task: str, alias: str, targets: tuple[Target, ...], expected: int | None) -> int:
        self.need(task)
        self.compare(task, alias, expected)
        if not {target.version for target in targets} <= set(self.versions[task]):
            raise UnknownVersion
        number = self.change(task, "alias")
        self.aliases[task][alias] = (targets, number)
        return number

    def delete_alias(self, task: str, alias: str, expected: int | None) -> None:
        self.need(task)
        self.compare(task, alias, expected)
        if alias not in self.aliases[task]:
            raise UnknownAlias
        del self.aliases[task][alias]
        self.change(task, "delete_alias")

    def delete_version(self, task: str, version: str) -> None:
        self.need(task)
        if any(version == target.version for targets, _ in self.aliases[task].values() for target in targets):
            raise VersionInUse
        if version not in self.versions[task]:
            raise UnknownVersion
        self.versions[task].remove(version)
        self.change(task, "delete_version")

    def delete_task(self, task: str, force: bool) -> None:
        self.need(task)
        if self.aliases[task] and not force:
            raise VersionInUse
        del self.versions[task], self.aliases[task]
        self.change(task, "delete_task")


def outcome(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What `call` returns, or which of our errors it raises."""
    try:
        return call(), None
    except PromptStoreError as error:
        return None, error


def test_a_store_does_what_the_model_does(
    make_backend: Callable[[Path], Any], build: Any, tmp_path: Path
) -> None:
    files = {(task, seed): build.prompt(task, seed) for task, seed in itertools.product(TASKS, SEEDS)}
    names = {key: version_of(data) for key, data in files.items()}

    tasks, aliases, seeds = st.sampled_from(TASKS), st.sampled_from(ALIASES), st.sampled_from(SEEDS)
    expectations = st.sampled_from(["right", "right", "absent", "any", "stale"])

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.folder = tempfile.TemporaryDirectory(dir=tmp_path)
            self.backend = make_backend(Path(self.folder.name) / "store")
            self.store: PromptStore = self.backend.open()
            self.model = Model()
            self.epoch = self.run(self.store.revision()).epoch
            self.seen = 0
            self.damaged: set[str] = set()

        def run(self, call: Coroutine[Any, Any, Any]) -> Any:
            return self.runner.run(call)

        def both(self, call: Coroutine[Any, Any, Any], expected: Any) -> Any:
            """Run `call`, and `expected` on the model: the same error from both, or from none."""
            want, wanted_error = outcome(expected)
            got, error = outcome(lambda: self.run(call))
            assert type(error) is type(wanted_error)
            if isinstance(error, RevisionConflict):
                assert error.current == wanted_error.current
            return got, want

        def expected_revision(self, task: str, alias: str, kind: str) -> int | None:
            current = self.model.aliases.get(task, {}).get(alias, ((), 0))[1]
            return {"right": current, "absent": 0, "any": None, "stale": current - 1}[kind]

        @rule(task=tasks, seed=seeds)
        def publish(self, task: str, seed: int) -> None:
            got, created = self.both(
                self.store.publish(files[task, seed]), lambda: self.model.publish(task, names[task, seed])
            )
            assert (got.version, got.created) == (names[task, seed], created)
            assert got.revision == Revision(self.epoch, self.model.number)
            self.damaged.discard(got.version)

        @rule(task=tasks, alias=aliases, chosen=st.sets(seeds, min_size=1), kind=expectations)
        def set_alias(self, task: str, alias: str, chosen: set[int], kind: str) -> None:
            expected = self.expected_revision(task, alias, kind)
            targets = tuple(Target(names[task, seed], seed + 1) for seed in sorted(chosen))
            got, number = self.both(
                self.store.set_alias(task, alias, targets, expected_revision=expected),
                lambda: self.model.set_alias(task, alias, targets, expected),
            )
            assert got is None or (got.alias.targets, got.alias.revision) == (targets, number)

        @rule(task=tasks, alias=aliases, kind=expectations)
        def delete_alias(self, task: str, alias: str, kind: str) -> None:
            expected = self.expected_revision(task, alias, kind)
            self.both(
                self.store.delete_alias(task, alias, expected_revision=expected),
                lambda: self.model.delete_alias(task, alias, expected),
            )

        @rule(task=tasks, seed=seeds)
        def delete_version(self, task: str, seed: int) -> None:
            version = names[task, seed]
            self.both(
                self.store.delete_version(task, version), lambda: self.model.delete_version(task, version)
            )

        @rule(task=tasks, force=st.booleans())
        def delete_task(self, task: str, force: bool) -> None:
            self.both(self.store.delete_task(task, force=force), lambda: self.model.delete_task(task, force))

        @rule()
        def collect(self) -> None:
            self.run(self.store.collect(grace=0))
            assert self.run(self.store.collect(grace=0)).blobs == 0

        @rule()
        def open_again(self) -> None:
            self.run(self.store.aclose())
            self.store = self.backend.open()

        @precondition(lambda self: any(self.model.versions.values()))
        @rule(data=st.data())
        def damage(self, data: st.DataObject) -> None:
            present = {version for versions in self.model.versions.values() for version in versions}
            version = data.draw(st.sampled_from(sorted(present - self.damaged) or sorted(present)))
            if version not in self.damaged:
                self.backend.damage(version, data.draw(st.sampled_from([None, b"", b"other"])))
                self.damaged.add(version)

        @invariant()
        def lists_the_same(self) -> None:
            page = self.run(self.store.list())
            assert page.revision == Revision(self.epoch, self.model.number)
            assert {
                task.task_id: [record.version for record in task.versions][::-1] for task in page.tasks
            } == (self.model.versions)
            assert {
                task.task_id: {name: (alias.targets, alias.revision) for name, alias in task.aliases.items()}
                for task in page.tasks
            } == self.model.aliases
            assert all(task.revision == self.model.changed[task.task_id] for task in page.tasks)

        @invariant()
        def gets_the_same(self) -> None:
            for (task, seed), version in names.items():
                if version in self.model.versions.get(task, ()):
                    if version in self.damaged:
                        with pytest.raises(CorruptVersion):
                            self.run(self.store.get(task, version))
                    else:
                        assert self.run(self.store.get(task, version)) == files[task, seed]

        @invariant()
        def tells_the_same(self) -> None:
            for task, actions in self.model.actions.items():
                assert [event.action for event in self.run(self.store.history(task))][::-1] == actions
            changes = self.run(self.store.watch(Revision(self.epoch, self.seen), timeout=0))
            assert set(changes.tasks) == {task for task, at in self.model.changed.items() if at > self.seen}
            self.seen = self.model.number

        def teardown(self) -> None:
            self.run(self.store.aclose())
            self.runner.close()
            self.folder.cleanup()

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
