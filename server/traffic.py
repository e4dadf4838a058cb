"""What each version of a watched task answers: requests, errors by code, and the winning scores.

Owns: which versions are counted, and their counts. Must not know: HTTP, Prometheus, what is done about errors. Counted
are the active versions (an alias leads to them) of the tasks that the operator lists, and of tasks with an alias that
is split now: an operator made that split by hand, so their number is small. Counts end when a version is active no
more. Changed on the event loop only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, Final

from server.batch_queue import Scores
from server.catalogue import ServedTask

# Upper bounds. A winning score is at least one over the number of labels; where tasks differ is near 1.
SCORE_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
UNANSWERED: Final = "unanswered"  # the caller went, or its time was over


class VersionCounts:
    """One version's counts on this server, since it became active or its task was watched."""

    __slots__ = ("errors", "requests", "score_sum", "scores", "task_id", "version")

    def __init__(self, task_id: str, version: str) -> None:
        self.task_id, self.version = task_id, version
        self.requests = 0
        self.errors: dict[str, int] = {}
        self.scores = [0] * (len(SCORE_BUCKETS) + 1)  # the last one: rounded up to above 1
        self.score_sum = 0.0

    def answered(self, scores: Sequence[Scores]) -> None:
        """Count a request with these scores, a row for each text."""
        self.requests += 1
        for row in scores:
            best = max(row)
            self.scores[bisect_left(SCORE_BUCKETS, best)] += 1
            self.score_sum += best

    def failed(self, code: str) -> None:
        """Count a request that ended with an error."""
        self.requests += 1
        self.errors[code] = self.errors.get(code, 0) + 1

    def as_json(self) -> dict[str, Any]:
        """The counts as the admin API shows them; `at_most` is a bucket's upper bound."""
        texts = sum(self.scores)
        return {
            "requests": self.requests,
            "errors": dict(self.errors),
            "scores": {
                "texts": texts,
                "mean": self.score_sum / texts if texts else None,
                "buckets": [
                    {"at_most": bound, "texts": count}
                    for bound, count in zip(SCORE_BUCKETS, _folded(self.scores), strict=True)
                ],
            },
        }

    def cumulative(self) -> list[int]:
        """Scores at or below each of SCORE_BUCKETS; all of them at the last."""
        total, sums = 0, []
        for count in _folded(self.scores):
            total += count
            sums.append(total)
        return sums


class Traffic:
    """Counts by version. `listed` are the tasks that the operator lists."""

    def __init__(self, listed: Iterable[str]) -> None:
        self._listed = frozenset(listed)
        self._tasks: dict[str, tuple[VersionCounts, ...]] = {}
        self._versions: dict[str, VersionCounts] = {}

    def of(self, version: str) -> VersionCounts | None:
        """The version's counts; None where it is not counted. The hot path: one look into a dict."""
        return self._versions.get(version)

    def all(self) -> list[VersionCounts]:
        """Everything that is counted, listed tasks first. Safe from any thread."""
        return sorted(self._versions.values(), key=lambda counts: counts.task_id not in self._listed)

    def watched(self) -> list[str]:
        """Ids of the tasks whose versions are counted, listed ones first. Safe from any thread."""
        return sorted(self._tasks, key=lambda task_id: task_id not in self._listed)

    def follow(self, task_id: str, before: ServedTask | None, now: ServedTask | None) -> None:
        """Hear that a task has changed."""
        del before
        aliases = now.aliases.values() if now is not None else ()
        watched = task_id in self._listed or any(len(targets) > 1 for targets in aliases)
        if not watched and task_id not in self._tasks:
            return
        active = {target.version for targets in aliases for target in targets} if watched else set()
        for counts in self._tasks.pop(task_id, ()):
            if counts.version not in active:
                del self._versions[counts.version]
        if active:
            self._tasks[task_id] = tuple(
                self._versions.setdefault(version, VersionCounts(task_id, version))
                for version in sorted(active)
            )


def _folded(scores: Sequence[int]) -> list[int]:
    """The counts of the buckets, with what rounding put above 1 in the last."""
    return [*scores[:-2], scores[-2] + scores[-1]]
