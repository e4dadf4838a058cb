"""Records as a backend has kept them: checked before they are taken for a task.

Owns: which values a record may have, and the error for one that is damaged. Must not know: any backend.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from prompt_store.errors import InvalidAlias, PromptStoreError
from prompt_store.names import check_alias, is_version
from prompt_store.store import AliasRecord, Target, VersionRecord, check_targets

_LATEST: Final = 253_402_300_800  # seconds: the end of the year 9999, after which no calendar here goes


@contextmanager
def as_damaged(task_id: str) -> Iterator[None]:
    """Turn what a damaged record raises when it is read into PromptStoreError, with what mends it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError, InvalidAlias) as error:
        raise PromptStoreError(
            f"the store's record of task {task_id} is damaged: delete the task with force and publish it anew,"
            " or restore the store"
        ) from error


def version_record(version: Any, size: Any, published_at: Any, method: Any, labels: Any) -> VersionRecord:
    """A version of these values; ValueError unless each is what it should be."""
    whole = type(size) is int and type(labels) is int and size >= 0 and labels >= 0
    dated = type(published_at) in (int, float) and 0 <= published_at < _LATEST
    named = isinstance(method, str) and "\ufffd" not in method  # which is what no text decodes to
    if not (whole and dated and named and isinstance(version, str) and is_version(version)):
        raise ValueError("no version's record")
    return VersionRecord(version, size, published_at, method, labels)


def alias_record(name: str, targets: str, revision: Any) -> AliasRecord:
    """An alias of the JSON of its targets; ValueError, TypeError, InvalidAlias unless it is one."""
    found = tuple(Target(version, weight) for version, weight in json.loads(targets))
    check_targets(found)
    if type(revision) is not int or not all(is_version(target.version) for target in found):
        raise ValueError("no alias's record")
    return AliasRecord(check_alias(name), found, revision)
