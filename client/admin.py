"""Owns what can be asked of the admin port: upload, alias, split, promote, roll back, delete, look; and the values that
these answer with. Knows the documented routes alone, and not how anything is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client.operation import Operation, Repeat, Reply, json_body, segment

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Traffic:
    """What one server answered with a version since its alias was split: requests, and errors by their code."""

    requests: int
    errors: Mapping[str, int]
    mean_score: float | None


@dataclass(frozen=True)
class Alias:
    """Where an alias leads: versions and their weights. `revision` is what the next move of it must name.

    `traffic` is there while the task is split; `quarantined` are versions that the server does not use for their
    errors, each with the error's code.
    """

    name: str
    targets: tuple[tuple[str, int], ...]
    revision: int
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    quarantined: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionInfo:
    """One stored version; `size` in bytes, `published_at` in seconds since 1970."""

    version: str
    size: int
    published_at: float
    method: str
    labels: int


@dataclass(frozen=True)
class TaskInfo:
    """One task: its aliases by name, and its versions, newest first."""

    task_id: str
    aliases: Mapping[str, Alias]
    versions: tuple[VersionInfo, ...]


@dataclass(frozen=True)
class Receipt:
    """The acknowledgement of a write.

    `revision` is the store's after it: a `min_revision` of `Client.classify`. `durable` says whether the write outlives
    the sudden end of the store's machine: it is on a disk (`fsync` is "always") or on other machines (`replicas`).
    """

    revision: str
    durable: bool
    fsync: str
    replicas: int


@dataclass(frozen=True)
class Uploaded:
    """What an upload came to; `version` is the file's SHA-256, `receipt` is None for a dry run."""

    version: str
    created: bool
    receipt: Receipt | None


@dataclass(frozen=True)
class Event:
    """One change in a task's history; `at` in seconds since 1970, `actor` the API key's name."""

    revision: int
    at: float
    actor: str
    action: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class TaskPage:
    """Some tasks in the order of their ids; `next` is the `after` of the next page, None on the last one."""

    tasks: tuple[TaskInfo, ...]
    next: str | None


def task_page(
    after: str | None = None, *, limit: int = 100, timeout: float | None = None
) -> Operation[TaskPage]:
    """One page of tasks: those whose ids follow `after`."""
    params: dict[str, str | int] = {"limit": limit}
    if after is not None:
        params["after"] = after
    return Operation("GET", "/admin/tasks", _page, params=params, timeout=timeout)


def task(task_id: str, *, timeout: float | None = None) -> Operation[TaskInfo]:
    """One task. Raises ApiError 404 when there is none."""
    return Operation("GET", _path(task_id), lambda reply: _task(reply.json()), timeout=timeout)


def alias_revision(task_id: str, alias: str) -> Operation[int]:
    """Where an alias stands, 0 for one that is not there."""

    def read(reply: Reply) -> int:
        known = None if reply.status == 404 else _task(reply.json()).aliases.get(alias)
        return known.revision if known else 0

    return Operation("GET", _path(task_id), read, understood=(404,))


def history(task_id: str, *, limit: int = 100, timeout: float | None = None) -> Operation[tuple[Event, ...]]:
    """What happened to a task and who did it, newest first; also of a deleted task."""
    return Operation("GET", _path(task_id, "history"), _events, params={"limit": limit}, timeout=timeout)


def get_version(task_id: str, version: str, *, timeout: float | None = None) -> Operation[bytes]:
    """The bytes of a prompt file, checked against its name."""

    def read(reply: Reply) -> bytes:
        if hashlib.sha256(reply.body).hexdigest() != version:
            raise ValueError("other bytes than were asked for")
        return reply.body

    return Operation("GET", _path(task_id, "versions", version), read, timeout=timeout)


def put_version(
    task_id: str, data: bytes, *, dry_run: bool = False, timeout: float | None = None
) -> Operation[Uploaded]:
    """Upload a prompt file. Idempotent: the path is the file's SHA-256.

    Raises ApiError 415 or 422, naming what was expected and got, for a file that the server cannot serve.
    """
    version = hashlib.sha256(data).hexdigest()

    def read(reply: Reply) -> Uploaded:
        body = reply.json()
        return Uploaded(version, bool(body["created"]), None if dry_run else _receipt(body))

    return Operation(
        "PUT",
        _path(task_id, "versions", version),
        read,
        headers={"Content-Type": "application/octet-stream"},
        params={"dry_run": "true"} if dry_run else {},
        content=data,
        timeout=timeout,
    )


