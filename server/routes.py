"""The public app: `/classify`, the lists of tasks, health and documentation.

Owns: public paths and their documentation. Must not know: how answers come about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

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
from server.catalogue import Catalogue
from server.classify import ClassifyEndpoint
from server.errors import ServerError
from server.lifecycle import Lifecycle
from server.problem import problem
from server.schemas import ClassifyAnswer, ClassifyBody, Model, ModelList, ProblemBody
from server.standing import Standing

_BEARER = HTTPBearer(auto_error=False, description="An API key; none is needed where the server has no keys.")
_REQUEST_KEY = (
    "Where an alias is split between versions: requests with the same key get the same version. A user's or a "
    "session's id, of the characters of a request id."
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


def require(keyring: Keyring, scope: str) -> Any:
    """A router dependency: the caller's key has `scope`."""

    async def authorized(
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> None:
        key = keyring.authorize(request.headers.get("authorization"), scope)
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
        lifecycle.admit()
        return standing()

    return router


def _lists(catalogue: Catalogue) -> APIRouter:
    router = APIRouter(tags=["tasks"])

    async def tasks() -> ModelList:
        models = [Model(id=task.task_id, created=task.created, version=task.current()) for task in catalogue]
        return ModelList(data=sorted(models, key=lambda model: model.id))

    router.get("/v1/models", summary="Every task, as OpenAI's and vLLM's clients expect it")(tasks)
    router.get("/tasks", summary="The same list")(tasks)
    return router


def _classify_documentation(
    body: ClassifyBody,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    x_request_key: Annotated[str | None, Header(description=_REQUEST_KEY, max_length=128)] = None,
) -> None:
    """Scores of one text, many texts or text pairs under a task's prompt."""


async def _answer_problem(request: Request, error: Exception) -> Response:
    status, headers, body = problem(error, request.scope["request_id"])
    return Response(body, status, headers, PROBLEM_JSON)
