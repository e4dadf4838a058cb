"""What every backend does with its arguments before anything is asked or written.

Owns: the checks and caps of calls. Must not know: any backend.
"""

from typing import Final

from prompt_store.codec import decode_prompt, version_of
from prompt_store.errors import DigestMismatch, UnknownVersion
from prompt_store.names import check_task_id, is_version
from prompt_store.prompt import Prompt

MAX_LIMIT: Final = 1000
MAX_ACTOR: Final = 200


def check_upload(data: bytes, expect_version: str | None) -> tuple[Prompt, str]:
    """The prompt in `data` and its version. DigestMismatch; InvalidPrompt."""
    version = version_of(data)
    if expect_version is not None and expect_version != version:
        raise DigestMismatch(f"expected the bytes of another version, got those of {version}")
    return decode_prompt(data), version


def check_ids(task_id: str, *versions: str) -> None:
    """InvalidTaskId, or UnknownVersion for what cannot be a version."""
    check_task_id(task_id)
    if not all(map(is_version, versions)):
        raise UnknownVersion(f"task {task_id} has no such version: a version is 64 digits of lower-case hex")


def clamp_limit(limit: int) -> int:
    """A page's length within its bounds."""
    return max(1, min(limit, MAX_LIMIT))


def clean_actor(actor: str) -> str:
    """An actor is free text from outside: cut, and without lone surrogates, which no UTF-8 can hold."""
    return actor[:MAX_ACTOR].encode(errors="replace").decode()
