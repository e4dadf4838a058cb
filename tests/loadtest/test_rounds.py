from __future__ import annotations

from rich.console import Console

from loadtest.bench.rounds import Rounds, SideFailed, alternate


def test_sides_take_turns_and_the_order_turns_around(console: Console) -> None:
    ran: list[str] = []

    def side(name: str, seconds: float) -> float:
        ran.append(name)
        return seconds

    rounds = alternate({"a": lambda: side("a", 1.0), "b": lambda: side("b", 2.0)}, 3, console=console)
    assert "".join(ran) == "ab" + "ba" + "ab" + "ba"  # the first turn only warms up
    assert rounds.seconds == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert rounds.ratio("a", "b") == 2.0


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    # Both sides were five times as slow in the second round: its ratio does not notice.
    rounds = Rounds({"a": [1.0, 5.0, 1.0], "b": [2.0, 10.0, 3.0]})
    assert rounds.ratios("a", "b") == [2.0, 2.0, 3.0]
    assert rounds.ratio("a", "b") == 2.0
    assert rounds.median("a") == 1.0
    assert rounds.spread("a") == 4.0


def test_a_side_that_fails_leaves_and_says_why(console: Console) -> None:
    turns = iter([1.0, 1.0])

    def fails() -> float:
        for seconds in turns:
            return seconds
        raise SideFailed("the worker is gone")

    rounds = alternate({"a": lambda: 1.0, "b": fails}, 3, console=console)
    assert rounds.seconds == {"a": [1.0] * 3}
    assert rounds.failed == {"b": "the worker is gone"}


def test_without_a_terminal_a_round_is_a_line(console: Console) -> None:
    alternate({"a": lambda: 1.0}, 2, console=console, title="forward")
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "forward: warm-up", "forward: round 1 of 2", "forward: round 2 of 2",
    ]  # fmt: skip
