"""The law of writes: whatever is lost on the way, nothing takes effect twice, and what the caller is told is true."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
from hypothesis import given
from hypothesis import strategies as st

from client import ApiError, OutcomeUnknown, Retries, UnreachableError
from tests.client.conftest import Asker
from tests.client.misbehaving import ACKNOWLEDGED, VERSION

Fate = Literal[
    "answered", "refused", "busy", "starting", "lost", "done and lost", "failed", "done and failed"
]
FATES: list[Fate] = [
    "answered", "refused", "busy", "starting", "lost", "done and lost", "failed", "done and failed",
]  # fmt: skip
DOUBTFUL = {"lost", "done and lost", "failed", "done and failed"}


class Store:
    """An alias by compare-and-set, and a version that is put back by somebody else whenever it is deleted."""

    def __init__(self, fates: list[Fate], rival_before: int) -> None:
        self._fates, self._rival_before = list(fates), rival_before
        self.revision, self.moved, self.deleted, self.asked = 6, 0, 0, 0
        self.doubtful = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        fate = self._fates.pop(0) if self._fates else "answered"
        if self.asked == self._rival_before:
            self.revision += 1  # somebody else was faster
        if fate == "refused":
            raise httpx.ConnectError("refused", request=request)
        self.asked += 1
        self.doubtful += fate in DOUBTFUL
        if fate in ("busy", "starting"):
            status, code = (429, "overloaded") if fate == "busy" else (503, "not_ready")
            return httpx.Response(status, json={"code": code})
        done = httpx.Response(500)
        if fate in ("answered", "done and lost", "done and failed"):
            done = self._do(request)
        if fate in ("lost", "done and lost"):
            raise httpx.ReadError("reset", request=request)
        return done if fate == "answered" else httpx.Response(503, json={"code": "store_unavailable"})

    def _do(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            self.deleted += 1
            return httpx.Response(200, json=ACKNOWLEDGED)
        assert json.loads(request.content)["version"] == VERSION
        # Somebody deletes whatever is created: what is not there is never a guard for long.
        created = request.headers.get("if-none-match") == "*"
        if not created and request.headers["if-match"] != f'"{self.revision}"':
            return httpx.Response(412, json={"code": "revision_conflict"})
        self.revision += 1
        self.moved += 1
        return httpx.Response(200, json=ACKNOWLEDGED)


def outcome(ask: Asker, store: Store, do: Any) -> Exception | None:
    try:
        ask("http://server", do, admin=True, transport=httpx.MockTransport(store), retries=Retries(tries=5))
    except (ApiError, UnreachableError, OutcomeUnknown) as error:
        return error
    return None


@given(fates=st.lists(st.sampled_from(FATES), max_size=6), rival_before=st.integers(0, 6))
def test_a_guarded_move(fates: list[Fate], rival_before: int) -> None:
    for kind in ("sync", "async"):
        store = Store(fates, rival_before)
        told = outcome(Asker(kind), store, lambda c: c.rollback("t", VERSION, revision=6))
        assert store.moved <= 1
        if told is None:
            assert store.moved == 1
        elif not isinstance(told, OutcomeUnknown):
            assert store.moved == 0


@given(fates=st.lists(st.sampled_from(FATES), max_size=6))
def test_a_delete(fates: list[Fate]) -> None:
    for kind in ("sync", "async"):
        store = Store(fates, -1)
        told = outcome(Asker(kind), store, lambda c: c.delete_version("t", VERSION))
        # Not even what was merely lost is sent again: nobody could tell it from what was done.
        assert store.deleted <= 1
        assert store.doubtful <= 1
        if told is None:
            assert (store.deleted, store.doubtful) == (1, 0)
        elif not isinstance(told, OutcomeUnknown):
            assert store.deleted == 0


@given(fates=st.lists(st.sampled_from(FATES), max_size=6))
def test_a_creation(fates: list[Fate]) -> None:
    for kind in ("sync", "async"):
        store = Store(fates, -1)
        told = outcome(Asker(kind), store, lambda c: c.set_alias("t", "new", VERSION, revision=0))
        assert store.moved <= 1
        assert store.doubtful <= 1
        if told is None:
            assert store.moved == 1
        elif not isinstance(told, OutcomeUnknown):
            assert store.moved == 0
