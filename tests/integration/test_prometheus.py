"""A real server, scraped by a real Prometheus with a key that opens nothing else: every panel is answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from prompt_store import version_of
from scripts import dashboard as script
from server.auth import new_key
from tests.integration.conftest import PATIENCE, Serve, ServerProcess
from tests.monitoring import prometheus
from tests.monitoring.test_names import dashboard, rules
from tests.server.fakes import prompt_bytes

STABLE, CANARY, NEW = prompt_bytes(), prompt_bytes(favours=1), prompt_bytes("later")
# What is empty where nothing is wrong, on a CPU, and outside Kubernetes.
MAY_BE_EMPTY = {
    "Device memory A", "Failures to follow A", "Failures to follow B", "Errors by version A",
}  # fmt: skip


WINDOW = "30s"  # many scrapes, also where some come late
SEEN = (
    f'rate(promptmux_http_errors_total{{route="/v1/models"}}[{WINDOW}]) > 0',
    f"count(rate(promptmux_version_requests_total[{WINDOW}]) > 0) == 2",
)


@dataclass
class Watched:
    """A server under some load, and who watches it."""

    server: ServerProcess
    prometheus: prometheus.Prometheus
    admin: dict[str, str]
    infer: dict[str, str]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def watched(serve_package: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    prometheus.program("prometheus")  # or skip, before anything is started
    folder = tmp_path_factory.mktemp("prometheus")
    keys = {scope: new_key(scope, [scope]) for scope in ("admin", "infer", "metrics")}
    file = folder / "keys"
    file.write_text("\n".join(line for _, line in keys.values()), encoding="utf-8")
    secret = folder / "metrics-key"
    secret.write_text(keys["metrics"][0], encoding="utf-8")
    server = serve_package(
        "--api-keys-file", str(file), "--metrics-tasks", "sentiment", "--cache-dir", str(folder / "cache")
    ).ready()
    admin, infer = bearer(keys["admin"][0]), bearer(keys["infer"][0])
    scrape = {
        "job_name": "promptmux",
        "authorization": {"credentials_file": str(secret)},
        "static_configs": [
            {"targets": [server.admin_url.removeprefix("http://")], "labels": {"namespace": "promptmux"}}
        ],
    }
    with prometheus.running(folder, scrape, script.ALERTS) as watching:
        watching.wait_for("promptmux_ready == 1")
        split(server, admin)
        end = time.monotonic() + PATIENCE
        while not all(map(watching.query, SEEN)):  # a rate needs two scrapes, and something between them
            assert time.monotonic() < end, "Prometheus has not seen the requests"
            ask(server, infer)
        yield Watched(server, watching, admin, infer)


def ask(server: ServerProcess, infer: dict[str, str]) -> None:
    """Requests that are answered, that name no task, and that have no key."""
    for task in ("sentiment",) * 8 + ("nope",):
        body = {"task_id": task, "input": ["a", "b"]}
        httpx.post(f"{server.url}/classify", json=body, headers=infer, timeout=PATIENCE)
    httpx.get(f"{server.url}/v1/models", timeout=PATIENCE)


def split(server: ServerProcess, admin: dict[str, str]) -> None:
    """Half of a listed task's requests go to another version."""
    task = f"{server.admin_url}/admin/tasks/sentiment"
    octets = {"Content-Type": "application/octet-stream", **admin}
    put = httpx.put(f"{task}/versions/{version_of(CANARY)}", content=CANARY, headers=octets)
    assert put.status_code == 201, put.text
    tag = httpx.get(f"{task}/aliases/current", headers=admin).headers["etag"]
    targets = [{"version": version_of(data), "weight": 50} for data in (STABLE, CANARY)]
    moved = httpx.put(
        f"{task}/aliases/current", json={"targets": targets}, headers={"If-Match": tag, **admin}
    )
    assert moved.status_code == 200, moved.text


def chosen(expr: str) -> str:
    """The expression as Grafana sends it, with everything chosen."""
    for name, value in (
        ("$__rate_interval", WINDOW),
        ("$namespace", ".*"),
        ("$instance", ".*"),
        ("$task", ".*"),
    ):
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


