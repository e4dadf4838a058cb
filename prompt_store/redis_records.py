"""Records as the scripts keep them in Redis, and as the contract speaks of them.

Owns: the text forms in task hashes and event lists. Must not know: keys, connections.
"""

import json
from collections.abc import Mapping
from typing import Any

from prompt_store.records import alias_record, as_damaged, version_record
from prompt_store.store import Action, AliasRecord, Event, TaskRecord, VersionRecord


def task_of(task_id: str, fields: Mapping[bytes, bytes]) -> TaskRecord | None:
    """The task in a hash; None when there is none, or a tombstone. PromptStoreError for what no promptmux wrote."""
    with as_damaged(task_id):
        return _task_of(task_id, fields)


def _task_of(task_id: str, fields: Mapping[bytes, bytes]) -> TaskRecord | None:
    if fields.get(b"deleted") != b"0":
        return None
    aliases: dict[str, AliasRecord] = {}
    versions: list[tuple[int, VersionRecord]] = []
    for name, value in fields.items():
        if not value:
            continue
        kind, _, rest = name.decode().partition(":")
        if kind == "a":
            revision, _, targets = value.decode().partition(" ")
            aliases[rest] = alias_record(rest, targets, int(revision))
        elif kind == "v":
            revision, size, text = value.decode().split(" ", 2)
            record = json.loads(text)  # of a later promptmux it may say more
            known = (record["published_at"], record["method"], record["labels"])
            versions.append((int(revision), version_record(rest, int(size), *known)))
    versions.sort(key=lambda entry: entry[0], reverse=True)
    return TaskRecord(
        task_id,
        dict(sorted(aliases.items())),
        tuple(record for _, record in versions),
        int(fields[b"revision"]),
    )


def event_text(at: float, actor: str, action: Action, detail: Mapping[str, Any]) -> str:
    """An event without its revision, which the script puts before it."""
    return json.dumps({"at": at, "actor": actor, "action": action, "detail": detail})


def event_of(revision: int, body: bytes) -> Event:
    """An event of its number and its text."""
    return Event(revision=revision, **json.loads(body))
