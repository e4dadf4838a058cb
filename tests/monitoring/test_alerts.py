"""The alerts: each has its words and its page, and fires when it should, and only then, by promtool's judgement."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from scripts import dashboard
from tests.monitoring.alert_cases import CASES
from tests.monitoring.prometheus import promtool
from tests.monitoring.test_names import MONITORING, ROOT, rules

RUNBOOKS = ROOT / "docs/runbooks"
PAGES = {page.stem: page for page in RUNBOOKS.glob("*.md") if page.name != "README.md"}
SECTIONS = ("**What it means.**", "**What users see.**", "## Look", "## Do", "## Escalate")


def test_every_alert_says_how_bad_what_and_where_to_read_on() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 15
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, rule["alert"]
        # A mirror's address may stand before it.
        assert rule["annotations"]["runbook_url"].endswith(f"docs/runbooks/{rule['alert']}.md")


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert set(PAGES) == {rule["alert"] for rule in rules()}
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    for rule in rules():
        assert f"| [{rule['alert']}]({rule['alert']}.md) | {rule['labels']['severity']} |" in index


@pytest.mark.parametrize("alert", sorted(PAGES))
def test_every_page_answers_the_five_questions(alert: str) -> None:
    text = PAGES[alert].read_text(encoding="utf-8")
    assert text.startswith(f"# {alert}: ")
    places = [text.index(section) for section in SECTIONS]
    assert places == sorted(places)
    (rule,) = (rule for rule in rules() if rule["alert"] == alert)
    assert f"Severity: {rule['labels']['severity']}." in text
    assert "```" in text  # a command or a query, not advice alone


@pytest.mark.parametrize("alert", sorted(PAGES))
def test_what_a_page_looks_for_in_the_log_is_logged(alert: str) -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "server").glob("*.py"))
    for found in re.findall(r"grep (?:-E )?'?([a-z_|]+)'?", PAGES[alert].read_text(encoding="utf-8")):
        for event in found.split("|"):
            assert f'"{event}' in sources, event


def test_the_pages_name_codes_and_events_that_exist() -> None:
    files = [*(ROOT / "server").glob("*.py"), ROOT / "prompt_store/errors.py"]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    for page in PAGES.values():
        for row in re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", page.read_text(encoding="utf-8"), re.M):
            for word in re.findall(r"`([a-z_]+)`", row):
                assert f'"{word}"' in sources, f"{page.name}: {word}"


def test_each_alert_is_tried_both_ways() -> None:
    fires = Counter(case.alert for case in CASES if case.fires)
    silent = Counter(case.alert for case in CASES if not case.fires)
    assert set(fires) == set(silent) == {rule["alert"] for rule in rules()}


def judged(tmp_path: Path, rules_file: Path) -> str:
    """What promtool says of all cases."""
    tests = [
        {
            "name": f"{at} {case.alert}",
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{case.minute}m",
                    "exp_samples": [{"labels": "{}", "value": case.fires}],
                }
            ],
        }
        for at, case in enumerate(CASES)
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(rules_file)], "evaluation_interval": "1m", "tests": tests}),
        encoding="utf-8",
    )
    done = promtool("test", "rules", str(file))
    assert (done.returncode == 0) == ("SUCCESS" in done.stdout), done.stdout
    return done.stdout


def test_promtool_reads_the_rules() -> None:
    done = promtool("check", "rules", str(dashboard.ALERTS))
    assert done.returncode == 0, done.stdout
    assert f"SUCCESS: {len(rules())} rules found" in done.stdout


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    said = judged(tmp_path, dashboard.ALERTS)
    assert "SUCCESS" in said, said


@pytest.mark.parametrize(("expr", "fires"), [("vector(1) > 2", 0), ("vector(1)", 1)])
def test_alerts_that_are_always_silent_or_always_loud_would_be_noticed(
    tmp_path: Path, expr: str, fires: int
) -> None:
    groups = yaml.safe_load(dashboard.ALERTS.read_text(encoding="utf-8"))
    for group in groups["groups"]:
        for rule in group["rules"]:
            rule.update(expr=expr, labels={"severity": "x"}, annotations={})
            rule.pop("for", None)
    file = tmp_path / "alerts.yaml"
    file.write_text(yaml.safe_dump(groups), encoding="utf-8")
    said = judged(tmp_path, file)
    for alert in PAGES:
        expected = [case for case in CASES if case.alert == alert and case.fires != fires]
        assert len(re.findall(rf'alertname=\\+"{alert}\\+"', said)) == len(expected) > 0


def test_the_component_takes_in_every_file() -> None:
    component = yaml.safe_load((MONITORING / "kustomization.yaml").read_text(encoding="utf-8"))
    assert component["kind"] == "Component"
    named = {
        *component["resources"],
        *(f.partition("=")[2] for f in component["configMapGenerator"][0]["files"]),
    }
    assert named | {"kustomization.yaml"} == {file.name for file in MONITORING.iterdir()}
    assert component["configMapGenerator"][0]["options"]["labels"] == {"grafana_dashboard": "1"}


def test_prometheus_is_sent_where_metrics_are_with_the_key_that_opens_them() -> None:
    monitor = yaml.safe_load((MONITORING / "servicemonitor.yaml").read_text(encoding="utf-8"))["spec"]
    assert monitor["jobLabel"] == "app.kubernetes.io/name"  # alerts look for the job `promptmux`
    assert monitor["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": "promptmux",
        "app.kubernetes.io/component": "server",
    }
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("admin", "/metrics")
    assert endpoint["authorization"]["credentials"] == {"name": "promptmux-metrics-key", "key": "key"}
