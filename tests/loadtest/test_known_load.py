"""What counts as answered, and what the store must hold: the judges of the faults of Redis."""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from loadtest.faults.admin_writer import Acknowledged
from loadtest.faults.faulty_server import Caller
from loadtest.faults.known_load import Health, HealthWatch, KnownLoad, Tally, caught_up
from loadtest.faults.redis_faults import Kill
from loadtest.faults.redis_runs import Run
from loadtest.faults.told_answers import ToldTasks
from prompt_store import version_of


@contextmanager
def server(body: bytes, seconds: float = 0.0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


def told_tasks() -> ToldTasks:
    return ToldTasks(2, "fake", seed=0)


def test_a_server_that_hangs_answers_nothing_and_is_a_failure_in_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with KnownLoad(url, told_tasks(), connections=2, rate=50, patience=0.5) as load:
            time.sleep(0.25)
            assert load.take().offered == 0
            load.pause()
            late = load.take()
    assert late.failed == late.offered == 2
    assert not late.clean
    assert late.slowest >= 0.5


def test_requests_are_timed_from_when_they_were_due() -> None:
    with server(b"{}", 0.1) as url, KnownLoad(url, told_tasks(), connections=1, rate=100) as load:
        end = time.monotonic() + 600
        while load.take().slowest <= 0.3:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_an_answer_that_cannot_be_checked_is_wrong_and_ends_no_check() -> None:
    for seconds in (0.5, 5, 50):  # a machine that stands still asks too little in half a second
        with (
            server(b"[1]") as url,
            KnownLoad(url, told_tasks(), connections=1, rate=50) as load,
            HealthWatch(url) as watch,
        ):
            time.sleep(seconds)
            tally = load.take()
        if tally.offered > 1 and watch.health.looks > 1:
            break
    assert len(tally.wrong) == tally.offered > 1
    assert watch.health.unwell.total() == watch.health.looks > 1


def test_an_answer_without_rows_is_wrong_and_not_what_was_waited_for() -> None:
    tasks = ToldTasks(1, "fake", seed=0)
    version = version_of(tasks.make(0))
    empty = json.dumps({"task_id": tasks.ids[0], "version": version, "data": []}).encode()
    with server(empty) as url:
        for seconds in (0.3, 3, 30):
            with KnownLoad(url, tasks, connections=1, rate=50) as load:
                time.sleep(seconds)
                load.pause()
                tally = load.take()
            if tally.offered:
                break
        with Caller(url) as caller:
            assert caught_up(caller, tasks, {tasks.ids[0]: version}, patience=0.1) == tasks.ids
    assert len(tally.wrong) == tally.offered > 0
    assert "other rows" in tally.wrong[0]


def test_a_load_of_no_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="no tasks"):
        KnownLoad("http://127.0.0.1:1", ToldTasks(0, "fake", seed=0))


def test_what_was_acknowledged_must_be_there_and_what_was_refused_may() -> None:
    told = Acknowledged()
    told.sure({"a": "1", "b": "1"})
    told.perhaps("a", "2")
    assert told.of(["b"]) == {"b": "1"}
    assert [told.lost({"a": version, "b": "1"}) for version in "123"] == [[], [], ["a"]]
    assert told.lost({"a": "1"}) == ["b"]
    with pytest.raises(KeyError):
        told.of(["a"])
    told.sure({"a": "3"})
    assert told.lost({"a": "2", "b": "1"}) == ["a"]


GOOD = Run(
    Kill,
    0,
    "",
    rate=100,
    ready_seconds=10,
    lasted=2,
    load=Tally(300, 300, 0.5),
    during=Tally(200, 200, 0.5),
    health=Health(20, staleness=2.0),
    watched=3,
    refused=1,
    happened=True,
    converged=0.5,
)


def test_a_run_passes_by_what_was_seen_of_it() -> None:
    assert GOOD.passed
    for bad in (
        replace(GOOD, load=Tally(300, 299, 0.5)),
        replace(GOOD, during=Tally()),
        replace(GOOD, health=Health()),
        replace(GOOD, refused=0, published=1),
        replace(GOOD, happened=False),
        replace(GOOD, lost=["a"]),
        replace(GOOD, others=Counter(x=1)),
        replace(GOOD, converged=None),
    ):
        assert not bad.right
    for late in (
        replace(GOOD, during=Tally(170, 170, 0.5)),
        replace(GOOD, load=Tally(300, 300, 2.5)),
        replace(GOOD, health=Health(20)),
        replace(GOOD, health=Health(2, staleness=2.0)),
        replace(GOOD, started_in=11.0),
        replace(GOOD, converged=4.0),
    ):
        assert late.right
        assert len(late.late) == 1
        assert not late.passed
