"""The dashboard's form: it is what its script writes, nothing overlaps, and every panel can be read."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from scripts import dashboard as script
from scripts.grafana import COLUMNS
from tests.monitoring.test_names import dashboard

UNITS = {"short", "s", "bytes", "reqps", "ops", "percentunit"}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def test_the_file_is_what_the_script_writes() -> None:
    written = script.DASHBOARD.read_text(encoding="utf-8")
    assert json.loads(written) == script.dashboard(), "run python -m scripts.dashboard"


def test_the_rules_outside_kubernetes_are_those_inside() -> None:
    rules = script.RULES.read_text(encoding="utf-8")
    assert script.ALERTS.read_text(encoding="utf-8") == script.alerts(rules), (
        "run python -m scripts.dashboard"
    )


def cells(place: dict[str, int]) -> set[tuple[int, int]]:
    return set(
        itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    )


def overlaps(placed: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (one["title"], other["title"])
        for one, other in itertools.combinations(placed, 2)
        if cells(one["gridPos"]) & cells(other["gridPos"])
    ]


def test_no_panel_lies_on_another_or_beside_the_grid() -> None:
    placed = dashboard()["panels"]
    assert overlaps(placed) == []
    for panel in placed:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS
        assert place["w"] > 0
        assert place["h"] > 0
    moved = [*placed[:-1], {**placed[-1], "gridPos": placed[1]["gridPos"]}]
    assert overlaps(moved) == [(placed[1]["title"], placed[-1]["title"])]  # it would be noticed


def test_ids_and_titles_are_unique() -> None:
    placed = dashboard()["panels"]
    assert len({panel["id"] for panel in placed}) == len(placed)
    assert len({panel["title"] for panel in placed}) == len(placed)


def test_every_panel_says_what_it_shows() -> None:
    for panel in panels():
        title = panel["title"]
        assert len(panel["description"]) > 10, title
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title
        assert panel["targets"], title
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None, title
        bounds = [step["value"] for step in steps[1:]]
        assert bounds == sorted(bounds), title
        for target in panel["targets"]:
            assert target["expr"].strip(), title
            assert target["legendFormat"].strip(), title
            assert target["datasource"]["uid"] == "${datasource}", title


def test_variables_that_are_used_are_there_and_the_other_way_round() -> None:
    board = dashboard()
    defined = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps([board["panels"], board["annotations"]])
    used = set(re.findall(r"\$\{?([a-z]\w*)\}?", text))
    assert defined == used == {"datasource", "namespace", "instance", "task"}


def test_the_questions_stand_in_their_order() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows[:5] == [
        "Is it up?",
        "Is it fast?",
        "Who uses it?",
        "Which prompt version is live where?",
        "What changed when it got slow?",
    ]
    assert dashboard()["annotations"]["list"][0]["name"] == "Publishes"
