"""Every error that the store and the codec raise, each with its HTTP status and a stable code.

Owns: the tree below, and nothing else. Must not know: HTTP libraries, backends, torch.

    PromptStoreError             500 store_error
    ├── InvalidTaskId            422 invalid_task_id
    ├── InvalidAlias             422 invalid_alias
    ├── NotFound                 404 not_found
    │   ├── UnknownTask          404 unknown_task
    │   ├── UnknownVersion       404 unknown_version
    │   └── UnknownAlias         404 unknown_alias
    ├── InvalidPrompt            422 invalid_prompt
    │   ├── NotSafetensors       415 not_safetensors
    │   ├── InvalidTemplate      422 invalid_template
    │   ├── DigestMismatch       422 digest_mismatch
    │   └── IncompatiblePrompt   422 incompatible_prompt
    ├── RevisionConflict         412 revision_conflict
    ├── VersionInUse             409 version_in_use
    ├── CorruptVersion           500 corrupt_version
    └── StoreUnavailable         503 store_unavailable

`str(error)` is a sentence for a person. It holds numbers, known names and ids that passed their grammar,
never a caller's text, a path or another library's message, so it is safe in a response and in a log.
"""

from typing import ClassVar


class PromptStoreError(Exception):
    """Anything that went wrong in the store; the base of the tree."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "store_error"


class InvalidTaskId(PromptStoreError):
    """A task id outside the grammar."""

    status = 422
    code = "invalid_task_id"


class InvalidAlias(PromptStoreError):
    """An alias name outside the grammar, or targets that make no alias."""

    status = 422
    code = "invalid_alias"


class NotFound(PromptStoreError):
    """Something named does not exist."""

    status = 404
    code = "not_found"


class UnknownTask(NotFound):
    """No such task, or it was deleted."""

    code = "unknown_task"


class UnknownVersion(NotFound):
    """The task has no such version."""

    code = "unknown_version"


class UnknownAlias(NotFound):
    """The task has no such alias."""

    code = "unknown_alias"


class InvalidPrompt(PromptStoreError):
    """Bytes that are no valid prompt file."""

    status = 422
    code = "invalid_prompt"


class NotSafetensors(InvalidPrompt):
    """Bytes that are no safetensors file at all: a pickle, a zip, noise."""

    status = 415
    code = "not_safetensors"


class InvalidTemplate(InvalidPrompt):
    """A template outside the grammar; the message names the column, counted from 1."""

    code = "invalid_template"


class DigestMismatch(InvalidPrompt):
    """The bytes do not hash to the version that the caller named."""

    code = "digest_mismatch"


class IncompatiblePrompt(InvalidPrompt):
    """A well-formed prompt for another backbone, or of a kind or format not known here."""

    code = "incompatible_prompt"


class RevisionConflict(PromptStoreError):
    """An alias was not at the revision that the caller expected.

    `current` is the revision it is at, 0 when the alias does not exist.
    """

    status = 412
    code = "revision_conflict"

    def __init__(self, message: str, *, current: int) -> None:
        super().__init__(message)
        self.current = current


class VersionInUse(PromptStoreError):
    """An alias still points at what was to be deleted."""

    status = 409
    code = "version_in_use"


class CorruptVersion(PromptStoreError):
    """Stored bytes are lost or no longer hash to their name."""

    code = "corrupt_version"


class StoreUnavailable(PromptStoreError):
    """The store cannot do this now; `retry_after` is a hint in seconds."""

    status = 503
    code = "store_unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
