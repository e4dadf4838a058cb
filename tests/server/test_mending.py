from server.mending import Mending


def turns(mending: Mending, task: str, *, until: float) -> list[float]:
    return [at / 10 for at in range(int(until * 10)) if mending.due({task}, at / 10)]


def test_each_try_in_vain_doubles_the_pause() -> None:
    assert turns(Mending(2.0), "task", until=35) == [0, 2, 6, 14, 30]


def test_a_pause_has_an_end() -> None:
    tried = turns(Mending(2.0), "task", until=400)
    assert tried[-1] - tried[-2] == 60


def test_what_was_mended_starts_afresh() -> None:
    mending = Mending(2.0)
    assert mending.due({"task"}, 0.0) == mending.due({"task"}, 2.0) == ["task"]
    assert mending.due(set(), 3.0) == []
    assert mending.due({"task"}, 3.0) == ["task"]


def test_many_take_turns() -> None:
    mending = Mending(2.0)
    troubled = {f"t{number:03}" for number in range(150)}
    rounds = [mending.due(troubled, 0.1 * turn) for turn in range(4)]
    assert [len(one) for one in rounds] == [64, 64, 22, 0]
    assert {task for one in rounds for task in one} == troubled
