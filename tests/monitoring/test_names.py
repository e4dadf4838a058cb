"""Every metric that a dashboard, an alert, a manifest or a page names exists, with the labels that are used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import reference_metrics
from server.metric_family import PREFIX
from tests.monitoring import promql_names
from tests.monitoring.promql_names import FAMILIES, LABELS, faults

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/k8s/components/monitoring"
# A page may speak of a whole family (`promptmux_tier_*`), or of one that is gone.
TEXTS = [
    *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "ARCHITECTURE.md",
    *(file for folder in ("deploy", "docker") for file in (ROOT / folder).rglob("*") if file.is_file()),
]  # fmt: skip
NO_METRICS = {"promptmux_store"}  # a word of our own in a path or a name


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return loaded


def rules() -> list[dict[str, Any]]:
    spec = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text(encoding="utf-8"))["spec"]
    return [rule for group in spec["groups"] for rule in group["rules"]]


def expressions() -> list[tuple[str, str]]:
    board = dashboard()
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    found += [(one["name"], one["expr"]) for one in board["annotations"]["list"]]
    found += [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
        if "ALERTS{" not in target["expr"]  # Prometheus's own
    ]
    for page in (ROOT / "docs").rglob("*.md"):
        for block in re.findall(r"```promql\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            lines = re.sub(r"\n\s+", " ", block).splitlines()
            found += [(page.name, line) for line in lines if line and not line.startswith("#")]
    return found


@pytest.mark.parametrize(("where", "expr"), expressions())
def test_what_is_asked_exists(where: str, expr: str) -> None:
    assert not faults(expr), where


def test_a_wrong_name_or_label_would_be_noticed() -> None:
    assert faults("sum(rate(promptmux_rows[5m]))") == ["no series promptmux_rows"]  # without its _total
    assert faults("rate(promptmux_batch_rows[5m])")  # without _bucket, _sum or _count
    assert faults('promptmux_tier_hits_total{teir="host"}') == ["promptmux_tier_hits_total has no label teir"]
    assert faults("sum by (task) (promptmux_ready)") == ["no label task"]
    assert faults("vector(1)")
    assert not faults(
        'histogram_quantile(0.9, sum by (le) (rate(promptmux_batch_rows_bucket{instance="x"}[5m])))'
    )


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_in_a_text_is_a_series(file: Path) -> None:
    known = set(LABELS) | {family.name for family in FAMILIES} | NO_METRICS
    text = file.read_text(encoding="utf-8")
    named = {name for name in promql_names.names(text) if f"{name}*" not in text}
    assert named <= known, sorted(named - known)


def test_every_metric_has_the_prefix_a_help_text_and_the_ending_of_its_kind() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) > 50
    for family in FAMILIES:
        assert family.name.startswith(PREFIX)
        assert len(family.text.split()) >= 3, family.name
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)\b", family.name)


def test_the_reference_is_what_the_code_says() -> None:
    written = reference_metrics.PAGE.read_text(encoding="utf-8")
    assert written == reference_metrics.page(), "run python -m scripts.reference_metrics"
    assert all(f"| `{family.name}` |" in written for family in FAMILIES)


def test_the_autoscaler_finds_its_metric() -> None:
    assert LABELS["promptmux_queue_rows"] == set()