def set_alias(
    task_id: str, alias: str, version: str, *, revision: int, timeout: float | None = None
) -> Operation[Receipt]:
    """Point an alias to a version if it is still at `revision` (0: if there is none yet).

    Raises ApiError 412 when somebody moved it in between.
    """
    return _move("PUT", _path(task_id, "aliases", alias), {"version": version}, revision, timeout)


def set_split(
    task_id: str,
    alias: str,
    shares: Sequence[tuple[str, int]],
    *,
    revision: int,
    timeout: float | None = None,
) -> Operation[Receipt]:
    """Split an alias between versions by weight, if it is still at `revision` (0: if there is none yet)."""
    targets = [{"version": version, "weight": weight} for version, weight in shares]
    return _move("PUT", _path(task_id, "aliases", alias), {"targets": targets}, revision, timeout)


def promote(
    task_id: str, version: str, *, revision: int, alias: str = "current", timeout: float | None = None
) -> Operation[Receipt]:
    """Give one of the versions that an alias leads to all of its requests, if it is still at `revision`.

    Raises ApiError 422 when the alias does not lead to it.
    """
    body = {"version": version, "alias": alias}
    return _move("POST", _path(task_id, "promote"), body, revision, timeout)


def rollback(
    task_id: str, version: str, *, revision: int, alias: str = "current", timeout: float | None = None
) -> Operation[Receipt]:
    """Point an alias back to a version that the task still has, if the alias is still at `revision`."""
    body = {"version": version, "alias": alias}
    return _move("POST", _path(task_id, "rollback"), body, revision, timeout)


def delete_alias(
    task_id: str, alias: str, *, revision: int, timeout: float | None = None
) -> Operation[Receipt]:
    """Delete an alias, if it is still at `revision`."""
    return _move("DELETE", _path(task_id, "aliases", alias), None, revision, timeout)


def delete_version(task_id: str, version: str, *, timeout: float | None = None) -> Operation[Receipt]:
    """Delete a version. Raises ApiError 409 while an alias leads to it."""
    path = _path(task_id, "versions", version)
    return Operation("DELETE", path, _acknowledged, Repeat.UNSENT, timeout=timeout)


def delete_task(task_id: str, *, force: bool = False, timeout: float | None = None) -> Operation[Receipt]:
    """Delete a task with its versions, and with `force` its aliases. Raises ApiError 409 for aliases otherwise."""
    params = {"force": "true"} if force else {}
    return Operation("DELETE", _path(task_id), _acknowledged, Repeat.UNSENT, params=params, timeout=timeout)


def _move(method: str, path: str, body: object, revision: int, timeout: float | None) -> Operation[Receipt]:
    headers = {"If-Match": f'"{revision}"'} if revision else {"If-None-Match": "*"}
    # A revision is never used again; that there is no alias may be so again, after somebody deleted what this made.
    repeat = Repeat.GUARDED if revision else Repeat.UNSENT
    content = None if body is None else json_body(body)
    if content is not None:
        headers |= _JSON
    return Operation(method, path, _acknowledged, repeat, headers=headers, content=content, timeout=timeout)


def _path(task_id: str, *parts: str) -> str:
    return "/".join(["/admin/tasks", *map(segment, (task_id, *parts))])


def _acknowledged(reply: Reply) -> Receipt:
    return _receipt(reply.json())


def _page(reply: Reply) -> TaskPage:
    body = reply.json()
    return TaskPage(tuple(map(_task, body["tasks"])), body["next"])


def _events(reply: Reply) -> tuple[Event, ...]:
    return tuple(
        Event(item["revision"], item["at"], item["actor"], item["action"], item["detail"])
        for item in reply.json()["events"]
    )


def _receipt(body: Mapping[str, Any]) -> Receipt:
    revision, promised = body["store_revision"], body["durability"]
    return Receipt(
        f"{revision['epoch']}:{revision['number']}",
        promised["durable"],
        promised["fsync"],
        promised["replicas"],
    )


def _task(body: Mapping[str, Any]) -> TaskInfo:
    return TaskInfo(
        task_id=body["task_id"],
        aliases={name: _alias(name, alias) for name, alias in body["aliases"].items()},
        versions=tuple(
            VersionInfo(item["version"], item["size"], item["published_at"], item["method"], item["labels"])
            for item in body["versions"]
        ),
    )


def _alias(name: str, body: Mapping[str, Any]) -> Alias:
    return Alias(
        name,
        tuple((target["version"], target["weight"]) for target in body["targets"]),
        body["revision"],
        {
            target["version"]: Traffic(
                target["traffic"]["requests"],
                target["traffic"]["errors"],
                target["traffic"]["scores"]["mean"],
            )
            for target in body["targets"]
            if "traffic" in target
        },
        body.get("quarantined", {}),
    )
