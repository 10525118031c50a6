"""The API: `uvicorn --factory api.app:create_app`."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute

from api.body_limit import BodyLimit
from api.dashboard.mount import add_dashboard
from api.dependencies import IdentityDep, Services
from api.errors import ErrorResponse, add_error_handlers
from api.examples import add_examples
from api.host_guard import HostGuard, list_allowed_hosts
from api.rate_limits import RateLimits
from api.routes import (
    adapters,
    audit,
    datasets,
    deletions,
    exports,
    health,
    jobs,
    keys,
    lineage,
    models,
    openai,
    reviews,
    streams,
    usage,
    webhooks,
    workers,
)
from api.streams import Streams
from jobs.api_keys import ensure_bootstrap_key
from jobs.database import Role, build_engine, build_sessions
from jobs.settings import Settings, get_settings
from jobs.store import Store
from jobs.task_queue import Doorbell

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request cannot be read, or is for another host"},
    401: {"model": ErrorResponse, "description": "No valid API key"},
    403: {"model": ErrorResponse, "description": "The key has not the scope, which the error names"},
    404: {"model": ErrorResponse, "description": "No such thing for this tenant"},
    409: {"model": ErrorResponse, "description": "Its state does not allow it"},
    413: {"model": ErrorResponse, "description": "More bytes than allowed"},
    422: {"model": ErrorResponse, "description": "The request cannot be carried out as it stands"},
    429: {"model": ErrorResponse, "description": "As many as the key may have; `Retry-After` says when to try again"},
    503: {"model": ErrorResponse, "description": "The database does not answer"},
}

_POOL_SIZE = 20
"""Connections kept; the thread pool that runs the endpoints has 40 threads, and the pool may double."""


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or get_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = FastAPI(
        title="medtune",
        version="1",
        summary="Fine-tune language models with LoRA on your own GPUs.",
        lifespan=_lifespan,
        responses=_ERRORS,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_name_operation,
    )
    app.state.settings = settings
    app.state.is_stopping = lambda: False  # Whoever runs the server knows.
    app.add_middleware(BodyLimit, max_upload_bytes=settings.max_upload_bytes)
    app.add_middleware(HostGuard, allowed_hosts=list_allowed_hosts(settings))  # The last added is the outermost.
    add_error_handlers(app)
    native = (
        jobs,
        streams,
        datasets,
        adapters,
        reviews,
        exports,
        deletions,
        lineage,
        models,
        webhooks,
        workers,
        usage,
        keys,
        audit,
        health,
    )
    for module in (*native, openai):
        app.include_router(module.router)
    app.add_api_route("/openapi.json", get_openapi, include_in_schema=False)
    add_dashboard(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    engine = build_engine(settings, Role.API, pool_size=_POOL_SIZE)
    doorbell = Doorbell(settings)
    services = Services(
        settings,
        build_sessions(engine),
        Store(settings.store_location),
        doorbell,
        settings.load_secret_key(),
        RateLimits(settings),
    )
    if settings.bootstrap_key is not None:
        with services.sessions.begin() as session:
            ensure_bootstrap_key(session, services.secret_key, settings.bootstrap_key.get_secret_value())
    app.state.services = services
    app.state.streams = Streams(services.sessions, settings, lambda: app.state.is_stopping())
    looking = asyncio.create_task(app.state.streams.run())
    yield
    looking.cancel()
    doorbell.close()
    engine.dispose()


def _name_operation(route: APIRoute) -> str:
    """`client.create_job()` and not `create_job_jobs_post()`; OpenAI's routes share their names with ours."""
    return f"openai_{route.endpoint.__name__}" if route.path.startswith("/v1/") else route.name


def get_openapi(request: Request, _identity: IdentityDep) -> dict[str, Any]:
    """Every route but those of health wants a key; `api.dependencies.identify` asks for it."""
    app: FastAPI = request.app
    document = app.openapi()
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key: `medtune keys create`"}
    document["components"]["securitySchemes"] = {"key": scheme}
    document["security"] = [{"key": []}]
    for path in ("/healthz", "/readyz"):
        document["paths"][path]["get"]["security"] = []
    add_examples(document)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for status, response in operation["responses"].items():
            if status >= "400":  # Whatever else the route answers with.
                response["content"] = error
    return document
