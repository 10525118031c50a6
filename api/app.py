"""The API: `uvicorn --factory api.app:create_app`."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request

from api.body_limit import BodyLimit
from api.dashboard.mount import add_dashboard
from api.dependencies import IdentityDep, Services
from api.errors import ErrorResponse, add_error_handlers
from api.routes import datasets, health, jobs, models, workers
from jobs.api_keys import ensure_bootstrap_key
from jobs.database import Role, build_engine, build_sessions
from jobs.settings import Settings, get_settings
from jobs.store import Store
from jobs.task_queue import Doorbell

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "No valid API key"},
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
    )
    app.state.settings = settings
    app.add_middleware(BodyLimit, max_upload_bytes=settings.max_upload_bytes)
    add_error_handlers(app)
    for module in (jobs, datasets, models, workers, health):
        app.include_router(module.router)
    app.add_api_route("/openapi.json", _get_openapi, include_in_schema=False)
    add_dashboard(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    engine = build_engine(settings, Role.API, pool_size=_POOL_SIZE)
    doorbell = Doorbell(settings)
    services = Services(
        settings, build_sessions(engine), Store(settings.store_location), doorbell, settings.load_secret_key()
    )
    if settings.bootstrap_key is not None:
        with services.sessions.begin() as session:
            ensure_bootstrap_key(session, services.secret_key, settings.bootstrap_key.get_secret_value())
    app.state.services = services
    yield
    doorbell.close()
    engine.dispose()


def _get_openapi(request: Request, _identity: IdentityDep) -> dict[str, Any]:
    """Every route but those of health wants a key; `api.dependencies.identify` asks for it."""
    app: FastAPI = request.app
    document = app.openapi()
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key: `medtune keys create`"}
    document["components"]["securitySchemes"] = {"key": scheme}
    document["security"] = [{"key": []}]
    for path in ("/healthz", "/readyz"):
        document["paths"][path]["get"]["security"] = []
    return document
