"""What tasks, aliases and versions may be called.

Owns: the grammar of names. Must not know: where names are used. A name that passed is safe in a message,
a log line and a URL; none is ever used as a path.
"""

import re
from typing import Final

from prompt_store.errors import InvalidAlias, InvalidTaskId

# fullmatch and explicit ASCII ranges: `$` would let a trailing newline through, `\w` the Cyrillic "а".
NAME_PATTERN: Final = r"[a-z0-9][a-z0-9._-]{0,63}"
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[0-9a-f]{64}")
_GRAMMAR = "expected 1 to 64 of a-z 0-9 . _ - with a letter or digit first"


def check_task_id(task_id: str) -> str:
    """Return `task_id`, or raise InvalidTaskId."""
    if not _NAME.fullmatch(task_id):
        raise InvalidTaskId(f"not a task id: {_GRAMMAR}")
    return task_id


def check_alias(alias: str) -> str:
    """Return `alias`, or raise InvalidAlias."""
    if not _NAME.fullmatch(alias):
        raise InvalidAlias(f"not an alias name: {_GRAMMAR}")
    return alias


def is_version(text: str) -> bool:
    """Whether `text` has the form of a version: a SHA-256 in lower-case hex."""
    return _VERSION.fullmatch(text) is not None
