"""The public app: `/classify`, the lists of tasks, health and documentation.

Owns: public paths and their documentation. Must not know: how answers come about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Route

from prompt_store import PromptStoreError
from server.auth import Keyring
from server.boundary import PROBLEM_JSON
from server.catalogue import Catalogue, ServedTask
from server.classify import ClassifyEndpoint
from server.errors import ServerError
from server.lifecycle import Lifecycle
from server.problem import code_of, problem
from server.schemas import ClassifyAnswer, ClassifyBody, ModelList, ProblemBody
from server.standing import Standing

_BEARER = HTTPBearer(auto_error=False, description="An API key; none is needed where the server has no keys.")
_REQUEST_KEY = (
    "Where an alias is split between versions: requests with the same key get the same version. A user's or a "
    "session's id, of the characters of a request id."
)
_MIN_REVISION = (
    "`<epoch>:<number>`, as a write's X-Store-Revision has it: answer from a catalogue that has seen this revision, or "
    "503 `revision_not_reached`; 412 `revision_lost` where the store lost that history. The same as `min_revision`."
)
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong, with a stable `code`.",
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
    }
}


def new_app(title: str, version: str) -> FastAPI:
    """An app whose every error is problem+json."""
    # Its documentation page brings Swagger UI along: a server without the internet shows it, too.
    app = FastAPIOffline(redoc_url=None, title=title, version=version, responses=_PROBLEMS)
    app.router.redirect_slashes = False
    for kind in (ServerError, PromptStoreError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer_problem)
    return app


def require(keyring: Keyring, *scopes: str) -> Any:
    """A router dependency: the caller's key has one of `scopes`."""

    async def authorized(
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> None:
        key = keyring.authorize(request.headers.get("authorization"), *scopes)
        request.scope["api_key_name"] = key.name

    return Depends(authorized)


def public_app(
    classify: ClassifyEndpoint,
    catalogue: Catalogue,
    keyring: Keyring,
    lifecycle: Lifecycle,
    standing: Callable[[], Standing],
    version: str,
) -> FastAPI:
    """The app of the public port."""
    app = new_app("promptmux", version)
    app.router.routes.insert(0, Route("/classify", classify, methods=["POST"]))
    app.include_router(health_router(lifecycle, standing))
    app.include_router(_lists(catalogue), dependencies=[require(keyring, "infer")])
    shown = APIRoute(
        "/classify",
        _classify_documentation,
        methods=["POST"],
        response_model=ClassifyAnswer,
        operation_id="classify",
        summary="Classify texts",
        tags=["classify"],
        responses=_PROBLEMS,
    )
    document(app, [shown])
    return app


def document(app: FastAPI, more: list[APIRoute]) -> None:
    """Let `/openapi.json` show the app's routes and `more`, which the app serves outside FastAPI."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=[*more, *app.routes])
            models = schema.setdefault("components", {}).setdefault("schemas", {})
            models["ProblemBody"] = ProblemBody.model_json_schema()
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the schema


def health_router(lifecycle: Lifecycle, standing: Callable[[], Standing]) -> APIRouter:
    """`/healthz` and `/readyz`; `standing` says how a ready server stands."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get(
        "/readyz", summary="The server takes work: the model and the store are there, and it is not stopping"
    )
    async def readyz() -> Standing:
        lifecycle.check_ready()
        return standing()

    return router


def _lists(catalogue: Catalogue) -> APIRouter:
    router = APIRouter(tags=["tasks"])

    listed = _Listed(catalogue)

    async def tasks() -> Response:
        return Response(await listed.get(), media_type="application/json")

    for path, summary in (
        ("/v1/models", "Every task, as OpenAI's and vLLM's clients expect it"),
        ("/tasks", "The same list"),
    ):
        router.get(path, summary=summary, response_model=ModelList)(tasks)
    return router


class _Listed:
    """The list of all tasks, made anew only after a change, and once for all who ask meanwhile."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._kept: tuple[int, bytes] = (-1, b"")  # of which change
        self._build: asyncio.Task[None] | None = None

    async def get(self) -> bytes:
        """The list as it is now, or a later one: never without what the caller has written."""
        wanted = self._catalogue.changes
        while self._kept[0] < wanted:
            if self._build is None:
                self._build = asyncio.create_task(self._make())
            await asyncio.shield(self._build)  # one caller that leaves must not take it from the others
        return self._kept[1]

    async def _make(self) -> None:
        try:
            changes = self._catalogue.changes
            # On a thread: of 100,000 tasks this is half a second's work.
            self._kept = (changes, await asyncio.to_thread(_models, list(self._catalogue)))
        finally:
            self._build = None


def _models(tasks: Sequence[ServedTask]) -> bytes:
    data = [
        {
            "id": task.task_id,
            "object": "model",
            "created": task.created,
            "owned_by": "promptmux",
            "version": task.current(),
        }
        for task in sorted(tasks, key=lambda task: task.task_id)
    ]
    return orjson.dumps({"object": "list", "data": data})


def _classify_documentation(
    body: ClassifyBody,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    x_request_key: Annotated[str | None, Header(description=_REQUEST_KEY, max_length=128)] = None,
    x_min_revision: Annotated[str | None, Header(description=_MIN_REVISION)] = None,
) -> None:
    """Scores of one text, many texts or text pairs under a task's prompt."""


async def _answer_problem(request: Request, error: Exception) -> Response:
    status, headers, body = problem(error, request.scope["request_id"])
    request.scope["problem_code"] = code_of(error)  # for the boundary, which counts
    return Response(body, status, headers, PROBLEM_JSON)
