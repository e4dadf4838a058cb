"""`python -m loadtest.faults.report`: what the experiments found, from the results that are kept, as one page.

Owns: docs/results/faults.md. Must not know: how anything was found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path("docs/results/faults")
_HEAD: Final = """# What breaks, and what does not

Written by `python -m loadtest.faults.report` from the results in [faults/](faults/), each of which one command printed.
Counts of failures hold on any machine; rates, latencies and seconds are of the machine that is named, and of what else
ran on it.

Backbone `fake`: the whole server, in which a formula stands for the model: it tells which version of a prompt an answer
is from, and says nothing of the model's own work. –: the run did not write it down.
"""


def main(folder: Path = FOLDER) -> int:
    """Write the page beside the folder of results."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    page = folder.with_suffix(".md")
    page.write_text(
        "\n".join((_HEAD, *_overview(results), *(_section(one) for one in results))), encoding="utf-8"
    )
    print(f"{page}: {len(results)} experiments")
    return 0


def _overview(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "| experiment | verdict | backbone | seed | commit | load | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for one in results:
        verdict = "passed" if one["passed"] else "**failed**"
        backbone = one["facts"].get("backbone", "–")
        machine = one["machine"]
        load = machine["load_average"]
        yield (
            f"| [{one['name']}](#{_anchor(one['name'])}) | {verdict} | {backbone} | {one['seed']} "
            f"| {machine['commit']} | {load} | {one['seconds']:.0f} |"
        )
    yield ""


def _section(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    lines = [f"## {result['name']}", "", f"`{result['command']}`", "", f"Wanted: {result['wanted']}.", ""]
    columns = list(dict.fromkeys(name for row in result["rows"] for name in row))
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + "---|" * len(columns))
    for row in result["rows"]:
        lines.append("| " + " | ".join(_shown(row.get(name, "")) for name in columns) + " |")
    lines += [
        "",
        f"{machine['date']}, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores, load average "
        f"{machine['load_average']} at the end.",
        "",
    ]
    return "\n".join(lines)


def _shown(value: object) -> str:
    if type(value) is int:
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _anchor(name: str) -> str:
    return "".join(letter for letter in name.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


if __name__ == "__main__":
    sys.exit(main())
