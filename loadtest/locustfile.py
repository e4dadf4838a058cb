r"""Locust users that classify single texts of many tasks.

    locust -f loadtest/locustfile.py --headless -u 64 -r 64 -t 30s --host http://127.0.0.1:8000 \
        --task-ids sentiment,question-type --mix zipf --csv out/load --html out/load.html

Ends with exit code 1 when a request fails or the 99th percentile is over --p99. Imports nothing of the project but
the workload: it works against any server with the same route.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task
from locust.env import Environment

sys.path.insert(0, str(Path(__file__).parent.parent))
from loadtest import workload

_TEXTS = workload.texts(2048)


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument(
        "--task-ids", default="sentiment", help="task ids, separated by commas; or load:COUNT"
    )
    parser.add_argument(
        "--mix", choices=workload.MIXES, default="uniform", help="which task a request is for"
    )
    parser.add_argument("--p99", type=float, default=2000.0, help="most milliseconds for the 99th percentile")
    parser.add_argument("--key", default="", help="an API key", env_var="PROMPTMUX_KEY", is_secret=True)


def _ids(options: Namespace) -> list[str]:
    given: str = options.task_ids
    return workload.task_ids(int(given[5:])) if given.startswith("load:") else given.split(",")


def _is_answer(body: str, task_id: str) -> bool:
    try:
        answer = json.loads(body)
        return bool(answer["task_id"] == task_id and len(answer["data"]) == 1)
    except (ValueError, KeyError, TypeError):
        return False


class Caller(FastHttpUser):
    """One caller: keeps its connection and sends the next text as soon as the last is answered."""

    network_timeout = 30.0
    connection_timeout = 10.0
    _number = itertools.count()

    def on_start(self) -> None:
        """Give each user its own stretch of texts and its own choices of tasks."""
        options = self.environment.parsed_options
        assert options is not None
        number = next(self._number)
        self._ids = _ids(options)
        self._texts = itertools.cycle(_TEXTS[number % len(_TEXTS) :] + _TEXTS[: number % len(_TEXTS)])
        self._choices = workload.task_choices(options.mix, len(self._ids), seed=number)
        self._headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}

    @task
    def classify(self) -> None:
        """Classify one text; an answer without the asked-for task's result is a failure."""
        task_id = self._ids[next(self._choices)]
        body = {"task_id": task_id, "input": next(self._texts)}
        with self.client.post(
            "/classify", json=body, headers=self._headers, name="/classify", catch_response=True
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
            elif not _is_answer(answer.text, task_id):
                answer.failure("another task's answer, or none")


@events.quitting.add_listener
def _judge(environment: Environment, **_: Any) -> None:
    total, options = environment.stats.total, environment.parsed_options
    assert options is not None
    p99 = total.get_response_time_percentile(0.99) or 0.0
    if total.num_requests == 0:
        verdict = "no request was answered"
    elif total.num_failures:
        verdict = f"{total.num_failures} of {total.num_requests} requests failed"
    elif p99 > options.p99:
        verdict = f"p99 is {p99:.0f} ms, more than {options.p99:.0f} ms"
    else:
        verdict = ""
    print(
        f"load test: {'FAILED: ' + verdict if verdict else 'passed'} ({total.num_requests} requests, p99 {p99:.0f} ms)"
    )
    environment.process_exit_code = 1 if verdict else 0


if __name__ == "__main__":
    os.execvp("locust", ["locust", "-f", __file__, *sys.argv[1:]])
