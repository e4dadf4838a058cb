"""The model of a disk that the crash experiment rests on: what survives, what may, and what may not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest.faults.crash import judge
from loadtest.faults.crash_recording import Expected
from loadtest.faults.crash_states import Found
from loadtest.faults.operations import (
    Create,
    Link,
    MakeFolder,
    Mark,
    Operation,
    Remove,
    Rename,
    Resize,
    Sync,
    Tree,
    Write,
    read_tree,
    write_tree,
)
from loadtest.faults.power_cut import Disk


def states(operations: Sequence[Operation], base: Tree | None = None, **how: Any) -> list[Tree]:
    """What a cut after all of the operations may leave."""
    disk = Disk(base or {}, operations)
    how = {"samples": 64} | how
    found = []
    for cut in disk.cuts(**how):
        if cut.at == len(operations) and (tree := disk.tree(cut)) not in found:
            found.append(tree)
    return found


def test_nothing_that_was_not_synced_need_be_there() -> None:
    made = [Create("a"), Write("a", 0, b"x")]
    assert states(made) == [{}, {"a": b"x"}, {"a": b""}]


def test_the_sync_of_a_file_says_nothing_of_its_name() -> None:
    made = [Create("a"), Write("a", 0, b"x"), Sync("a", 2)]
    assert states(made) == [{}, {"a": b"x"}]


def test_the_sync_of_a_folder_says_nothing_of_the_bytes() -> None:
    made = [Create("a"), Write("a", 0, b"x"), Sync("", 2)]
    assert states(made) == [{"a": b""}, {"a": b"x"}]


def test_both_syncs_leave_one_state() -> None:
    made = [Create("a"), Write("a", 0, b"x"), Sync("a", 2), Sync("", 3)]
    assert states(made) == [{"a": b"x"}]


def test_a_sync_covers_only_what_was_complete_when_it_began() -> None:
    made = [Create("a"), Sync("", 1), Write("a", 0, b"x"), Write("a", 1, b"y"), Sync("a", 3)]
    assert states(made) == [{"a": b"x"}, {"a": b"xy"}]


def test_a_rename_is_durable_with_the_folder_of_the_new_name_and_as_one() -> None:
    base: Tree = {"tmp": None, "tmp/x": b"new", "blobs": None, "blobs/x": b"old"}
    before, after = base, {"tmp": None, "blobs": None, "blobs/x": b"new"}
    moved = [Rename("tmp/x", "blobs/x")]
    assert states(moved, base) == [before, after]
    assert states([*moved, Sync("tmp", 1)], base) == [before, after]
    assert states([*moved, Sync("blobs", 1)], base) == [after]


def test_a_rename_may_survive_without_the_bytes() -> None:
    moved = [Create("t"), Write("t", 0, b"x"), Rename("t", "a"), Sync("", 3)]
    assert states(moved) == [{"a": b""}, {"a": b"x"}]


def test_a_file_in_a_folder_that_was_never_synced_is_lost_with_it() -> None:
    made = [MakeFolder("f"), Create("f/a"), Write("f/a", 0, b"x"), Sync("f/a", 3), Sync("f", 4)]
    assert states(made) == [{}, {"f": None, "f/a": b"x"}]


def test_a_removal_comes_undone_until_its_folder_is_synced() -> None:
    base: Tree = {"a": b"x"}
    assert states([Remove("a")], base) == [base, {}]
    assert states([Remove("a"), Sync("", 1)], base) == [{}]


def test_names_made_again_and_second_names_are_followed() -> None:
    made = [Create("a"), Write("a", 0, b"1"), Link("a", "b"), Remove("a"), Create("a"), Write("a", 0, b"2")]
    assert Disk({}, made).seen() == {"a": b"2", "b": b"1"}
    renamed = [MakeFolder("f"), Create("f/a"), Rename("f", "g"), Write("g/a", None, b"x")]
    assert Disk({}, renamed).seen() == {"g": None, "g/a": b"x"}


def test_lengths_follow_writes_in_the_middle_and_resizing() -> None:
    made = [Create("a"), Write("a", 2, b"xy"), Resize("a", 3), Write("a", None, b"z"), Resize("a", 6)]
    assert Disk({}, made).seen() == {"a": b"\0\0xz\0\0"}


def test_writes_survive_in_any_order() -> None:
    written = [Write("a", 0, b"1"), Write("a", 1, b"2")]
    assert states(written, {"a": b"--"}) == [{"a": b"--"}, {"a": b"12"}, {"a": b"1-"}, {"a": b"-2"}]


def test_only_the_last_write_is_torn_at_sectors_and_at_odd_bytes() -> None:
    torn = states([Write("a", 100, bytes([1]) * 2000)], {"a": b""}, sectors=9, journal=True)
    lengths = sorted(len(tree["a"] or b"") - 100 for tree in torn if tree["a"])
    assert lengths == [1, 412, 924, 1001, 1436, 1948, 1999, 2000]
    assert [*states([Write("a", 0, b"12"), Sync("a", 1)], {"a": b""})] == [{"a": b"12"}]


def test_what_did_not_arrive_may_read_as_zeros_but_not_in_a_journal() -> None:
    written = [Write("a", 0, b"1234")]
    torn: list[Tree] = [{"a": b"1"}, {"a": b"123"}]
    assert states(written, {"a": b""}) == [
        {"a": b""},
        {"a": b"1234"},
        *torn,
        {"a": bytes(4)},
        {"a": b"123\0"},
    ]
    assert states(written, {"a": b""}, journal=True) == [{"a": b""}, {"a": b"1234"}, *torn]


def test_a_deaf_sync_does_nothing() -> None:
    made = [Create("a"), Sync("", 1, "me")]
    assert states(made) == [{"a": b""}]
    assert states(made, deaf=["me"]) == [{}, {"a": b""}]


def test_there_is_a_cut_after_every_operation_and_marks_change_nothing() -> None:
    disk = Disk({}, [Mark("CALL"), Create("a"), Mark("ACK")])
    assert [(cut.at, disk.tree(cut)) for cut in disk.cuts()] == [
        (0, {}),
        (1, {}),
        (2, {}),
        (2, {"a": b""}),
        (3, {}),
        (3, {"a": b""}),
    ]


def test_many_open_operations_are_sampled_and_the_same_seed_gives_the_same_samples() -> None:
    made = [operation for n in range(20) for operation in (Create(f"{n}"), Write(f"{n}", 0, bytes(2000)))]
    cuts = [*Disk({}, made).cuts(samples=8)]
    assert cuts == [*Disk({}, made).cuts(samples=8)]
    assert cuts != [*Disk({}, made).cuts(samples=8, seed=1)]
    last = [cut for cut in cuts if cut.at == len(made)]
    assert len({cut.kept for cut in last}) == 10
    assert any(len(cut.torn) > 1 for cut in last)


def test_a_journal_keeps_names_in_order_and_every_sync_takes_them_along() -> None:
    made = [Create("a"), Create("b"), Create("c")]
    assert len(states(made)) == 8
    assert sorted("".join(tree) for tree in states(made, journal=True)) == ["", "a", "ab", "abc"]
    synced = [MakeFolder("f"), Create("f/a"), Write("f/a", 0, b"x"), Sync("f/a", 3)]
    assert states(synced) == [{}, {"f": None, "f/a": b"x"}, {"f": None}]
    assert states(synced, journal=True) == [{"f": None, "f/a": b"x"}]


def test_a_trace_that_names_what_was_never_made_is_refused() -> None:
    with pytest.raises(KeyError):
        Disk({}, [Write("a", 0, b"x")])


def test_a_tree_is_a_folder(tmp_path: Path) -> None:
    tree: Tree = {"f": None, "f/a": b"x", "f/empty": None, "b": b""}
    write_tree(tree, tmp_path / "made")
    assert read_tree(tmp_path / "made") == tree


def seen(
    number: int, tasks: Sequence[str] = (), lost: Sequence[str] = (), epoch: str = "e"
) -> dict[str, Any]:
    return {"revision": [epoch, number], "tasks": {task: {} for task in tasks}, "lost": [*lost]}


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (Found(seen(1, "a")), None),
        (Found(seen(2, "ab")), None),
        (Found(seen(0)), "lost"),
        (Found(seen(1, "a", epoch="another")), "lost"),
        (Found(seen(2, "ab", ["v"])), "half visible"),
        (Found(seen(2, "a")), "neither before nor after"),
        (Found(seen(3, "abc")), "neither before nor after"),
        (Found(None, "malformed"), "does not open"),
        (Found(seen(1, "a"), "no space"), "does not work"),
    ],
)
def test_what_is_found_is_before_the_call_or_after_it_and_nothing_else(
    found: Found, kind: str | None
) -> None:
    violation = judge(7, Expected(seen(1, "a"), seen(2, "ab"), "publish"), found)
    assert (violation and violation.kind) == kind


def test_a_new_store_is_empty_until_something_was_acknowledged() -> None:
    assert judge(0, Expected(None), Found(seen(0, epoch="any"))) is None
    violation = judge(0, Expected(None), Found(seen(1, "a")))
    assert violation
    assert violation.kind == "appeared"
