"""The series of single versions: what `traffic` counts, and which version each alias leads to.

Owns: which of them are shown, and how many at most. Must not know: who counts. They come and go with the versions that
are active, so no counter object is kept for any. Read on a scrape's thread: no table that the loop changes is walked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from server.catalogue import Catalogue
from server.errors import PROMPT_FAULTS
from server.metric_family import Family
from server.traffic import SCORE_BUCKETS, Traffic

MAX_VERSIONS: Final = 200  # with series of their own; each has about twenty
_VERSION: Final = ("task", "version")
_REQUESTS: Final = Family(
    "promptmux_version_requests_total",
    "counter",
    "Classify requests that an active version was to answer",
    _VERSION,
)
_ERRORS: Final = Family(
    "promptmux_version_errors_total",
    "counter",
    "Those that ended with an error, by code",
    (*_VERSION, "code"),
)
_SCORES: Final = Family("promptmux_version_score", "histogram", "Winning scores, one for each text", _VERSION)
_LEFT_OUT: Final = Family(
    "promptmux_version_series_left_out", "gauge", "Counted versions without series of their own"
)
_LIVE: Final = Family(
    "promptmux_task_version_info",
    "gauge",
    "1 for each version that an alias leads to on this server; of tasks in metrics_tasks and split ones",
    ("task", "alias", "version"),
)
FAMILIES: Final = (_REQUESTS, _ERRORS, _SCORES, _LEFT_OUT, _LIVE)
_NO_FAULTS: Final = {
    kind.code: 0 for kind in PROMPT_FAULTS
}  # from 0 on, so that the first one is an increase


class VersionSeries(Collector):
    """Collects them anew for every scrape."""

    def __init__(self, traffic: Traffic, catalogue: Catalogue) -> None:
        self._traffic, self._catalogue = traffic, catalogue

    def collect(self) -> Iterator[Metric]:
        """All of them, those of listed tasks first where there are too many."""
        counts = self._traffic.all()
        requests = CounterMetricFamily(_REQUESTS.name, _REQUESTS.text, labels=_REQUESTS.labels)
        errors = CounterMetricFamily(_ERRORS.name, _ERRORS.text, labels=_ERRORS.labels)
        scores = HistogramMetricFamily(_SCORES.name, _SCORES.text, labels=_SCORES.labels)
        for one in counts[:MAX_VERSIONS]:
            own = (one.task_id, one.version[:12])
            requests.add_metric(own, one.requests)
            for code, count in {**_NO_FAULTS, **one.errors}.items():
                errors.add_metric((*own, code), count)
            below = list(zip(map(str, SCORE_BUCKETS), one.cumulative(), strict=True))
            scores.add_metric(own, [*below, ("+Inf", below[-1][1])], one.score_sum)
        yield from (requests, errors, scores)
        yield GaugeMetricFamily(_LEFT_OUT.name, _LEFT_OUT.text, max(0, len(counts) - MAX_VERSIONS))
        live = GaugeMetricFamily(_LIVE.name, _LIVE.text, labels=_LIVE.labels)
        for labels in itertools.islice(self._live(), MAX_VERSIONS):
            live.add_metric(labels, 1)
        yield live

    def _live(self) -> Iterator[tuple[str, str, str]]:
        """What requests get here, past quarantined versions: not what the store says."""
        for task_id in self._traffic.watched():
            task = self._catalogue.get(task_id)
            for alias in task.aliases if task is not None else ():
                for target in self._catalogue.targets(task_id, alias):
                    yield task_id, alias, target.version[:12]
