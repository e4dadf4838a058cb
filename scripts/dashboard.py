"""Write the Grafana dashboard, and the alert rules as a Prometheus outside Kubernetes reads them.

    python -m scripts.dashboard

Owns: the dashboard's choices and annotations, and where the files lie. The rules are written by hand, in
prometheusrule.yaml; what the panels ask is in `dashboard_rows`. A test says when a file is stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from scripts.dashboard_rows import ROWS
from scripts.grafana import BLUE, GREEN, ORANGE, RED, Json, annotation, laid_out, variable
from scripts.promql import ON, TASK

ROOT: Final = Path(__file__).resolve().parents[1]
DASHBOARD: Final = ROOT / "deploy/k8s/components/monitoring/dashboard.json"
RULES: Final = ROOT / "deploy/k8s/components/monitoring/prometheusrule.yaml"
ALERTS: Final = ROOT / "docker/prometheus/alerts.yaml"

ANNOTATIONS: Final = [
    annotation(
        "Publishes", BLUE, f"max(changes(promptmux_store_revision{{{ON}}}[1m])) > 0", "the store changed"
    ),
    annotation(
        "New live versions", GREEN,
        f"count by (task, alias, version) (promptmux_task_version_info{{{TASK}}})"
        f" unless count by (task, alias, version) (promptmux_task_version_info{{{TASK}}} offset 1m)",
        "{{task}}@{{alias}} leads to {{version}}",
    ),
    annotation(
        "Rollbacks", RED, f"sum by (code) (increase(promptmux_auto_rollbacks_total{{{ON}}}[1m])) > 0",
        "rolled back: {{code}}",
    ),
    annotation(
        "Refusals", ORANGE, f"sum(delta(promptmux_catalogue_troubled_tasks{{{ON}}}[1m])) > 0",
        "a task is not served as the store says",
    ),
    annotation(
        "Starts", "purple",
        f"time() - (process_start_time_seconds{{{ON}}} and on (job, instance) promptmux_ready) < 60",
        "{{pod}} {{instance}} started",
    ),
]  # fmt: skip


def dashboard() -> Json:
    """The whole of it."""
    return {
        "uid": "promptmux",
        "title": "promptmux",
        "description": "Is it up, is it fast, who uses it, what is live where, and what changed when it got slow.",
        "tags": ["promptmux"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                },
                variable(
                    "namespace",
                    "Namespace",
                    "label_values(promptmux_ready, namespace)",
                    "Of a fleet in Kubernetes; elsewhere there is none, and All is everything.",
                ),
                variable(
                    "instance",
                    "Replica",
                    'label_values(promptmux_ready{namespace=~"$namespace"}, instance)',
                    "All, or some.",
                ),
                variable(
                    "task",
                    "Task",
                    'label_values({__name__=~"promptmux_task_requests_total|promptmux_task_version_info"}, task)',
                    "Tasks in metrics_tasks, and split ones; others are _other.",
                ),
            ]
        },
        "annotations": {"list": ANNOTATIONS},
        "panels": laid_out(ROWS),
    }


def alerts(rules: str) -> str:
    """The `spec` of the PrometheusRule, which is what a rules file holds, with its comments."""
    _, _, spec = rules.partition("\nspec:\n")
    lines = [line.removeprefix("  ") for line in spec.splitlines()]
    head = "# Written by scripts/dashboard.py from deploy/k8s/components/monitoring/prometheusrule.yaml; do not edit.\n"
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Write both files."""
    DASHBOARD.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
    ALERTS.parent.mkdir(parents=True, exist_ok=True)
    ALERTS.write_text(alerts(RULES.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
