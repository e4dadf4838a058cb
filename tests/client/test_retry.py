from __future__ import annotations

import math
import threading
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client import ApiError, InvalidCall, Retries
from client.deadline import Deadline
from client.failure import Failure, retry_after
from client.operation import Repeat
from client.retry import Budget, Tries, wait_before

SECONDS = st.floats(0, 1e6, allow_nan=False)


@given(st.integers(1, 10_000), st.none() | SECONDS, SECONDS, SECONDS, st.floats(0, 1))
def test_waits_grow_up_to_a_bound_and_heed_the_server(
    failures: int, asked: float | None, first: float, longest: float, draw: float
) -> None:
    retries = Retries(first_wait=first, longest_wait=longest)
    wait = wait_before(failures, asked, retries, draw)
    least = asked or 0.0
    assert least <= wait <= least + longest
    # Full jitter: all of the span up to the exponential bound, and nothing beyond it.
    assert wait_before(failures, asked, retries, 0.0) == least
    most = wait_before(failures, None, retries, 1.0)
    assert most == min(longest, first * 2.0 ** min(failures - 1, 100))
    assert (
        wait_before(failures, asked, retries, 1.0) == least + most
    )  # on top, so that those who are told alike spread
    assert most <= wait_before(failures + 1, None, retries, 1.0)


def test_the_bound_doubles() -> None:
    waits = [wait_before(n, None, Retries(first_wait=0.2, longest_wait=1.0), 1.0) for n in range(1, 6)]
    assert waits == [0.2, 0.4, 0.8, 1.0, 1.0]


def test_draws_differ() -> None:
    waits = {_tries().failed(_failure()) for _ in range(20)}
    assert len(waits) == 20


@given(st.text(max_size=60) | st.from_regex(r"[0-9]{1,5000}", fullmatch=True))
@example("9" * 5000)
@example("Sat, 21 Nov 2026 10:00:09 GMT")
@example("Sat, 21 Nov 0000 10:00:09 -9999")
@example("Sat, 21 Nov 9999 23:59:59 -2359")
@example("٣")
def test_any_retry_after_is_a_wait_or_nothing(text: str) -> None:
    for headers in ({"Retry-After": text}, {"Retry-After": "Sat, 21 Nov 2026 10:00:09 GMT", "Date": text}):
        wait = retry_after(headers)
        assert wait is None or (wait >= 0 and math.isfinite(wait))


@pytest.mark.parametrize(
    ("said", "wait"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        ("-1", None),
        ("1.5", None),
        ("Sat, 21 Nov 2026 10:00:09 GMT", 9.0),
        ("Saturday, 21-Nov-26 10:00:09 GMT", 9.0),
        ("Sat Nov 21 10:00:09 2026", 9.0),
        ("Sat, 21 Nov 2026 09:59:00 GMT", 0.0),
    ],
)
def test_retry_after_in_all_its_forms(said: str, wait: float | None) -> None:
    # HTTP has three forms of a date; the server's own clock is what a date is measured by.
    assert retry_after(httpx.Headers({"Retry-After": said, "Date": "Sat, 21 Nov 2026 10:00:00 GMT"})) == wait


def test_without_a_date_our_own_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.failure.time.time", lambda: 1795255200.0)  # 2026-11-21 10:00:00
    assert retry_after({"Retry-After": "Sat, 21 Nov 2026 10:00:09 GMT"}) == 9.0


@given(st.integers(0, 20), st.lists(st.booleans(), max_size=400))
def test_tries_again_are_a_share_of_what_gets_through(burst: int, calls: list[bool]) -> None:
    """Whatever comes: no more tries again than the burst and a tenth of the calls that got through."""
    budget = Budget(Retries(burst=burst, share=0.1))
    through = again = 0
    for call in calls:
        if call:
            budget.fill()
            through += 1
        else:
            again += budget.take()
        assert again <= burst + through / 10 + 1e-6


def test_ten_calls_that_get_through_pay_for_one_again() -> None:
    budget = Budget(Retries(burst=1))
    assert budget.take()
    for _ in range(9):
        budget.fill()
    assert not budget.take()
    budget.fill()
    assert budget.take()
    assert not budget.take()


def test_a_budget_is_not_overdrawn_by_threads() -> None:
    budget, taken, together = Budget(Retries(burst=50)), [], threading.Barrier(8)

    def take() -> None:
        together.wait()
        for _ in range(50):
            if budget.take():
                taken.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 50


@pytest.mark.parametrize("bad", [{"tries": 0}, {"burst": -1}, {"first_wait": float("nan")}, {"share": -0.1}])
def test_a_policy_that_makes_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidCall):
        Retries(**bad)


def test_a_refusal_shows_that_the_server_is_there() -> None:
    """A 404 fills the budget, as an answer does; a 503 does not."""
    budget = Budget(Retries(burst=1, share=1.0))
    assert budget.take()
    for failure, filled in ((_failure(503), False), (_failure(404, passing=False), True)):
        with pytest.raises(ApiError):
            _tries(budget, tries=1).failed(failure)
        assert budget.take() is filled


def _tries(budget: Budget | None = None, **policy: Any) -> Tries:
    retries = Retries(**policy)
    tries = Tries(
        Repeat.FREELY, Deadline.after(None, lambda: 0.0), retries, budget or Budget(retries), "server"
    )
    tries.begin()
    return tries


def _failure(status: int = 503, *, passing: bool = True) -> Failure:
    return Failure(ApiError(status, "c", "d", None), passing=passing, perhaps_done=False)