def targets() -> list[tuple[str, str]]:
    return [
        (f"{panel['title']} {target['refId']}", chosen(target["expr"]))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def test_a_scrape_with_the_metrics_key_works(watched: Watched) -> None:
    (target,) = watched.prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"]["job"] == "promptmux"


@pytest.mark.parametrize(("where", "expr"), targets())
def test_every_panel_is_answered(watched: Watched, where: str, expr: str) -> None:
    found = watched.prometheus.query(expr)
    if where not in MAY_BE_EMPTY:
        assert found, expr
    for series in found:
        assert series["value"][1] != "NaN" or "rate(" in expr, (expr, series)


def test_what_may_be_empty_is_on_the_dashboard() -> None:
    assert {where for where, _ in targets()} >= MAY_BE_EMPTY


def test_the_core_panels_say_what_was_done(watched: Watched) -> None:
    one = watched.prometheus.query
    by_name = dict(targets())
    assert one(by_name["Replicas ready A"])[0]["value"][1] == "1"
    codes = {
        (series["metric"]["code"], series["metric"]["route"])
        for series in one('promptmux_http_errors_total{app="public"}')
    }
    assert codes == {("unknown_task", "/classify"), ("unauthenticated", "/v1/models")}
    live = {series["metric"]["version"] for series in one(by_name["Live versions A"])}
    assert live == {version_of(data)[:12] for data in (STABLE, CANARY)}
    (build,) = one("promptmux_build_info")
    assert (build["metric"]["backbone"], build["metric"]["dtype"]) == ("fake", "float32")
    tasks = {series["metric"]["task"] for series in one("promptmux_task_requests_total")}
    assert tasks == {"sentiment"}
    assert float(one("process_resident_memory_bytes")[0]["value"][1]) > 10_000_000
    assert one("sum(promptmux_batch_tasks_count)")[0]["value"] != "0"


CORE = (
    "Requests A", "Throughput B", "End to end C", "Where the time goes A", "Where the time goes B",
    "Where the time goes C", "Rows in a batch A", "Tokens in a batch A", "Distinct tasks in a batch A",
    "Requests by task A", "Requests by version A", "Mean winning score by version A", "Server errors A",
)  # fmt: skip


@pytest.mark.parametrize("where", CORE)
def test_the_core_panels_move_with_the_requests(watched: Watched, where: str) -> None:
    expr = dict(targets())[where]
    wanted = f"({expr}) == 0" if where == "Server errors A" else f"({expr}) > 0"
    end = time.monotonic() + PATIENCE
    while not watched.prometheus.query(wanted):
        assert time.monotonic() < end, expr
        ask(watched.server, watched.infer)


def test_a_publish_is_an_annotation(watched: Watched) -> None:
    octets = {"Content-Type": "application/octet-stream", **watched.admin}
    path = f"{watched.server.admin_url}/admin/tasks/later/versions/{version_of(NEW)}"
    assert httpx.put(path, content=NEW, headers=octets).status_code == 201
    for one in dashboard()["annotations"]["list"]:
        watched.prometheus.query(chosen(one["expr"]))  # Prometheus understands it
    (publishes,) = (one for one in dashboard()["annotations"]["list"] if one["name"] == "Publishes")
    watched.prometheus.wait_for(chosen(publishes["expr"]))


def test_the_alerts_are_loaded_and_none_fires_on_a_healthy_server(watched: Watched) -> None:
    groups: list[dict[str, Any]] = watched.prometheus.get("rules")["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in rules()}
    assert [rule["name"] for rule in loaded if rule.get("lastError")] == []
    assert {rule["health"] for rule in loaded} == {"ok"}
    assert watched.prometheus.query('ALERTS{alertstate="firing"}') == []


def test_grafana_finds_what_there_is_to_choose_from(watched: Watched) -> None:
    for variable in dashboard()["templating"]["list"][1:]:
        selector, _, label = (
            variable["definition"].removeprefix("label_values(").removesuffix(")").rpartition(",")
        )
        values = watched.prometheus.get(f"label/{label.strip()}/values", **{"match[]": chosen(selector)})
        assert values, variable["name"]
