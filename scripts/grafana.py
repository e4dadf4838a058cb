"""Panels of a Grafana dashboard as JSON, and where they stand.

Owns: the form that Grafana reads, and the grid: 24 columns, filled from left to right. Must not know: any metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]
COLUMNS: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"


@dataclass(frozen=True)
class Target:
    """One query. `legend` names its series; `instant` asks for now alone."""

    expr: str
    legend: str
    instant: bool = False

    def as_json(self, ref: str, *, table: bool) -> Json:
        """As a panel holds it; one that is asked for now alone has no range."""
        return {
            "datasource": SOURCE,
            "refId": ref,
            "expr": self.expr,
            "legendFormat": self.legend,
            "range": not self.instant,
            "instant": self.instant,
            "format": "table" if table else "time_series",
        }


@dataclass(frozen=True)
class Panel:
    """One picture. `steps` are thresholds: the value from which on a colour holds, the first one from the start."""

    title: str
    text: str
    targets: Sequence[Target]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    steps: Sequence[tuple[float | None, str]] = ((None, GREEN),)
    low: float | None = 0
    high: float | None = None
    hidden: Sequence[str] = ()  # columns of a table
    names: Mapping[str, str] = field(default_factory=dict)  # of a table's columns
    words: Mapping[str, tuple[str, str]] = field(
        default_factory=dict
    )  # value → what is shown for it, and its colour

    def as_json(self, number: int, x: int, y: int) -> Json:
        """The panel at its place."""
        table = self.kind == "table"
        made: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                target.as_json(chr(ord("A") + at), table=table) for at, target in enumerate(self.targets)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
        }
        if table:
            made["transformations"] = [
                {"id": "merge", "options": {}},
                {
                    "id": "organize",
                    "options": {
                        "excludeByName": dict.fromkeys(("Time", "Value", *self.hidden), True),
                        "renameByName": dict(self.names),
                    },
                },
            ]
        return made

    def _defaults(self) -> Json:
        defaults: Json = {
            "unit": self.unit,
            "color": {"mode": "palette-classic" if self.kind == "timeseries" else "thresholds"},
            "thresholds": {
                "mode": "absolute",
                "steps": [{"value": value, "color": color} for value, color in self.steps],
            },
        }
        for name, bound in (("min", self.low), ("max", self.high)):
            if bound is not None:
                defaults[name] = bound
        if self.words:
            options = {
                value: {"text": text, "color": color, "index": at}
                for at, (value, (text, color)) in enumerate(self.words.items())
            }
            defaults["mappings"] = [{"type": "value", "options": options}]
        if self.kind == "timeseries":
            defaults["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 40 if self.stacked else 5,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if len(self.steps) > 1 else "off"},
            }
        return defaults

    def _options(self) -> Json:
        if self.kind == "timeseries":
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        if self.kind == "stat":
            return {
                "colorMode": "background",
                "graphMode": "none",
                "textMode": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        if self.kind == "state-timeline":
            return {"mergeValues": True, "showValue": "never", "legend": {"showLegend": True}}
        return {"showHeader": True, "cellHeight": "sm"}


def laid_out(rows: Mapping[str, Sequence[Panel]]) -> list[Json]:
    """A row's title above its panels, which stand side by side until there is no room."""
    made: list[Json] = []
    y = 0
    for title, panels in rows.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": place,
            }
        )
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            made.append(panel.as_json(len(made) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return made


def variable(name: str, label: str, query: str, text: str) -> Json:
    """A choice of any number of a label's values above the dashboard; `.*` for all of them."""
    return {
        "name": name,
        "label": label,
        "description": text,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def annotation(name: str, color: str, expr: str, title: str) -> Json:
    """Vertical lines in every panel, where `expr` has a value."""
    return {
        "name": name,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "datasource": SOURCE,
        "expr": expr,
        "step": "30s",
        "titleFormat": title,
        "useValueForTime": False,
    }
