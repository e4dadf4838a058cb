"""A picture of a locust run: what was answered a second, and how long that took, over time.

Owns: reading locust's history file and drawing it. Must not know: what ran.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

_INK: Final = "#222222"
_LINES: Final = (("50%", "half", "#7aa6c2"), ("95%", "95 %", "#2f6f9f"), ("99%", "99 %", "#12344d"))


def draw(history: Path, picture: Path, title: str) -> None:
    """Draw the run in `history` (locust's `…_stats_history.csv`) into `picture`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with history.open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["Name"] == "Aggregated" and row["50%"] not in ("", "N/A")
        ]
    seconds = [int(row["Timestamp"]) - int(rows[0]["Timestamp"]) for row in rows]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    figure.suptitle(title, fontsize=11, color=_INK)
    above.plot(seconds, [float(row["Requests/s"]) for row in rows], color="#2f6f9f")
    failures = [float(row["Failures/s"]) for row in rows]
    if any(failures):
        above.plot(seconds, failures, color="#b3261e", label="failed")
        above.legend(frameon=False)
    above.set_ylabel("requests a second")
    for column, label, colour in _LINES:
        below.plot(seconds, [float(row[column]) for row in rows], color=colour, label=label)
    below.set_ylabel("latency, ms (last 10 s)")
    below.set_xlabel("seconds")
    below.legend(frameon=False, title="answered within", ncols=3)
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
