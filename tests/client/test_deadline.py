"""The law of deadlines: a call ends by its deadline, whatever the server does; by a clock that only waits move."""

from __future__ import annotations

import ssl

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import Answer, ApiError, AsyncClient, Client, ClientError, DeadlineExceeded, Retries
from client.deadline import Deadline, Left
from tests.client.virtual_time import AsyncBackend, Backend, Clock, Exchange, run_in

DELAY = st.sampled_from([0.0, 0.01, 0.3, 1.0, 5.0]) | st.floats(0, 50)
EXCHANGES = st.builds(
    Exchange,
    connect=DELAY,
    head=DELAY,
    part=st.sampled_from([0.0, 0.01, 0.2, 5.0]),
    write=DELAY,
    status=st.sampled_from([200, 429, 503, 404]),
    retry_after=st.none() | st.integers(0, 20),
)
RETRIES = Retries(tries=6)
TLS = ssl.create_default_context()  # once: to load all certificates takes longer than any call here
STEP = 1e-6  # what adding up floats may cost
TICK = 1e-3  # an event loop wakes at its next tick


def blocking(clock: Clock, script: list[Exchange], timeout: float | None) -> Answer | ClientError:
    transport = httpx.HTTPTransport(verify=TLS)
    transport._pool._network_backend = Backend(script, clock)
    with Client(
        "http://server",
        transport=transport,
        timeout=timeout,
        retries=RETRIES,
        clock=clock.time,
        sleep=clock.sleep,
    ) as client:
        try:
            return client.classify("t", "x")
        except ClientError as error:
            return error


def awaiting(clock: Clock, script: list[Exchange], timeout: float | None) -> Answer | ClientError:
    async def ask() -> Answer | ClientError:
        transport = httpx.AsyncHTTPTransport(verify=TLS)
        transport._pool._network_backend = AsyncBackend(script)
        async with AsyncClient(
            "http://server", transport=transport, timeout=timeout, retries=RETRIES
        ) as client:
            try:
                return await client.classify("t", "x")
            except ClientError as error:
                return error

    return run_in(clock, ask())


@pytest.mark.parametrize(("ask", "grain"), [(blocking, STEP), (awaiting, TICK)])
@settings(max_examples=300)
@given(script=st.lists(EXCHANGES, min_size=1, max_size=5), timeout=st.floats(0.05, 60))
def test_no_call_takes_longer_than_its_timeout(
    ask: object, grain: float, script: list[Exchange], timeout: float
) -> None:
    clock = Clock()
    began = clock.now
    told = ask(clock, script, timeout)  # type: ignore[operator]
    spent = clock.now - began
    assert spent <= timeout + grain
    if isinstance(told, DeadlineExceeded):
        assert spent >= timeout - grain  # and none gives up early without saying what else went wrong


@pytest.mark.parametrize("ask", [blocking, awaiting])
@pytest.mark.parametrize(
    "slow", [Exchange(connect=99), Exchange(head=99), Exchange(part=1.0), Exchange(write=99)]
)
def test_each_phase_is_cut(ask: object, slow: Exchange) -> None:
    clock = Clock()
    told = ask(clock, [slow], 3.0)  # type: ignore[operator]
    assert isinstance(told, DeadlineExceeded)
    assert clock.now == pytest.approx(1003, abs=TICK)


@pytest.mark.parametrize("ask", [blocking, awaiting])
def test_phases_share_the_time(ask: object) -> None:
    clock = Clock()
    told = ask(clock, [Exchange(connect=1.4, head=1.4, write=1.4)], 3.0)  # type: ignore[operator]
    assert isinstance(told, DeadlineExceeded)
    assert clock.now == pytest.approx(1003, abs=TICK)


@pytest.mark.parametrize("ask", [blocking, awaiting])
def test_without_an_end_it_waits(ask: object) -> None:
    clock = Clock()
    slow = Exchange(connect=500, head=500, part=70)
    assert isinstance(ask(clock, [slow], None), Answer)  # type: ignore[operator]
    assert clock.now > 2000


@pytest.mark.parametrize("ask", [blocking, awaiting])
def test_a_wait_that_does_not_fit_is_not_begun(ask: object) -> None:
    clock = Clock()
    told = ask(clock, [Exchange(head=1, status=503, retry_after=10)], 8.0)  # type: ignore[operator]
    assert isinstance(told, ApiError)
    assert clock.now == pytest.approx(1001, abs=TICK)


def test_what_is_left_is_said_anew() -> None:
    clock = Clock()
    left = Left(Deadline.after(5.0, clock.time))
    clock.sleep(2.0)
    assert (float(left), left.now()) == (5.0, 3.0)
    assert Left(Deadline.after(-1.0, clock.time)) == 0.0


def test_a_proxy_of_the_environment_keeps_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    clock = Clock()
    with Client("http://server", timeout=3.0, clock=clock.time) as client:
        (mounted,) = [one for one in client._http._mounts.values() if one is not None]
        pool = mounted._pool  # type: ignore[attr-defined]
        pool._network_backend._inner = Backend([Exchange(part=1.0)], clock)
        with pytest.raises(DeadlineExceeded):
            client.classify("t", "x")
    assert clock.now == pytest.approx(1003, abs=STEP)
