from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import threading

import pytest

from loadtest import workload
from loadtest.http_client import (
    arrivals,
    closed_loop,
    infinity_requests,
    open_loop,
    percentile,
    post,
    requests,
)
from loadtest.http_line import Line
from tests.loadtest.slow_server import ANSWER, REFUSAL, serving


async def at_once(nth: int) -> bytes:
    return ANSWER


def test_a_request_is_complete_before_the_clock_starts() -> None:
    (one,) = requests("http://127.0.0.1:81", ["a", "b"], ["grüße"], itertools.repeat(1), 1)
    head, _, body = one.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /classify HTTP/1.1"
    assert b"Host: 127.0.0.1:81" in head
    assert b"Content-Length: %d" % len(body) in head
    assert body == b'{"task_id": "b", "input": "gr\\u00fc\\u00dfe"}'


def test_both_dialects_carry_the_same_texts() -> None:
    texts = workload.texts(3)
    with serving(at_once) as server:
        ours = requests(server.url, ["t"], texts, workload.task_choices("identical", 1), 4)
        theirs = infinity_requests(server.url, "head", texts, 4)
        closed_loop(server.url, ours + theirs)
    assert [body["input"] for body in server.bodies[:4]] == [*texts, texts[0]]
    assert server.bodies[4:] == [{"model": "head", "input": [text]} for text in [*texts, texts[0]]]


def test_a_closed_loop_sends_everything_once_on_as_many_connections_as_asked_for() -> None:
    with serving(at_once) as server:
        load = closed_loop(server.url, [post(server.url, "/", nth) for nth in range(50)], connections=7)
    assert (load.offered, load.answered, load.failed, load.unanswered) == (50, 50, 0, 0)
    assert server.connections == 7
    assert sorted(server.bodies) == list(range(50))
    assert len(load.latencies) == 50
    assert list(load.latencies) == sorted(load.latencies)


def test_a_closed_loop_ends_in_time() -> None:
    with serving(at_once) as server:
        load = closed_loop(
            server.url, itertools.repeat(post(server.url, "/", 0)), connections=2, seconds=0.05
        )
    assert load.answered == len(server.bodies) > 2
    assert load.rate == load.answered / load.seconds


def test_refusals_and_lost_connections_are_failures_and_the_loop_goes_on() -> None:
    async def answer(nth: int) -> bytes:
        return {2: REFUSAL, 5: b""}.get(nth, ANSWER)

    with serving(answer) as server:
        load = closed_loop(server.url, [post(server.url, "/", nth) for nth in range(10)])
    assert (load.offered, load.answered, load.failed) == (10, 8, 2)
    assert load.reasons == {"status 429": 1, "connection lost": 1}
    assert server.connections == 2
    assert load.percentile(0.8) < load.percentile(0.81) == math.inf


def test_heads_are_kept_with_their_latencies() -> None:
    with serving(at_once) as server:
        load = closed_loop(server.url, [post(server.url, "/", 0)] * 3, keep_heads=True)
    assert sorted(seconds for seconds, _ in load.answers) == list(load.latencies)
    assert all(b"Server-Timing: queue;dur=1.5" in head for _, head in load.answers)


def test_arrivals_are_a_seeded_poisson_process() -> None:
    times = arrivals(200.0, 50.0, seed=3)
    assert times == arrivals(200.0, 50.0, seed=3) != arrivals(200.0, 50.0, seed=4)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 50
    gaps = [b - a for a, b in itertools.pairwise(times)]
    # Exponential gaps: as much spread as mean.
    assert statistics.mean(gaps) == pytest.approx(1 / 200, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=0.05)


def test_a_stall_is_seen_by_every_request_that_was_due_meanwhile() -> None:
    """One answer takes 0.5 s on the only connection; ten requests are due in that time.

    A generator that counts from when it got round to sending them would find one slow answer among eleven.
    """

    async def answer(nth: int) -> bytes:
        if nth == 0:
            await asyncio.sleep(0.5)
        return ANSWER

    times = [0.02 * nth for nth in range(11)]
    with serving(answer) as server:
        load = open_loop(server.url, itertools.repeat(post(server.url, "/", 0)), times, connections=1)
    assert (load.offered, load.answered, load.late) == (11, 11, 10)
    assert load.latencies[0] >= 0.5 - times[-1]
    assert load.latencies[-1] >= 0.5
    assert load.percentile(0.5) >= 0.5 - times[6]


def test_with_connections_at_hand_a_stall_holds_nobody_back() -> None:
    async def answer(nth: int) -> bytes:
        if nth == 0:
            await asyncio.sleep(0.5)
        return ANSWER

    with serving(answer) as server:
        times = [0.02 * nth for nth in range(11)]
        load = open_loop(server.url, itertools.repeat(post(server.url, "/", 0)), times, connections=11)
    assert (load.answered, load.late, len(load.lags)) == (11, 0, 11)
    assert load.latencies[-1] >= 0.5
    assert len(server.bodies) == 11


def test_a_group_whose_requests_all_wait_does_not_hold_the_other_back() -> None:
    """`stuck` gets no answer on its only connection; `free` has one of its own, and is sent in time."""

    async def answer(nth: int) -> bytes:
        if server.bodies[nth] == "stuck":
            await asyncio.sleep(30)
        return ANSWER

    groups = ["stuck", "stuck", "free", "stuck", "free", "free"]
    with serving(answer) as server:
        written = [post(server.url, "/", group) for group in groups]
        times = [0.02 * nth for nth in range(len(groups))]
        load = open_loop(
            server.url, iter(written), times, connections=1, groups=groups, patience=5, keep_trace=True
        )
    outcomes = {sent.nth: sent.outcome for sent in load.trace}
    assert {groups[nth] for nth, outcome in outcomes.items() if outcome == "answered"} == {"free"}
    assert (load.offered, load.answered, load.unanswered) == (6, 3, 3)
    assert server.connections == 2


