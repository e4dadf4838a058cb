r"""Locust users that classify single texts of many tasks, in one of the shapes of `loadtest/shapes.py`.

    locust -f loadtest/locustfile.py --headless -u 64 -r 64 -t 30s --host http://127.0.0.1:8000 \
        --task-ids sentiment,question-type --mix zipf --csv out/load --html out/load.html
    locust -f loadtest/locustfile.py --headless --shape spike -u 8 --host … --record out/spike.json

Ends with exit code 1 when a bound is not kept (`--p99`, `--max-fail-share`, …). Imports nothing of the project but what
the load itself needs, standard library only: with those files it works on any machine with locust, against any server
with the same route, alone or as master and workers (which tell the master what they counted, once in three seconds).
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import locust.runners
from gevent import GreenletExit
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.runners import LocalRunner, Runner, WorkerRunner
from locust.user.task import LOCUST_STATE_STOPPING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from loadtest import record, shapes, verdicts, workload
from loadtest.memory_watch import resident_bytes, watch
from loadtest.planned import Planned, Run
from loadtest.timeline import GREEDY, Outcome, is_refusal

_TEXTS = workload.texts(2048)
_CONNECT, _PATIENCE = 10.0, 30.0  # seconds for a connection, and for each piece of an answer
_LAST_ANSWERS = (
    "45"  # seconds that users who are taken away may wait for their answer: until it comes, or failed
)


_run = Run()
# A worker that stood still for three seconds, locust's own bound, is not lost: the machine had much to do.
locust.runners.HEARTBEAT_LIVENESS = 10
# Every change of users is to be sudden: locust need not ask whether that is wanted.
logging.getLogger("locust.runners").addFilter(lambda said: "spawn rate is very high" not in said.getMessage())


class Refused(Exception):
    """429 or 503 with Retry-After: the server said in order that it has too much to do."""


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument(
        "--task-ids", default="sentiment", help="task ids, separated by commas; or load:COUNT"
    )
    parser.add_argument(
        "--mix", choices=workload.MIXES, default="uniform", help="which task a request is for"
    )
    parser.add_argument("--key", default="", help="an API key", env_var="PROMPTMUX_KEY", is_secret=True)
    parser.add_argument("--record", default="", help="a file for what was counted, as JSON")
    parser.add_argument(
        "--memory-of", default="", help="a process id, or the URL of /metrics: whose memory a soak looks at"
    )
    parser.add_argument(
        "--metrics-key", default="", help="an API key of scope metrics, for that URL",
        env_var="PROMPTMUX_METRICS_KEY", is_secret=True,
    )  # fmt: skip
    shapes.add_options(parser)
    # Locust's own default cuts requests off at the end, and with them all that a server that hangs was asked.
    parser.set_defaults(stop_timeout=_LAST_ANSWERS)


def _is_answer(body: str, task_id: str) -> bool:
    try:
        answer = json.loads(body)
        return bool(answer["task_id"] == task_id and len(answer["data"]) == 1)
    except (ValueError, KeyError, TypeError):
        return False


class Caller(FastHttpUser):
    """One caller: keeps its connection and sends the next text as soon as the last is answered."""

    network_timeout = _PATIENCE
    connection_timeout = _CONNECT
    _number = itertools.count()

    def on_start(self) -> None:
        """Give each user its own stretch of texts and its own choices of tasks."""
        options = self.environment.parsed_options
        assert options is not None
        number, runner = next(self._number), self.environment.runner
        if isinstance(runner, WorkerRunner):  # no two workers send the same
            number += 1_000_003 * runner.worker_index
        self._whose = _run.group
        ids = workload.named_tasks(options.task_ids)
        if options.shape == "greedy":  # the first is the greedy one; the others share the rest
            ids = ids[:1] if self._whose == GREEDY else ids[1:]
        self._ids = ids
        self._texts = itertools.cycle(_TEXTS[number % len(_TEXTS) :] + _TEXTS[: number % len(_TEXTS)])
        self._choices = workload.task_choices(options.mix, len(ids), seed=number)
        self._headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}

    @task
    def classify(self) -> None:
        """Classify one text; an answer without the asked-for task's result is a failure, and so is none in the end."""
        began = time.time()
        try:
            self._ask()
        except GreenletExit:  # locust tells nobody of the request
            # It waited for --stop-timeout. Or it did not wait at all: a user who was between two requests is ended at
            # once, and may have begun the next one before it hears of that. Nobody can say how that would have ended.
            if self._state == LOCUST_STATE_STOPPING:
                _run.timeline.add(began, self._whose, "failed", 0.0)
            raise

    def _ask(self) -> None:
        task_id = self._ids[next(self._choices)]
        body = {"task_id": task_id, "input": next(self._texts)}
        with self.client.post(
            "/classify", json=body, headers=self._headers, name="/classify", catch_response=True,
            context={"group": self._whose},
        ) as answer:  # fmt: skip
            if not answer.status_code:
                answer.failure(f"no answer: {type(answer.error).__name__}")
            elif is_refusal(answer.status_code, answer.headers.get("Retry-After")):
                answer.failure(Refused(f"{answer.status_code} with Retry-After"))
            elif answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
            elif not _is_answer(answer.text, task_id):
                answer.failure("another task's answer, or none")


