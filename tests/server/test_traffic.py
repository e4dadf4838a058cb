import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from prompt_store import Target
from server.catalogue import Catalogue, ServedTask
from server.metrics import Metrics
from server.traffic import SCORE_BUCKETS, Traffic, VersionCounts
from server.version_series import MAX_VERSIONS

A, B, C = "a" * 64, "b" * 64, "c" * 64


def served(task_id: str, *targets: Target) -> ServedTask:
    return ServedTask(task_id, 1, {"current": targets} if targets else {}, frozenset([A, B, C]), 0)


def watched(*listed: str) -> tuple[Catalogue, Traffic, Metrics]:
    catalogue, traffic, metrics = Catalogue(), Traffic(listed), Metrics(CollectorRegistry())
    catalogue.listen(traffic.follow)
    metrics.export(traffic, catalogue)
    return catalogue, traffic, metrics


def test_only_listed_and_split_tasks_are_counted() -> None:
    catalogue, traffic, _ = watched("listed")
    catalogue.put(served("plain", Target(A)))
    assert traffic.of(A) is None
    catalogue.put(served("listed", Target(B)))
    assert traffic.of(B) is not None
    catalogue.put(served("split", Target(C), Target(A)))
    assert {counts.version for counts in traffic.all()} == {A, B, C}
    assert traffic.all()[0].task_id == "listed"
    catalogue.put(served("split", Target(A)))
    assert {counts.version for counts in traffic.all()} == {B}
    catalogue.drop("listed")
    assert traffic.all() == []


def test_counts_last_while_a_version_is_active() -> None:
    catalogue, traffic, _ = watched()
    catalogue.put(served("t", Target(A, 95), Target(B, 5)))
    counts = traffic.of(A)
    assert counts is not None
    counts.answered([(0.25, 0.75)])
    catalogue.put(served("t", Target(A, 50), Target(B, 50)))
    assert traffic.of(A) is counts
    catalogue.put(served("t", Target(B), Target(C)))
    assert traffic.of(A) is None
    catalogue.put(served("t", Target(A), Target(B)))
    again = traffic.of(A)
    assert again is not None
    assert again.requests == 0


def test_series_come_and_go_with_the_versions() -> None:
    catalogue, traffic, metrics = watched()
    value = metrics.registry.get_sample_value
    catalogue.put(served("t", Target(A, 95), Target(B, 5)))
    counts = traffic.of(A)
    assert counts is not None
    counts.answered([(0.25, 0.75), (0.05, 0.95)])
    counts.failed("numerical_error")
    labels = {"task": "t", "version": "a" * 12}
    assert value("promptmux_version_requests_total", labels) == 2
    assert value("promptmux_version_errors_total", {**labels, "code": "numerical_error"}) == 1
    assert value("promptmux_version_errors_total", {**labels, "code": "prompt_unavailable"}) == 0
    assert value("promptmux_version_score_count", labels) == 2
    assert value("promptmux_version_score_sum", labels) == 1.7
    assert value("promptmux_version_score_bucket", {**labels, "le": "0.8"}) == 1
    assert value("promptmux_version_requests_total", {"task": "t", "version": "b" * 12}) == 0
    assert b"promptmux_version_score_bucket" in metrics.exposition()
    catalogue.put(served("t", Target(B)))
    assert value("promptmux_version_requests_total", labels) is None
    assert b"aaaa" not in metrics.exposition()


def test_the_series_are_bounded_and_say_when_they_are_not_all() -> None:
    catalogue, _, metrics = watched("z-listed")
    for number in range(MAX_VERSIONS):
        versions = (f"{2 * number:064x}", f"{2 * number + 1:064x}")
        catalogue.put(ServedTask(f"t{number}", 1, {"current": tuple(map(Target, versions))}, frozenset(), 0))
    catalogue.put(served("z-listed", Target(A)))
    lines = metrics.exposition().decode().splitlines()
    series = [line for line in lines if line.startswith("promptmux_version_requests_total")]
    assert len(series) == MAX_VERSIONS
    assert any("z-listed" in line for line in series)  # the operator's own list comes first
    assert f"promptmux_version_series_left_out {MAX_VERSIONS + 1}.0" in lines


@given(st.lists(st.floats(0.001, math.nextafter(1.0, 2.0)), max_size=50))
def test_every_score_is_in_one_bucket(scores: list[float]) -> None:
    counts = VersionCounts("t", A)
    counts.answered([(score, 0.0) for score in scores])
    assert counts.cumulative()[-1] == len(scores)
    for bound, below in zip(SCORE_BUCKETS[:-1], counts.cumulative(), strict=False):
        assert below == sum(score <= bound for score in scores)
    shown = counts.as_json()["scores"]
    assert sum(bucket["texts"] for bucket in shown["buckets"]) == shown["texts"] == len(scores)