def test_what_is_not_http_is_refused_before_anything_is_sent() -> None:
    with serving(at_once) as server, pytest.raises(ValueError, match="only http"):
        closed_loop(server.url.replace("http", "https"), [post(server.url, "/", 0, key="secret")])
    assert server.connections == 0


def test_what_is_open_when_patience_ends_is_unanswered_and_took_for_ever() -> None:
    async def answer(nth: int) -> bytes:
        if nth >= 2:
            await asyncio.sleep(30)
        return ANSWER

    with serving(answer) as server:
        written = itertools.repeat(post(server.url, "/", 0))
        load = open_loop(server.url, written, [0.0, 0.1, 0.2, 0.2, 0.2], connections=2, patience=5)
    assert (load.offered, load.answered, load.unanswered) == (5, 2, 3)
    assert math.isfinite(load.percentile(0.4))
    assert load.percentile(0.5) == math.inf


def test_percentiles_are_nearest_ranks() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert [percentile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([], 0.5) == math.inf
    assert percentile([1.0], 0.5, count=3) == math.inf


async def refuse(nth: int) -> bytes:
    waits = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
    return {1: waits, 2: REFUSAL, 3: b""}.get(nth, ANSWER)


def test_the_trace_tells_each_request_by_itself() -> None:
    times = [0.05 * nth for nth in range(5)]
    with serving(refuse) as server:
        written = [post(server.url, "/", nth) for nth in range(5)]
        load = open_loop(server.url, written, times, connections=1, keep_trace=True)
    assert (load.answered, load.failed, load.refused) == (2, 3, 1)
    told = {sent.nth: sent for sent in load.trace}
    assert [told[nth].outcome for nth in range(5)] == ["answered", "refused", "failed", "failed", "answered"]
    assert [told[nth].intended for nth in range(5)] == times


def test_the_trace_has_what_was_never_answered() -> None:
    async def answer(nth: int) -> bytes:
        await asyncio.sleep(30 if nth else 0)
        return ANSWER

    with serving(answer) as server:
        written = itertools.repeat(post(server.url, "/", 0))
        load = open_loop(server.url, written, [0.0, 0.1, 0.2], connections=1, patience=5, keep_trace=True)
    assert sorted((sent.nth, sent.outcome, math.isinf(sent.seconds)) for sent in load.trace) == [
        (0, "answered", False), (1, "failed", True), (2, "failed", True),
    ]  # fmt: skip
    assert load.reasons == {"no answer in time": 2}


def test_an_idle_connection_that_the_server_closed_is_opened_anew() -> None:
    """It hangs up after each answer, as a server does with connections that are idle for long."""

    with serving(at_once, hang_up=True) as server:
        written = itertools.repeat(post(server.url, "/", 0))
        load = open_loop(server.url, written, [0.0, 1.5], connections=1)
    assert (load.answered, load.failed, server.connections) == (2, 0, 2)


def test_a_connection_that_waited_long_for_its_first_request_is_opened_anew() -> None:
    """A server that hangs up on it with a 408 may do so just when the request is on its way."""
    with serving(at_once) as server:
        line = Line(server.url)
        line.freshen(now=4.0)
        line.freshen(now=6.0)
        line.send(post(server.url, "/", 0), 6.0)
        while line.receive() is None:
            pass
        line.used = 6.0
        line.freshen(now=60.0)  # it had one, and nobody closed it
        line.close()
    assert server.connections == 2


def test_a_server_that_dies_loses_the_requests_that_are_left_and_no_others() -> None:
    async def answer(nth: int) -> bytes:
        if nth == 2:
            threading.Thread(target=server.die).start()
        if nth >= 2:  # those that came before its end
            await asyncio.sleep(600)
        return ANSWER

    with serving(answer) as server:
        written, times = itertools.repeat(post(server.url, "/", 0)), [0.1 * nth for nth in range(20)]
        load = open_loop(server.url, written, times, connections=3, patience=2.0, keep_trace=True)
    assert (load.offered, load.answered, load.failed, load.unanswered) == (20, 2, 18, 0)
    assert [sent.outcome for sent in sorted(load.trace)] == ["answered"] * 2 + ["failed"] * 18


def chunked(status: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n" % status


def test_an_answer_whose_end_cannot_be_told_is_a_failure_and_not_the_end() -> None:
    async def answer(nth: int) -> bytes:
        waits = b"503 Busy\r\nRetry-After: 1"
        return {1: chunked(b"502 Bad Gateway"), 2: chunked(b"200 OK"), 3: chunked(waits)}.get(nth, ANSWER)

    with serving(answer) as server:
        load = closed_loop(server.url, [post(server.url, "/", nth) for nth in range(6)])
    assert (load.offered, load.answered, load.failed, load.refused) == (6, 3, 3, 1)
    assert load.reasons == {"status 502": 1, "status 200 without an end": 1}
    assert server.connections == 4


def test_a_key_is_a_header() -> None:
    with serving(at_once) as server:
        written = requests(server.url, ["a"], ["x"], itertools.repeat(0), 1, key="secret")
        closed_loop(server.url, written)
    assert b"\r\nAuthorization: Bearer secret\r\n" in server.heads[0]
