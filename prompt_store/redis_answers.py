"""What the scripts answer: the values, or the error that they name.

Owns: the scripts' status words. Must not know: what a script does, connections.
"""

from typing import Any

from prompt_store.errors import (
    CorruptVersion,
    PromptStoreError,
    RevisionConflict,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
)

Answer = list[Any]


def unwrapped(answer: Answer, task: str, alias: str = "", expected: int | None = None) -> Answer:
    """What follows `ok` in a script's answer; else the error that it names."""
    status, *rest = answer
    match status.decode():
        case "ok":
            return rest
        case "unknown_task":
            raise UnknownTask(f"unknown task {task}")
        case "unknown_version":
            raise UnknownVersion(f"task {task} has no such version")
        case "unknown_alias":
            raise UnknownAlias(f"task {task} has no alias {alias}")
        case "corrupt":
            raise corrupt(task)
        case "in_use":
            name = rest[0].decode()
            raise VersionInUse(f"the alias {name} of task {task} leads there: move or delete it first")
        case "conflict":
            current = int(rest[0])
            where = f"is at revision {current}" if current else "does not exist"
            raise RevisionConflict(
                f"expected the alias {alias} at revision {expected}, but it {where}", current=current
            )
        case "schema":
            raise PromptStoreError(
                "the store in Redis was made by another promptmux: upgrade, or use another prefix"
            )
        case other:
            raise AssertionError(f"a script answered {other}")


def corrupt(task: str) -> CorruptVersion:
    """Bytes that are lost, or not those that were published."""
    return CorruptVersion(f"the bytes of a version of task {task} are lost or damaged: publish it anew")
