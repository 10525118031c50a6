"""The peer of bench/api.py: two endpoints by hand, FastAPI and psycopg, with the same authentication, the same tenant
setting, the same body and the statements that the service itself sends. And nothing else: no look at the model, no
plan, no quotas, no idempotency, no ring, no model of the answer. Run by uvicorn; its settings come by environment."""

import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from jobs.audit_log import ADD_ENTRY
from jobs.ids import new_id
from jobs.lifecycle.wishes import CREATE_JOB
from jobs.repository.jobs import ONE_JOB_VIEW
from jobs.repository.keys import IDENTIFY_BY_HASH
from jobs.repository.submission import SUBMISSION_FACTS
from jobs.spec import JobSpec
from jobs.statements import Statement

POOL = ConnectionPool(
    os.environ["BARE_DATABASE_URL"],
    kwargs={"options": "-c role=medtune_api -c timezone=UTC", "row_factory": dict_row},
    min_size=20,
    max_size=40,
    open=False,
)
SECRET_KEY = os.environ["BARE_SECRET_KEY"].encode()


@asynccontextmanager
async def open_pool(_app: FastAPI) -> AsyncIterator[None]:
    POOL.open(wait=True)
    yield
    POOL.close()


app = FastAPI(lifespan=open_pool)


def execute(connection: Any, query: Statement, **parameters: Any) -> Any:
    return connection.execute(query.text, query.constants | parameters)


def identify(connection: Any, authorization: str) -> dict[str, Any]:
    key = authorization.removeprefix("Bearer ").encode()
    key_hash = hmac.digest(SECRET_KEY, key, hashlib.sha256)
    row: dict[str, Any] | None = execute(connection, IDENTIFY_BY_HASH, key_hash=key_hash).fetchone()
    if row is None:
        raise HTTPException(401)
    return row


def build_response(job: dict[str, Any], status: int) -> JSONResponse:
    return JSONResponse({n: v.isoformat() if isinstance(v, datetime) else v for n, v in job.items()}, status)


@app.get("/jobs/{job_id}")
def get_job(job_id: str, authorization: str = Header()) -> JSONResponse:
    with POOL.connection() as connection:
        identify(connection, authorization)
        job = execute(connection, ONE_JOB_VIEW, job_id=job_id).fetchone()
    if job is None:
        raise HTTPException(404)
    return build_response(job, 200)


@app.post("/jobs")
def create_job(spec: JobSpec, authorization: str = Header()) -> JSONResponse:
    job_id = new_id("job")
    with POOL.connection() as connection:
        key = identify(connection, authorization)
        wanted = {"dataset_id": spec.dataset.id, "validation_id": None, "gpus": None}
        facts = execute(connection, SUBMISSION_FACTS, **wanted).fetchone()
        if facts["dataset_status"] is None:
            raise HTTPException(404)
        job = execute(
            connection,
            CREATE_JOB,
            id=job_id,
            tenant_id=key["tenant_id"],
            status="queued",
            name=spec.name,
            model=spec.model,
            dataset_id=spec.dataset.id,
            validation_dataset_id=None,
            spec=Jsonb(spec.model_dump(mode="json")),
            priority=spec.priority,
            num_gpus=facts["num_gpus"],
            metadata=Jsonb(spec.metadata),
            idempotency_key=None,
            parent_id=None,
            created_by=key["id"],
            event_id=new_id("evt"),
            message="job created, queued",
            data=Jsonb({"to": "queued"}),
            largest_worker=facts["largest_worker"],
        ).fetchone()
        entry = {"actor": key["id"], "action": "create_job", "object_id": job_id, "result": "ok", "data": Jsonb({})}
        execute(connection, ADD_ENTRY, tenant_id=key["tenant_id"], **entry)
    return build_response(job, 201)
