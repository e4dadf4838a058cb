"""Owns the client of the admin API: upload, alias, split, promote, roll back, delete, look. Knows the documented
routes alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from client.errors import ApiError
from client.transport import Connection


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
    """What an upload came to; `receipt` is None for a dry run."""

    created: bool
    receipt: Receipt | None


class AdminClient(Connection):
    """Operates a server through its admin port, such as http://127.0.0.1:8001."""

    def tasks(self) -> Iterator[TaskInfo]:
        """Every task, page by page."""
        after: str | None = None
        while True:
            page = self._send("GET", "/admin/tasks", params={} if after is None else {"after": after}).json()
            yield from map(_task, page["tasks"])
            after = page["next"]
            if after is None:
                return

    def task(self, task_id: str) -> TaskInfo:
        """One task. Raises ApiError 404 when there is none."""
        return _task(self._send("GET", _path(task_id)).json())

    def put_version(self, task_id: str, data: bytes, *, dry_run: bool = False) -> Uploaded:
        """Upload a prompt file. Idempotent: the path is the file's SHA-256.

        Raises ApiError 415 or 422, naming what was expected and got, for a file that the server cannot serve.
        """
        response = self._send(
            "PUT",
            _path(task_id, "versions", hashlib.sha256(data).hexdigest()),
            content=data,
            headers={"Content-Type": "application/octet-stream"},
            params={"dry_run": "true"} if dry_run else None,
        )
        body = response.json()
        return Uploaded(bool(body["created"]), None if dry_run else _receipt(body))

    def set_alias(self, task_id: str, alias: str, version: str, *, revision: int) -> Receipt:
        """Point an alias to a version if it is still at `revision` (0: if there is none yet).

        Raises ApiError 412 when somebody moved it in between.
        """
        return self._put_alias(task_id, alias, {"version": version}, revision)

    def set_split(
        self, task_id: str, alias: str, shares: Sequence[tuple[str, int]], *, revision: int
    ) -> Receipt:
        """Split an alias between versions by weight, if it is still at `revision` (0: if there is none yet)."""
        targets = [{"version": version, "weight": weight} for version, weight in shares]
        return self._put_alias(task_id, alias, {"targets": targets}, revision)

    def promote(self, task_id: str, version: str, *, revision: int, alias: str = "current") -> Receipt:
        """Give one of the versions that an alias leads to all of its requests, if it is still at `revision`.

        Raises ApiError 422 when the alias does not lead to it.
        """
        body = {"version": version, "alias": alias}
        condition = {"If-Match": f'"{revision}"'}
        return _receipt(self._send("POST", _path(task_id, "promote"), json=body, headers=condition).json())

    def move_alias(self, task_id: str, alias: str, version: str) -> Receipt:
        """Point an alias to a version, whatever it pointed to when this was called.

        Raises ApiError 412 when two writers move it at the same moment and the other one wins.
        """
        try:
            known = self.task(task_id).aliases.get(alias)
        except ApiError as error:
            if error.status != 404:
                raise
            known = None
        return self.set_alias(task_id, alias, version, revision=known.revision if known else 0)

    def rollback(self, task_id: str, version: str, *, revision: int, alias: str = "current") -> Receipt:
        """Point an alias back to a version that the task still has, if the alias is still at `revision`."""
        body = {"version": version, "alias": alias}
        condition = {"If-Match": f'"{revision}"'}
        return _receipt(self._send("POST", _path(task_id, "rollback"), json=body, headers=condition).json())

    def delete_version(self, task_id: str, version: str) -> Receipt:
        """Delete a version. Raises ApiError 409 while an alias leads to it."""
        return _receipt(self._send("DELETE", _path(task_id, "versions", version)).json())

    def _put_alias(self, task_id: str, alias: str, body: object, revision: int) -> Receipt:
        condition = {"If-Match": f'"{revision}"'} if revision else {"If-None-Match": "*"}
        path = _path(task_id, "aliases", alias)
        return _receipt(self._send("PUT", path, json=body, headers=condition).json())


def _path(task_id: str, *parts: str) -> str:
    return "/".join(["/admin/tasks", *(quote(part, safe="") for part in (task_id, *parts))])


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
