from pathlib import Path

from loadtest.faults.outcome import Outcome, keep
from loadtest.faults.report import main


def test_every_kept_result_has_a_row_and_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "faults"
    rows = [{"fault": "kill | pause", "requests": 12345}, {"fault": "reset", "slowest": 0.123456}]
    for name, passed in (("one", True), ("another-one", False)):
        facts = {"backbone": "fake"} if passed else {}
        outcome = Outcome(name, passed, "nothing failed", 7, rows, facts)
        keep(outcome, folder, command=f"python -m loadtest.faults {name}", seconds=61.2)
    assert main(folder) == 0
    page = (tmp_path / "faults.md").read_text()
    assert "| [one](#one) | passed | fake | 7 |" in page
    assert "| [another-one](#another-one) | **failed** | – | 7 |" in page
    assert page.count("| fault | requests | slowest |") == 2
    assert "| kill \\| pause | 12,345 |  |" in page
    assert "| reset |  | 0.1235 |" in page
    assert "`python -m loadtest.faults one`" in page
