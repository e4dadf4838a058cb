import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_store import InvalidAlias, InvalidTaskId, Target, UnknownAlias, UnknownTask, UnknownVersion
from server.catalogue import Catalogue, Problem, ServedTask
from server.errors import PromptUnavailable

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def catalogue() -> Catalogue:
    aliases = {"current": (Target(A),), "mixed": (Target(A, 3), Target(B, 1))}
    problems = {"broken": Problem((C,), "corrupt_version", "", 0.0)}
    catalogue = Catalogue()
    catalogue.put(ServedTask("task", 1, aliases, frozenset([A, B]), 0, problems))
    return catalogue


def test_names_become_digests(catalogue: Catalogue) -> None:
    assert catalogue.resolve("task", None, "r") == A
    assert catalogue.resolve("task", "current", "r") == A
    assert catalogue.resolve("task", B, "r") == B


@pytest.mark.parametrize(
    ("task_id", "selector", "error"),
    [
        ("nope", None, UnknownTask),
        ("No", None, InvalidTaskId),
        ("", None, InvalidTaskId),
        ("task\n", None, InvalidTaskId),
        ("task", C, UnknownVersion),
        ("task", "nope", UnknownAlias),
        ("task", "", InvalidAlias),
        ("task", A.upper(), InvalidAlias),
        ("task", "broken", PromptUnavailable),
    ],
)
def test_names_that_lead_nowhere(
    catalogue: Catalogue, task_id: str, selector: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        catalogue.resolve(task_id, selector, "r")


def test_weights_share_requests_and_an_id_always_draws_the_same(catalogue: Catalogue) -> None:
    drawn = Counter(catalogue.resolve("task", "mixed", f"request {number}") for number in range(4000))
    assert set(drawn) == {A, B}
    assert 0.20 < drawn[B] / 4000 < 0.30
    assert len({catalogue.resolve("task", "mixed", "one id") for _ in range(50)}) == 1


VERSIONS = [f"{number:064x}" for number in range(5)]
keys = st.text("abcXYZ019._:/+=-", min_size=1, max_size=40)
weights = st.integers(1, 1_000_000)


def drawn_by(targets: tuple[Target, ...], key: str, task_id: str = "task") -> str:
    catalogue = Catalogue()
    catalogue.put(ServedTask(task_id, 1, {"current": targets}, frozenset(VERSIONS), 0))
    return catalogue.resolve(task_id, None, key)


@given(key=keys, before=st.lists(weights, min_size=2, max_size=5), which=st.integers(0, 4), more=weights)
def test_a_target_that_gains_weight_keeps_every_key_and_nobody_else_moves(
    key: str, before: list[int], which: int, more: int
) -> None:
    which %= len(before)
    after = [weight + more if at == which else weight for at, weight in enumerate(before)]
    old = drawn_by(tuple(map(Target, VERSIONS, before)), key)
    new = drawn_by(tuple(map(Target, VERSIONS, after)), key)
    assert new in (old, VERSIONS[which])  # a key stays, or goes to the one that gained


@given(key=keys, given_weights=st.lists(weights, min_size=3, max_size=5), gone=st.integers(0, 4))
def test_a_target_that_goes_leaves_the_keys_of_the_others_alone(
    key: str, given_weights: list[int], gone: int
) -> None:
    targets = tuple(map(Target, VERSIONS, given_weights))
    left = tuple(target for at, target in enumerate(targets) if at != gone % len(targets))
    old = drawn_by(targets, key)
    assert old == targets[gone % len(targets)].version or drawn_by(left, key) == old


@given(key=keys, pairs=st.lists(weights, min_size=2, max_size=4).map(lambda w: list(zip(VERSIONS, w, strict=False))),
       random=st.randoms())  # fmt: skip
def test_a_draw_rests_on_nothing_but_the_key_and_the_weights(
    key: str, pairs: list[tuple[str, int]], random: object
) -> None:
    """Not on the order of the targets, nor on the server: every replica draws the same."""
    targets = [Target(*pair) for pair in pairs]
    first = drawn_by(tuple(targets), key)
    random.shuffle(targets)  # type: ignore[attr-defined]
    assert drawn_by(tuple(targets), key) == first


@given(
    share=st.sampled_from([(95, 5), (50, 50), (99, 1), (1, 3)]),
    task_id=st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
    salt=st.integers(0, 10**9),
)
def test_shares_are_as_the_weights_say(share: tuple[int, int], task_id: str, salt: int) -> None:
    targets, number = tuple(map(Target, VERSIONS, share)), 2000
    got = sum(drawn_by(targets, f"user-{salt + at}", task_id) == VERSIONS[1] for at in range(number))
    wanted = share[1] / sum(share)
    assert abs(got - number * wanted) < 6 * math.sqrt(number * wanted * (1 - wanted)) + 1


def test_tasks_draw_independently() -> None:
    """A user who is on the canary of one task is no more likely to be on that of another."""
    targets = (Target(A), Target(B))
    one = [drawn_by(targets, f"user-{at}", "one") == B for at in range(4000)]
    two = [drawn_by(targets, f"user-{at}", "two") == B for at in range(4000)]
    both = sum(a and b for a, b in zip(one, two, strict=True))
    assert abs(both - 1000) < 6 * math.sqrt(4000 * 0.25 * 0.75)


def test_a_detour_leads_past_what_the_store_says_until_it_ends(catalogue: Catalogue) -> None:
    catalogue.detour("task", "current", (Target(B),))
    assert catalogue.resolve("task", None, "r") == B
    assert catalogue.targets("task", "current") == (Target(B),)
    assert catalogue.resolve("task", A, "r") == A  # a digest is a digest
    catalogue.detour("task", "current", None)
    catalogue.detour("task", "current", None)
    assert catalogue.resolve("task", None, "r") == A
    assert catalogue.targets("task", "nope") == catalogue.targets("nope", "current") == ()


def test_it_knows_what_is_missing_and_what_has_problems(catalogue: Catalogue) -> None:
    assert (catalogue.missing, catalogue.troubled) == (set(), {"task"})
    task = catalogue.get("task")
    assert task is not None
    catalogue.put(replace(task, missing_in_store=True))
    assert (catalogue.missing, catalogue.troubled) == ({"task"}, set())
    catalogue.put(replace(task, problems={}))
    assert (catalogue.missing, catalogue.troubled) == (set(), set())
    catalogue.put(replace(task, missing_in_store=True))
    catalogue.drop("task")
    assert (catalogue.missing, catalogue.troubled) == (set(), set())


def test_an_alias_lags_from_the_revision_on_that_was_refused(catalogue: Catalogue) -> None:
    problems = {"current": Problem((C,), "corrupt_version", "", 0.0, revision=7)}
    catalogue.put(ServedTask("task", 9, {"current": (Target(A),)}, [A, B], 0, problems))
    assert not catalogue.lags("task", None, 6)
    assert catalogue.lags("task", None, 7)
    assert catalogue.lags("task", "current", 8)
    assert not catalogue.lags("task", A, 8)
    assert not catalogue.lags("nope", None, 8)
    # Nothing else answers in its stead: it leads to what was refused.
    catalogue.put(ServedTask("task", 9, {"current": (Target(C),)}, [A, C], 0, problems))
    assert not catalogue.lags("task", None, 8)


def test_which_versions_aliases_lead_to(catalogue: Catalogue) -> None:
    assert catalogue.leads_to("task", B)
    assert not catalogue.leads_to("task", C)
    assert not catalogue.leads_to("nope", A)


def test_listeners_hear_of_every_change(catalogue: Catalogue) -> None:
    heard: list[tuple[str, bool, bool]] = []
    catalogue.listen(lambda task_id, before, now: heard.append((task_id, before is None, now is None)))
    catalogue.put(ServedTask("new", 1, {}, frozenset(), 0))
    catalogue.put(ServedTask("new", 2, {}, frozenset(), 0))
    catalogue.drop("new")
    assert heard == [("new", True, False), ("new", False, False), ("new", False, True)]


def test_a_dropped_task_is_unknown(catalogue: Catalogue) -> None:
    catalogue.drop("task")
    catalogue.drop("task")
    assert len(catalogue) == 0
    with pytest.raises(UnknownTask):
        catalogue.resolve("task", None, "r")
