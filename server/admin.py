"""The admin app: routes of the admin port, and `/metrics`.

Owns: admin paths, preconditions, and their documentation. Must not know: what the operations do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response

from prompt_store import AliasRecord, Receipt, Target, check_task_id, is_version
from server.auth import Keyring
from server.body import BodyLimits, check_media, read_body
from server.errors import InvalidRequest, PreconditionRequired
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.operations import Operations, alias_json
from server.routes import document, health_router, new_app, require
from server.schemas import AliasBody, Body, ChoiceBody, M, parse_body
from server.standing import Standing
from server.view import revision_text

# Whole paths, without a prefix on the router: the route that a metric names is then the whole path too.
_TASKS = "/admin/tasks"
_OCTETS = "application/octet-stream"
_JSON_LIMIT = 64 * 1024
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PRECONDITION = (
    "Name what you overwrite: `If-Match: <alias revision>`, or `If-None-Match: *` for a new alias."
)

DryRun = Annotated[bool, Query(description="Check everything, change nothing.")]
TaskId = Annotated[str, Path(description="The task.")]
Version = Annotated[str, Path(description="SHA-256 of the prompt file, in lower-case hex.")]
Alias = Annotated[str, Path(description="The alias.")]


def admin_app(
    operations: Operations,
    keyring: Keyring,
    lifecycle: Lifecycle,
    standing: Callable[[], Standing],
    metrics: Metrics,
    limits: BodyLimits,
    version: str,
) -> FastAPI:
    """The app of the admin port; `limits` are those of a prompt file."""
    app = new_app("promptmux admin", version)
    admin = [require(keyring, "admin")]
    app.include_router(health_router(lifecycle, standing))
    app.include_router(_metrics_router(metrics), dependencies=[require(keyring, "metrics", "admin")])
    app.include_router(_reading(operations), dependencies=admin)
    app.include_router(_writing(operations, lifecycle, limits), dependencies=admin)
    document(app, [])
    return app


def _metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    def scrape() -> Response:
        return Response(metrics.exposition(), headers={"content-type": _METRICS_TYPE})

    return router


def _reading(operations: Operations) -> APIRouter:
    router = APIRouter(tags=["tasks"])

    @router.get(_TASKS, summary="Tasks in the order of their ids, a page at a time")
    async def tasks(
        after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        return await operations.tasks(check_task_id(after) if after is not None else None, limit)

    @router.get(
        _TASKS + "/{task_id}", summary="One task: aliases, versions, and what this server makes of them"
    )
    async def task(task_id: TaskId) -> dict[str, Any]:
        return await operations.task(task_id)

    @router.get(_TASKS + "/{task_id}/history", summary="What happened to a task, newest first")
    async def history(task_id: TaskId, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        return {"task_id": task_id, "events": await operations.history(task_id, limit)}

    @router.get(_TASKS + "/{task_id}/aliases/{alias}", summary="One alias; its revision is the ETag")
    async def alias(task_id: TaskId, alias: Alias, response: Response) -> dict[str, Any]:
        return _alias_answer(await operations.alias(task_id, alias), response)

    @router.get(
        _TASKS + "/{task_id}/versions/{version}", summary="Download a prompt file", response_class=Response
    )
    async def download(task_id: TaskId, version: Version) -> Response:
        data = await operations.download(task_id, _checked_version(version))
        return Response(data, media_type=_OCTETS, headers={"ETag": f'"{version}"'})

    return router


def _writing(operations: Operations, lifecycle: Lifecycle, limits: BodyLimits) -> APIRouter:
    router = APIRouter(tags=["changes"])
    small = BodyLimits(_JSON_LIMIT, limits.timeout)

    @router.put(
        _TASKS + "/{task_id}/versions/{version}",
        summary="Upload a prompt file; again is a no-op",
        openapi_extra={
            "requestBody": {"required": True, "content": {_OCTETS: {"schema": {"format": "binary"}}}}
        },
    )
    async def upload(
        task_id: TaskId, version: Version, request: Request, response: Response, dry_run: DryRun = False
    ) -> dict[str, Any]:
        lifecycle.admit()
        check_task_id(task_id)
        check_media(request.scope, _OCTETS.encode())
        _checked_version(version)
        data = await read_body(request.scope, request.receive, limits)
        uploaded = await operations.upload(task_id, version, data, dry_run=dry_run, actor=_actor(request))
        response.status_code = 201 if uploaded.created and not dry_run else 200
        response.headers["ETag"] = f'"{version}"'
        return {
            "task_id": task_id,
            "version": version,
            "size": len(data),
            "method": uploaded.method,
            "created": uploaded.created,
            "dry_run": dry_run,
            **_receipt(uploaded.receipt, response),
        }

    @router.put(
        _TASKS + "/{task_id}/aliases/{alias}",
        summary="Create or move an alias",
        description=_PRECONDITION,
        openapi_extra=_json_body(AliasBody),
    )
    async def move(
        task_id: TaskId, alias: Alias, request: Request, response: Response, dry_run: DryRun = False
    ) -> dict[str, Any]:
        lifecycle.admit()
        body = await _read(AliasBody, request, small)
        expected = _expected(request)
        if (body.version is None) == (body.targets is None):
            raise InvalidRequest("give either version or targets")
        targets = [Target(t.version, t.weight) for t in body.targets or ()] or [Target(body.version or "")]
        moved, done = await operations.move(
            task_id, alias, targets, expected, dry_run=dry_run, actor=_actor(request)
        )
        return {**_alias_answer(moved, response), "dry_run": dry_run, **_receipt(done, response)}

    @router.post(
        _TASKS + "/{task_id}/rollback",
        summary="Move an alias back to a version that you name",
        description=_PRECONDITION,
        openapi_extra=_json_body(ChoiceBody),
    )
    async def rollback(
        task_id: TaskId, request: Request, response: Response, dry_run: DryRun = False
    ) -> dict[str, Any]:
        lifecycle.admit()
        body = await _read(ChoiceBody, request, small)
        expected, targets = _expected(request), [Target(body.version)]
        moved, done = await operations.move(
            task_id, body.alias, targets, expected, dry_run=dry_run, actor=_actor(request)
        )
        return {**_alias_answer(moved, response), "dry_run": dry_run, **_receipt(done, response)}

    @router.post(
        _TASKS + "/{task_id}/promote",
        summary="Give one of an alias's versions all of its requests",
        description=_PRECONDITION,
        openapi_extra=_json_body(ChoiceBody),
    )
    async def promote(
        task_id: TaskId, request: Request, response: Response, dry_run: DryRun = False
    ) -> dict[str, Any]:
        lifecycle.admit()
        body = await _read(ChoiceBody, request, small)
        promoted, done = await operations.promote(
            task_id, body.alias, body.version, _expected(request), dry_run=dry_run, actor=_actor(request)
        )
        return {**_alias_answer(promoted, response), "dry_run": dry_run, **_receipt(done, response)}

    @router.delete(
        _TASKS + "/{task_id}/aliases/{alias}", summary="Delete an alias", description=_PRECONDITION
    )
    async def delete_alias(
        task_id: TaskId, alias: Alias, request: Request, response: Response, dry_run: DryRun = False
    ) -> dict[str, Any]:
        expected = _expected(request)
        done = await operations.delete_alias(task_id, alias, expected, dry_run=dry_run, actor=_actor(request))
        return {"task_id": task_id, "alias": alias, "deleted": not dry_run, **_receipt(done, response)}

    @router.delete(
        _TASKS + "/{task_id}/versions/{version}", summary="Delete a version that no alias leads to"
    )
    async def delete_version(
        task_id: TaskId, version: Version, request: Request, response: Response, dry_run: DryRun = False
    ) -> dict[str, Any]:
        done = await operations.delete_version(
            task_id, _checked_version(version), dry_run=dry_run, actor=_actor(request)
        )
        return {"task_id": task_id, "version": version, "deleted": not dry_run, **_receipt(done, response)}

    @router.delete(_TASKS + "/{task_id}", summary="Delete a task")
    async def delete_task(
        task_id: TaskId,
        request: Request,
        response: Response,
        force: Annotated[bool, Query(description="Its aliases too.")] = False,
        dry_run: DryRun = False,
    ) -> dict[str, Any]:
        done = await operations.delete_task(task_id, force=force, dry_run=dry_run, actor=_actor(request))
        return {"task_id": task_id, "deleted": not dry_run, **_receipt(done, response)}

    return router


async def _read(model: type[M], request: Request, limits: BodyLimits) -> M:
    check_media(request.scope, b"application/json")
    return parse_body(model, await read_body(request.scope, request.receive, limits))


def _expected(request: Request) -> int:
    """The alias revision that the caller believes to overwrite; 0 for none."""
    match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is not None and none_match is None:
        text = match.strip().removeprefix('"').removesuffix('"')
        if text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
        raise InvalidRequest("If-Match must be an alias revision, as the ETag has it")
    if none_match is not None and match is None and none_match.strip() == "*":
        return 0
    raise PreconditionRequired(_PRECONDITION.replace("`", ""))


def _checked_version(version: str) -> str:
    if not is_version(version):
        raise InvalidRequest("a version is a SHA-256 in lower-case hex", param="version")
    return version


def _alias_answer(alias: AliasRecord, response: Response) -> dict[str, Any]:
    response.headers["ETag"] = f'"{alias.revision}"'
    return alias_json(alias)


def _receipt(receipt: Receipt | None, response: Response) -> dict[str, Any]:
    """What a write is acknowledged with: nothing for a dry run."""
    if receipt is None:
        return {}
    response.headers["X-Store-Revision"] = revision_text(receipt.revision)
    promised = receipt.durability
    return {
        "store_revision": {"epoch": receipt.revision.epoch, "number": receipt.revision.number},
        "durability": {
            "durable": promised.durable,
            "fsync": promised.fsync,
            "replicas": promised.replicas,
        },
    }


def _actor(request: Request) -> str:
    return str(request.scope.get("api_key_name", ""))


def _json_body(model: type[Body]) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": model.model_json_schema()}},
        }
    }