@events.request.add_listener
def _count(
    response_time: float, exception: Exception | None, context: dict[str, str], start_time: float, **_: Any
) -> None:
    outcome: Outcome = (
        "answered" if exception is None else "refused" if isinstance(exception, Refused) else "failed"
    )
    _run.timeline.add(start_time, context["group"], outcome, response_time / 1000)


@events.test_stopping.add_listener
def _note_end(**_: Any) -> None:
    _run.ended = _run.ended or time.time()


@events.report_to_master.add_listener
def _report(data: dict[str, Any], **_: Any) -> None:
    data["timeline"] = _run.timeline.take()


@events.worker_report.add_listener
def _take_in(client_id: str, data: dict[str, Any], **_: Any) -> None:
    _run.heard[client_id] = time.time()
    _run.timeline.merge(data.get("timeline", ()))


@events.init.add_listener
def _prepare(environment: Environment, runner: Runner, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    if options.shape == "greedy" and len(workload.named_tasks(options.task_ids)) < 2:
        print("load test: --shape greedy needs two tasks or more in --task-ids", file=sys.stderr)
        runner.quit()
        sys.exit(2)
    if (
        options.shape == "soak"
        and not (options.memory_of or options.no_memory)
        and not isinstance(runner, WorkerRunner)
    ):
        print("load test: --shape soak needs --memory-of, or --no-memory", file=sys.stderr)
        runner.quit()
        sys.exit(2)
    if isinstance(runner, LocalRunner | WorkerRunner):
        runner.register_message("group", _begin_group)
    if not isinstance(runner, WorkerRunner):
        phases = shapes.plan(options, options.num_users or shapes.USERS)
        if phases:
            environment.shape_class = Planned(phases, runner, _run)
        if options.memory_of:
            try:
                resident_bytes(options.memory_of, options.metrics_key)
            except (OSError, ValueError) as error:
                print(f"load test: --memory-of: {error}", file=sys.stderr)
                runner.quit()
                sys.exit(2)
            gevent.spawn(watch, options.memory_of, _run.memory, key=options.metrics_key)


def _begin_group(msg: Any, **_: Any) -> None:
    _run.group = msg.data


@events.quitting.add_listener
def _judge(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return
    options = environment.parsed_options
    assert options is not None
    if not shapes.plan(options, 1):
        # Locust's own way: every request counts, those while users are still added as well.
        all_of_it = _run.timeline.seconds() or range(1)
        end = max(all_of_it.stop, _run.ended or time.time())  # also where nothing came any more
        _run.stretches = [record.Stretch("steady", all_of_it.start, end, options.num_users or 1)]
    whole = len(_run.stretches) == (len(shapes.plan(options, 1)) or 1)
    kept = record.Record(
        options.shape,
        "closed",
        _run.stretches,
        _run.timeline,
        _run.memory,
        "; ".join(_broken(environment.runner, whole)),
    )
    checks = verdicts.judge(kept, shapes.bounds(options))
    _write(kept, options)
    for row in verdicts.rows(kept):
        print("load test: " + ", ".join(f"{name} {value}" for name, value in row.items()))
    for remark in verdicts.remarks(kept) if whole else ():
        print(f"load test: {remark}")
    for check in checks:
        print(
            f"load test: {'ok    ' if check.passed else 'FAILED'} {check.name}: {check.found} ({check.wanted})"
        )
    passed = all(check.passed for check in checks)
    print(f"load test: {'passed' if passed else 'FAILED'} ({environment.stats.total.num_requests} requests)")
    environment.process_exit_code = 0 if passed else 1


def _broken(runner: Runner | None, whole: bool) -> Iterator[str]:
    """Why this was not the load that was asked for."""
    if lost := _run.lost(runner):
        last = ", the last one too" if len(lost) == len(_run.heard) else ""
        yield (
            f"{len(lost)} of {len(_run.heard)} workers went missing{last}: their users were not there, and what they "
            "counted last is not known"
        )
    if not whole:
        yield "it was ended before its shape was over"


def _write(kept: record.Record, options: Namespace) -> None:
    if options.record:
        file = Path(options.record)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept.as_plain()), encoding="utf-8")


if __name__ == "__main__":
    os.execvp("locust", ["locust", "-f", __file__, *sys.argv[1:]])
