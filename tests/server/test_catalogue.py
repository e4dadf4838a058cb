from collections import Counter

import pytest

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


def test_a_dropped_task_is_unknown(catalogue: Catalogue) -> None:
    catalogue.drop("task")
    catalogue.drop("task")
    assert len(catalogue) == 0
    with pytest.raises(UnknownTask):
        catalogue.resolve("task", None, "r")
