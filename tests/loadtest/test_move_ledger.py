from loadtest.faults.move_ledger import MoveLedger


def ledger(*versions: str) -> MoveLedger:
    made = MoveLedger()
    for version in versions:
        made.begin(0, version)
    return made


def ask(made: MoveLedger, replica: str, version: str) -> str | None:
    return made.answered(0, replica, made.reached(0), version)


def test_before_anything_is_known_every_move_may_be_the_one() -> None:
    made = ledger("a", "b", "c")
    assert made.current(0) == "c"
    for version in "abc":
        assert made.answered(0, "one", {}, version) is None


def test_a_version_that_no_move_led_to_is_found() -> None:
    assert "never current" in str(ask(ledger("a"), "one", "x"))


def test_a_replica_that_acknowledged_a_move_does_not_go_back() -> None:
    made = ledger("a", "b")
    made.acknowledge(0, 1, "one")
    assert "one was at move 1 of task 0 and answered as of move 0" in str(ask(made, "one", "a"))
    assert ask(made, "one", "b") is None
    assert ask(made, "two", "a") is None  # nothing is known of it yet


def test_a_replica_that_answered_with_a_later_move_does_not_go_back() -> None:
    made = ledger("a", "b")
    assert ask(made, "one", "b") is None
    assert "gone back" in str(ask(made, "one", "a"))


def test_what_was_asked_before_a_move_may_be_answered_as_before_it() -> None:
    made = ledger("a")
    asked = made.reached(0)
    made.acknowledge(0, made.begin(0, "b"), "one")
    assert made.answered(0, "one", asked, "a") is None
    assert "gone back" in str(ask(made, "one", "a"))


def test_a_rollback_makes_an_old_version_right_again() -> None:
    made = ledger("a", "b")
    made.acknowledge(0, 1, "one")
    move = made.begin(0, "a")
    assert ask(made, "one", "a") is None  # it may have happened already, and then
    assert "gone back" in str(ask(made, "one", "b"))  # it has
    made.acknowledge(0, move, "one")
    assert ask(made, "one", "a") is None


def test_of_two_moves_to_one_version_only_the_earlier_is_certain() -> None:
    made = ledger("a", "b", "a", "b")
    assert ask(made, "one", "b") is None
    assert made.reached(0) == {"one": 1}
    assert ask(made, "one", "a") is None
    assert made.reached(0) == {"one": 2}
