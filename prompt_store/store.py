"""The contract of a prompt store, and the values it speaks in.

Owns: what every backend promises. Must not know: how any backend keeps the promise, HTTP, torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import JsonValue

from prompt_store.errors import InvalidAlias

MAX_TARGETS: Final = 100
MAX_WEIGHT: Final = 1_000_000

Action = Literal["publish", "alias", "delete_version", "delete_alias", "delete_task"]


@dataclass(frozen=True, slots=True)
class Revision:
    """A point in a store's history: `number` counts changes within one `epoch`.

    Another epoch, or a smaller number, says that history was lost (a flushed or restored store), and nothing
    about which tasks are gone.

    `mark` is the store's own: it tells this change from another one that has its number since history was lost. So hand
    a revision back to `watch` as it came; one that was written down without its mark is told of fewer losses.
    """

    epoch: str
    number: int
    mark: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """One version that an alias leads to, and its share against the alias's other targets."""

    version: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """An alias as it stands; `revision` is what a compare-and-set names."""

    name: str
    targets: tuple[Target, ...]
    revision: int

    @property
    def version(self) -> str | None:
        """The version, when there is only one."""
        return self.targets[0].version if len(self.targets) == 1 else None


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version in the catalogue: `size` in bytes, `published_at` in Unix seconds, `labels` their number."""

    version: str
    size: int
    published_at: float
    method: str
    labels: int


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as it stands: its versions newest first; `revision` is the number of its last change."""

    task_id: str
    aliases: Mapping[str, AliasRecord]
    versions: tuple[VersionRecord, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Durability:
    """What the backend promised when it acknowledged a write.

    `fsync` says when what was written is on the disk: `always` before the acknowledgement, `everysec` within a second
    or two after it, `no` when the operating system likes, `off` never (nothing is kept on a disk), `unknown` where the
    backend would not tell. `replicas` is how many copies on other machines confirmed the write.
    """

    fsync: Literal["always", "everysec", "no", "off", "unknown"]
    replicas: int = 0

    @property
    def durable(self) -> bool:
        """Whether the write outlives the sudden end of the machine that took it."""
        return self.fsync == "always" or self.replicas > 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """The acknowledgement of a write: where the history stood after it, and what was promised.

    A reader that has seen `revision` or a later one has seen the write.
    """

    revision: Revision
    durability: Durability


@dataclass(frozen=True, slots=True)
class Published(Receipt):
    """What a publish came to; `created` is False when the version was there already."""

    task_id: str
    version: str
    created: bool


@dataclass(frozen=True, slots=True)
class Moved(Receipt):
    """What setting an alias came to: the alias as it stands now."""

    alias: AliasRecord


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Some tasks in the order of their ids; `next` is the `after` of the next page, None on the last.

    `unreadable` are ids on this page whose records are damaged: `PromptStore.task` raises what is wrong with one.
    """

    tasks: tuple[TaskRecord, ...]
    next: str | None
    revision: Revision
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One change in a task's history."""

    revision: int
    at: float
    actor: str
    action: Action
    detail: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Changes:
    """Ids of the tasks changed or deleted since a revision. `reset`: history was lost, list again."""

    revision: Revision
    tasks: tuple[str, ...]
    reset: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """How many blobs a collection removed, and their bytes."""

    blobs: int
    bytes: int


def check_targets(targets: Sequence[Target]) -> None:
    """InvalidAlias unless these can be an alias's targets; every backend asks before it writes."""
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise InvalidAlias(f"targets: expected 1 to {MAX_TARGETS}, got {len(targets)}")
    if len({target.version for target in targets}) != len(targets):
        raise InvalidAlias("targets: expected each version once, got one twice")
    if not all(type(target.weight) is int and 1 <= target.weight <= MAX_WEIGHT for target in targets):
        raise InvalidAlias(f"targets: expected whole weights of 1 to {MAX_WEIGHT}, got another")


class PromptStore(ABC):
    """Immutable versions, movable aliases, and a revision that counts every change.

    Promises of every backend:

    - A version is a prompt file, named by the SHA-256 of its bytes. It never changes. What `publish` has
      acknowledged is what `get` gives back, or CorruptVersion: never other bytes.
    - Every write that was acknowledged outlives the backend's process; its `Receipt` says whether it also outlives
      the machine. History that was lost all the same is told by `watch`, never passed over.
    - Every change of the catalogue is atomic, raises the revision by one, and adds one event to its task's
      history. A call that raised has changed nothing, except that a StoreUnavailable from a write leaves it
      open whether the change was made; every write may be tried again.
    - An alias moves by compare-and-set on its own revision. Of several writers that expect the same revision,
      one succeeds. Alias revisions only grow and are never used again, not even after a delete.
    - A deleted task leaves a tombstone: unknown to readers, but in `history` and in `watch`. Publishing to it
      brings it back, with nothing of its former versions and aliases.
    - A task id or alias outside its grammar raises InvalidTaskId or InvalidAlias; a store that cannot do its
      work raises StoreUnavailable, with what to do about it.
    - Several processes may use the same store at once. One object serves one event loop, any number of
      coroutines.
    """

    @abstractmethod
    async def publish(self, data: bytes, *, expect_version: str | None = None, actor: str = "") -> Published:
        """Check `data` as `decode_prompt` does and store it under the task that its manifest names.

        Publishing a version again changes nothing, except that lost or damaged bytes are put back, and that a
        damaged record is written anew, as if it had not been there.
        InvalidPrompt for bad bytes; DigestMismatch when they are not `expect_version`.
        """

    @abstractmethod
    async def get(self, task_id: str, version: str) -> bytes:
        """The bytes of a version, checked against its name.

        UnknownTask; UnknownVersion; CorruptVersion when they are lost or no longer hash to it.
        """

    @abstractmethod
    async def task(self, task_id: str) -> TaskRecord:
        """One task. UnknownTask, also when it was deleted."""

    @abstractmethod
    async def list(self, *, after: str | None = None, limit: int = 100) -> TaskPage:
        """Up to `limit` (1 … 1000) tasks whose ids follow `after`; one consistent view per page."""

    @abstractmethod
    async def history(self, task_id: str, *, limit: int = 100) -> tuple[Event, ...]:
        """The task's latest events, newest first, also of a deleted task; UnknownTask if there never was one.

        A backend may forget all but the latest thousand events of a task.
        """

    @abstractmethod
    async def set_alias(
        self,
        task_id: str,
        alias: str,
        targets: Sequence[Target],
        *,
        expected_revision: int | None,
        actor: str = "",
    ) -> Moved:
        """Create or move an alias, if it is at `expected_revision` (0: if there is none; None: in any case).

        UnknownTask; UnknownVersion; RevisionConflict; InvalidAlias for targets that `check_targets` refuses.
        """

    @abstractmethod
    async def delete_alias(
        self, task_id: str, alias: str, *, expected_revision: int | None, actor: str = ""
    ) -> Receipt:
        """Remove an alias, if it is at `expected_revision` (None: wherever it is).

        UnknownTask; UnknownAlias; RevisionConflict.
        """

    @abstractmethod
    async def delete_version(self, task_id: str, version: str, *, actor: str = "") -> Receipt:
        """Take a version out of the catalogue; its bytes stay until `collect`.

        UnknownTask; UnknownVersion; VersionInUse while an alias leads to it.
        """

    @abstractmethod
    async def delete_task(self, task_id: str, *, force: bool = False, actor: str = "") -> Receipt:
        """Delete a task with all its versions and, with `force`, its aliases; leaves a tombstone.

        UnknownTask; VersionInUse while it has an alias, unless `force`.
        """

    @abstractmethod
    async def watch(self, after: Revision, *, timeout: float) -> Changes:  # noqa: ASYNC109 — a long poll: the end of the wait is an answer
        """What changed since `after`.

        Returns at once when something did; else when something does, or with no tasks when `timeout` seconds
        have passed. A change by any process is seen within a second. A `reset` is answered for as long as it is
        asked with a revision of the history that was lost, whatever other calls see meanwhile.
        """

    @abstractmethod
    async def revision(self) -> Revision:
        """Where the store's history stands."""

    @abstractmethod
    async def collect(self, *, grace: float) -> Collected:
        """Remove bytes that no version has needed for `grace` seconds, and what crashed publishes left.

        Safe at any time, beside any other call of any process.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of everything; later calls raise StoreUnavailable. Closing twice is fine."""
