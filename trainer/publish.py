"""Owns the last step: a checked prompt file goes to a store or to a running server, and an alias moves to it.

Knows the store's and the admin client's contracts; knows nothing of training.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from client import AdminClient, ClientError
from prompt_store import PromptStoreError, Target, check_alias, decode_prompt, open_store, version_of
from prompt_store.redis_url import without_secrets
from trainer.errors import ConfigError, NotBetterError, NotPublishedError, TrainerError
from trainer.gate import judge


@dataclass(frozen=True)
class Publication:
    """What was published where, as it may be shown: `target` has no passwords.

    `created` is False when the very same version was there already. `durable` says whether it outlives the sudden end
    of the store's machine, as the store promised. `note` says what the gate could not check, or was forced to pass.
    """

    task_id: str
    version: str
    alias: str | None
    created: bool
    target: str
    durable: bool
    note: str = ""


def publish(
    path_or_bytes: Path | str | bytes,
    target: str,
    alias: str | None = "current",
    key: str | None = None,
    *,
    timeout: float = 120.0,
    force: bool = False,
) -> Publication:
    """Publish a prompt file to a store (a path, `file://` or `redis://`) or a server's admin port (`http(s)://`).

    The file is checked before anything leaves this machine. `alias` then points to the new version (None: to
    nothing new); `key` is the admin key of a server, `timeout` the seconds that each of the two calls to it may take,
    with their retries. Raises NotBetterError for a prompt that by its own training record does not beat majority and
    head only on dev, unless `force`; NotPublishedError where the store or the server does not take it; TrainerError
    with one line for a person for whatever else is wrong.
    """
    try:
        data = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes).read_bytes()
    except OSError as error:
        raise TrainerError(f"{path_or_bytes!s}: {error.strerror}") from None
    shown = without_secrets(target)
    try:
        check_target(target)
    except ConfigError as error:
        raise ConfigError(f"not published to {error}") from None
    try:
        if alias is not None:
            check_alias(alias)
        manifest = decode_prompt(data).manifest
        task_id, judgement = manifest.task_id, judge(manifest)
        if judgement.refusal and not force:
            refused = NotBetterError(
                f"{task_id} {version_of(data)[:12]} is not published: {judgement.refusal}"
            )
            refused.advice = judgement.advice
            raise refused
    except PromptStoreError as error:
        raise TrainerError(f"not published to {shown}: {error}") from None
    try:
        if target.startswith(("http://", "https://")):
            created, durable = _to_server(data, task_id, target, alias, key, timeout)
        else:
            created, durable = asyncio.run(_to_store(data, task_id, target, alias))
    except (PromptStoreError, ClientError) as error:
        said = str(error).replace(target.rstrip("/"), shown.rstrip("/"))
        failed = NotPublishedError(f"not published to {shown}: {said}")
        failed.advice = getattr(error, "advice", "")
        raise failed from None
    note = judgement.note or (f"forced: {judgement.refusal}" if judgement.refusal else "")
    return Publication(task_id, version_of(data), alias, created, shown, durable, note)


def check_target(target: str) -> None:
    """Raise ConfigError for what is neither a store nor a server's address. Nothing is opened."""
    shown = repr(without_secrets(target))
    try:
        if target.startswith(("http://", "https://")):
            address = urlsplit(target)
            if not address.hostname or address.port == 0:
                raise ValueError
        else:
            open_store(target)
    except PromptStoreError as error:
        raise ConfigError(f"{shown}: {error}") from None
    except ValueError:  # in whose text a password may be
        raise ConfigError(f"{shown}: expected a server's address, as http://127.0.0.1:8001") from None


async def _to_store(data: bytes, task_id: str, target: str, alias: str | None) -> tuple[bool, bool]:
    store = open_store(target)
    try:
        published = await store.publish(data, actor="trainer")
        durable = published.durability.durable
        if alias is not None:
            moved = await store.set_alias(
                task_id, alias, [Target(published.version)], expected_revision=None, actor="trainer"
            )
            durable = durable and moved.durability.durable
        return published.created, durable
    finally:
        await store.aclose()


def _to_server(
    data: bytes, task_id: str, target: str, alias: str | None, key: str | None, timeout: float
) -> tuple[bool, bool]:
    with AdminClient(target, key=key, timeout=timeout) as admin:
        done = admin.put_version(task_id, data)
        durable = done.receipt is not None and done.receipt.durable
        if alias is not None:
            durable = admin.move_alias(task_id, alias, version_of(data)).durable and durable
        return done.created, durable
