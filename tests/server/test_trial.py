import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_store import Target
from server.catalogue import Catalogue, ServedTask
from server.trial import PROBATION, Trials

A, B, C = "a" * 64, "b" * 64, "c" * 64
Targets = tuple[Target, ...]


class World:
    """A catalogue with trials, and a task in it."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.trials = Trials(self.catalogue.detour)
        self.catalogue.listen(self.trials.follow)

    def move(self, *targets: Target, versions: str = A + B + C, **others: Targets) -> None:
        known = frozenset(versions[at : at + 64] for at in range(0, len(versions), 64))
        aliases: Mapping[str, Targets] = {"current": targets, **others} if targets else others
        self.catalogue.put(ServedTask("task", 1, aliases, known, 0))

    def drawn(self) -> set[str]:
        return {self.catalogue.resolve("task", None, f"key-{number}") for number in range(400)}


@pytest.fixture
def world() -> World:
    return World()


def test_a_plain_alias_is_not_on_trial(world: World) -> None:
    world.move(Target(A))
    assert not world.trials.of("task")
    world.move(Target(A))
    assert not world.trials.of("task")


def test_a_split_is_on_trial_for_as_long_as_it_stands(world: World) -> None:
    world.move(Target(A, 95), Target(B, 5))
    trial = world.trials.of("task")["current"]
    assert (trial.until, trial.others(A), trial.others(B)) == (math.inf, [B], [A])
    assert trial.concerns(A)
    assert not trial.concerns(C)
    world.catalogue.drop("task")
    assert not world.trials.of("task")


def test_what_is_out_gets_no_requests_and_stays_out_when_weights_change(world: World) -> None:
    world.move(Target(A, 95), Target(B, 5), Target(C, 5))
    world.trials.of("task")["current"].faults[B] = 2
    world.trials.exclude("task", "current", B, "numerical_error")
    assert world.drawn() == {A, C}
    world.move(Target(A, 50), Target(B, 25), Target(C, 25))
    assert world.drawn() == {A, C}
    assert world.trials.of("task")["current"].faults[B] == 2
    assert world.trials.of("task")["current"].others(A) == [C]
    world.move(Target(A), Target(C))
    assert world.drawn() == {A, C}
    world.move(Target(A), Target(B))  # an operator tries again
    assert world.drawn() == {A, B}
    assert not world.trials.of("task")["current"].faults


def test_what_left_the_store_and_is_there_again_starts_afresh(world: World) -> None:
    world.move(Target(A, 95), Target(B, 5), Target(C, 5))
    trial = world.trials.of("task")["current"]
    for version in (B, C):
        trial.faults[version] = 3
        world.trials.exclude("task", "current", version, "numerical_error")
    world.trials.compare("task", "current", {A, B, C})  # the store was not told yet
    world.trials.compare("task", "current", {A, C})
    assert world.drawn() == {A}
    world.trials.compare("task", "current", {A, B, C})
    assert world.drawn() == {A, B}
    assert (trial.out, trial.faults, trial.gone) == ({C: "numerical_error"}, {C: 3}, set())
    world.trials.compare("task", "current", {A, B})
    world.trials.compare("task", "current", {A, B, C})
    assert world.drawn() == {A, B, C}


def test_what_left_the_store_and_is_there_again_with_another_weight_starts_afresh(world: World) -> None:
    world.move(Target(A, 95), Target(B, 5))
    world.trials.of("task")["current"].faults[B] = 3
    world.trials.exclude("task", "current", B, "numerical_error")
    world.trials.compare("task", "current", {A})
    world.move(Target(A, 90), Target(B, 10))
    assert world.drawn() == {A, B}
    assert not world.trials.of("task")["current"].faults


def test_a_version_that_is_out_and_then_promoted_by_hand_serves(world: World) -> None:
    world.move(Target(A, 95), Target(B, 5))
    world.trials.exclude("task", "current", B, "numerical_error")
    world.move(Target(B))
    assert world.drawn() == {B}
    assert world.trials.of("task")["current"].fallback == A


def test_a_move_has_what_served_before_to_fall_back_on(world: World) -> None:
    world.move(Target(A))
    world.move(Target(B))
    trial = world.trials.of("task")["current"]
    assert (trial.fallback, trial.others(B)) == (A, [A])
    world.trials.exclude("task", "current", B, "numerical_error")
    assert world.drawn() == {A}
    world.move(Target(A))
    assert not world.trials.of("task")  # A has proved itself: nothing to fall back on is needed
    assert world.drawn() == {A}


def test_a_version_that_has_not_proved_itself_is_nobodys_fallback(world: World) -> None:
    world.move(Target(A))
    world.move(Target(B))
    world.move(Target(C))
    assert world.trials.of("task")["current"].fallback == A


def test_the_fallback_after_a_split_is_what_had_most_of_it(world: World) -> None:
    world.move(Target(A, 95), Target(B, 5))
    world.move(Target(B))
    assert world.trials.of("task")["current"].fallback == A
    world.move(Target(A, 95), Target(B, 5))
    world.move(Target(A))
    assert not world.trials.of("task")


def test_a_deleted_version_is_nobodys_fallback(world: World) -> None:
    world.move(Target(A))
    world.move(Target(B), versions=B + C)
    assert not world.trials.of("task")


def test_probation_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.move(Target(A))
    world.move(Target(B))
    trial = world.trials.of("task")["current"]
    assert trial.concerns(B)
    now = trial.until
    monkeypatch.setattr("server.trial.time.monotonic", lambda: now + 1)
    assert not trial.concerns(B)
    world.move(Target(C))
    after = world.trials.of("task")["current"]
    assert after.fallback == B
    assert after.until == now + 1 + PROBATION


def test_trials_that_are_over_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    clock = [0.0]
    monkeypatch.setattr("server.trial.time.monotonic", lambda: clock[0])
    for number in range(3000):
        clock[0] += 1
        for version in (A, B):
            world.catalogue.put(
                ServedTask(f"t{number}", 1, {"current": (Target(version),)}, frozenset([A, B]), 0)
            )
    kept = sum(bool(world.trials.of(f"t{number}")) for number in range(3000))
    assert 600 <= kept <= 2500


def test_aliases_are_tried_apart_and_a_deleted_one_is_forgotten(world: World) -> None:
    split = (Target(A, 9), Target(B, 1))
    world.move(*split, beta=split)
    world.trials.exclude("task", "beta", B, "inference_failed")
    assert world.drawn() == {A, B}
    assert world.catalogue.resolve("task", "beta", "x") == A
    world.move(*split)
    assert set(world.trials.of("task")) == {"current"}
    world.move(*split, beta=split)
    assert world.catalogue.targets("task", "beta") == split


moves = st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3, unique=True)


@given(st.lists(st.tuples(moves, st.booleans(), st.integers(0, 2)), max_size=12))
def test_whatever_happens_something_serves_that_is_known(steps: list[tuple[list[str], bool, int]]) -> None:
    world = World()
    for versions, fails, which in steps:
        world.move(*map(Target, versions))
        trial = world.trials.of("task").get("current")
        version = versions[which % len(versions)]
        if fails and trial is not None and trial.concerns(version) and trial.others(version):
            world.trials.exclude("task", "current", version, "numerical_error")
            assert version not in world.drawn()
        assert world.drawn() <= {A, B, C}
        assert world.drawn()
