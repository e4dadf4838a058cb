"""Prompts as files, versions and aliases.

Owns: the public names of the package, and which store a URL means. Must not know: torch, HTTP.
"""

from pathlib import Path
from urllib.parse import unquote

from prompt_store.codec import check_backbone, check_finite_in, decode_prompt, encode_prompt, version_of
from prompt_store.ensemble import join_prompts
from prompt_store.errors import (
    CorruptVersion,
    DigestMismatch,
    IncompatiblePrompt,
    InvalidAlias,
    InvalidPrompt,
    InvalidTaskId,
    InvalidTemplate,
    NotFound,
    NotSafetensors,
    PromptStoreError,
    RevisionConflict,
    StoreUnavailable,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    VersionInUse,
)
from prompt_store.file_store import FileStore
from prompt_store.manifest import (
    MAX_MEMBERS,
    Calibration,
    Golden,
    Head,
    LabelEmbeddingHead,
    LinearHead,
    LinearLayer,
    Manifest,
    Member,
    VerbalizerHead,
    parse_manifest,
)
from prompt_store.members import split_members
from prompt_store.model_ref import BackboneRef, DecoderInput, MaxLength, StackRef
from prompt_store.names import check_alias, check_task_id, is_version
from prompt_store.prompt import Prompt
from prompt_store.redis_url import SCHEMES, parse_redis_url, slipped_scheme
from prompt_store.store import (
    AliasRecord,
    Changes,
    Collected,
    Durability,
    Event,
    Moved,
    PromptStore,
    Published,
    Receipt,
    Revision,
    Target,
    TaskPage,
    TaskRecord,
    VersionRecord,
)
from prompt_store.template import (
    Literal,
    MaskSlot,
    PairSlot,
    Part,
    SoftSlot,
    StartSlot,
    Template,
    TextSlot,
    parse_template,
)

__all__ = [
    "MAX_MEMBERS",
    "AliasRecord",
    "BackboneRef",
    "Calibration",
    "Changes",
    "Collected",
    "CorruptVersion",
    "DecoderInput",
    "DigestMismatch",
    "Durability",
    "Event",
    "FileStore",
    "Golden",
    "Head",
    "IncompatiblePrompt",
    "InvalidAlias",
    "InvalidPrompt",
    "InvalidTaskId",
    "InvalidTemplate",
    "LabelEmbeddingHead",
    "LinearHead",
    "LinearLayer",
    "Literal",
    "Manifest",
    "MaskSlot",
    "MaxLength",
    "Member",
    "Moved",
    "NotFound",
    "NotSafetensors",
    "PairSlot",
    "Part",
    "Prompt",
    "PromptStore",
    "PromptStoreError",
    "Published",
    "Receipt",
    "Revision",
    "RevisionConflict",
    "SoftSlot",
    "StackRef",
    "StartSlot",
    "StoreUnavailable",
    "Target",
    "TaskPage",
    "TaskRecord",
    "Template",
    "TextSlot",
    "UnknownAlias",
    "UnknownTask",
    "UnknownVersion",
    "VerbalizerHead",
    "VersionInUse",
    "VersionRecord",
    "check_alias",
    "check_backbone",
    "check_finite_in",
    "check_task_id",
    "decode_prompt",
    "encode_prompt",
    "is_version",
    "join_prompts",
    "open_store",
    "parse_manifest",
    "parse_template",
    "split_members",
    "version_of",
]


def _open_redis(url: str) -> PromptStore:
    # redis-py takes a moment to import: only for those who use it.
    from prompt_store.redis_store import RedisStore

    return RedisStore(parse_redis_url(url))


def open_store(url: str) -> PromptStore:
    """The store at `url`: file:///absolute/path, file://relative/path, a plain path, or redis://host:port/database.

    `redis_url` has the whole form of the latter, with TLS, users, prefixes and Sentinels.

    Touches nothing yet; a store that cannot be reached says so on first use. PromptStoreError for a scheme
    that is not known here.
    """
    if slipped := slipped_scheme(url):
        raise PromptStoreError(f"the store's URL is not well formed: expected two slashes after {slipped}:")
    scheme, separator, location = url.partition("://")
    if not separator:
        scheme, location = "file", url.replace("%", "%25")  # a plain path is not percent-encoded
    if scheme in SCHEMES:
        return _open_redis(url)
    if scheme != "file":
        known = ", ".join(f"{name}://" for name in ("file", *SCHEMES))
        raise PromptStoreError(f"unknown kind of store: expected {known} or a plain path")
    if not location:
        raise PromptStoreError("a store needs a path: expected file:///absolute/path or a plain path")
    return FileStore(Path(unquote(location)))
