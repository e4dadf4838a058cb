"""What an expression asks of us: names of series, and their labels with the values that they are compared with.

Owns: a rough reading of PromQL, enough for names that are ours. Prometheus itself judges the rest, in
test_prometheus.py and test_alerts.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry

from server.metrics import Metrics

FAMILIES: Final = Metrics(CollectorRegistry()).families
LABELS: Final = {series: set(family.labels) for family in FAMILIES for series in family.series} | {
    f"{family.name}_bucket": {*family.labels, "le"} for family in FAMILIES if family.kind == "histogram"
}
# Of the client for Python, of Prometheus itself, and what a scrape adds.
OTHERS: Final = {
    "process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds", "up",
}  # fmt: skip
TARGET: Final = {"job", "instance", "pod", "namespace"}
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"")
_SELECTOR = re.compile(r"\b(promptmux_\w+|process_\w+|up)\b\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def names(text: str) -> set[str]:
    """Every name in a text that begins as ours do."""
    return set(re.findall(r"\bpromptmux_[a-z0-9_]+\b", text))


def selectors(expr: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each series that is asked for, with its matchers."""
    for match in _SELECTOR.finditer(_GROUPED.sub(" ", expr)):
        yield match[1], dict(_MATCHER.findall(match[2] or ""))


def faults(expr: str) -> list[str]:
    """What no server of ours would answer."""
    found, known = [], set(TARGET)
    asked = list(selectors(expr))
    for name, matchers in asked:
        if name not in LABELS and name not in OTHERS:
            found.append(f"no series {name}")
            continue
        own = LABELS.get(name, set()) | TARGET
        known |= own
        found += [f"{name} has no label {label}" for label in matchers if label not in own]
    for group in _GROUPED.findall(_STRING.sub('""', expr)):
        found += [f"no label {label}" for label in re.findall(r"\w+", group) if label not in known]
    if not asked:
        found.append("asks nothing of us")
    return found
