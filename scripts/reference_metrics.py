"""Write docs/reference/metrics.md from the metrics' declarations.

    python -m scripts.reference_metrics

Owns: the page's order and its words around the tables. Must not know: any metric by name, but for their groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from server.metric_family import PREFIX, Family
from server.metrics import Metrics
from server.version_series import MAX_VERSIONS

PAGE: Final = Path(__file__).resolve().parents[1] / "docs/reference/metrics.md"
# Title → how the names begin after the prefix; a metric belongs to the first that fits.
GROUPS: Final = {
    "Server": ("build_info", "ready", "background_failures", "device_memory"),
    "Requests": ("http_", "clients_gone", "task_requests", "rejected_requests"),
    "Queue and forward": (
        "queue_", "tokenize_", "forward_", "batch_", "rows_", "dropped_rows", "numerical_errors",
    ),
    "Prompts and their tiers": ("tier_", "prompt_load"),
    "Versions": ("version_", "task_version_info", "quarantined", "auto_rollbacks", "refused_versions"),
    "Catalogue and store": ("catalogue_", "store_", "unreadable_tasks", "serving_snapshot", "snapshot_"),
}  # fmt: skip
_HEAD: Final = f"""# Metrics

<!-- Written by scripts/reference_metrics.py from server/metrics.py; do not edit. -->

`GET /metrics` on the admin port, in Prometheus's text format. Where the server has keys it asks for one with the scope
`metrics`, which opens nothing else, or `admin`:

```sh
promptmux key prometheus --scope metrics
```

Names begin with `{PREFIX}`, units are seconds and bytes, counters end with `_total`. Series of a histogram have
`_bucket` (with the label `le`), `_sum` and `_count` behind its name. No label grows with the number of tasks: `task` is
one of the setting `metrics_tasks` or `_other`, in series of versions also a task that is split; at most {MAX_VERSIONS}
versions have series. `version` is the first 12 digits of the digest, but for `{PREFIX}build_info`, where it is the
server's.

Alerts on these: [runbooks](../runbooks/README.md). A dashboard:
[dashboard.json](../../deploy/k8s/components/monitoring/dashboard.json).
"""
_TAIL: Final = """
## Of the process

`process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds`,
`process_max_fds` and `process_start_time_seconds` (on Linux), `python_info` and `python_gc_*`, as the Prometheus
client for Python has them. Counters and histograms are followed by a series with `_created` in place of their ending:
when they began, in seconds since 1970.
"""


def group_of(family: Family) -> str:
    """The title that the metric stands under; KeyError says that GROUPS has no place for it."""
    for title, starts in GROUPS.items():
        if family.name.removeprefix(PREFIX).startswith(starts):
            return title
    raise KeyError(family.name)


def page() -> str:
    """The whole page."""
    families = Metrics(CollectorRegistry()).families
    parts = [_HEAD]
    for title in GROUPS:
        rows = [
            f"| `{family.name}` | {family.kind} | {' '.join(f'`{it}`' for it in family.labels)} | {family.text} |"
            for family in families
            if group_of(family) == title
        ]
        parts.append(
            "\n".join([f"## {title}\n", "| name | kind | labels | |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts) + _TAIL


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
