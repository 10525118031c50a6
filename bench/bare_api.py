"""The peer of bench/api.py: two endpoints by hand, FastAPI and psycopg, with the same authentication, the same tenant
setting and the same statements, and nothing else. Run by uvicorn; its settings come by environment."""

import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from jobs.ids import new_id

POOL = ConnectionPool(
    os.environ["BARE_DATABASE_URL"],
    kwargs={"options": "-c role=medtune_api -c timezone=UTC", "row_factory": dict_row},
    min_size=20,
    max_size=40,
    open=False,
)
SECRET_KEY = os.environ["BARE_SECRET_KEY"].encode()

IDENTIFY = """
    SELECT id, tenant_id, set_config('medtune.tenant', tenant_id, true) FROM api_keys
    WHERE revoked_at IS NULL AND key_hash = %s
"""


@asynccontextmanager
async def open_pool(_app: FastAPI) -> AsyncIterator[None]:
    POOL.open(wait=True)
    yield
    POOL.close()


app = FastAPI(lifespan=open_pool)


def identify(connection: Any, authorization: str) -> dict[str, Any]:
    key = authorization.removeprefix("Bearer ").encode()
    row: dict[str, Any] | None = connection.execute(
        IDENTIFY, (hmac.digest(SECRET_KEY, key, hashlib.sha256),)
    ).fetchone()
    if row is None:
        raise HTTPException(401)
    return row


def build_response(job: dict[str, Any], status: int) -> JSONResponse:
    for name in ("created_at", "started_at", "finished_at", "cancel_requested_at"):
        if job[name] is not None:
            job[name] = job[name].isoformat()
    return JSONResponse(job, status)


JOB_COLUMNS = """
    id, name, status, reason, model, spec, priority, metadata, parent_id, attempt, progress, metrics, verification,
    cancel_requested_at, created_at, started_at, finished_at
"""


@app.get("/jobs/{job_id}")
def get_job(job_id: str, authorization: str = Header()) -> JSONResponse:
    with POOL.connection() as connection:
        identify(connection, authorization)
        job = connection.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = %s", (job_id,)).fetchone()
    if job is None:
        raise HTTPException(404)
    return build_response(dict(job), 200)


@app.post("/jobs")
def create_job(spec: dict[str, Any], authorization: str = Header()) -> JSONResponse:
    job_id = new_id("job")
    with POOL.connection() as connection:
        key = identify(connection, authorization)
        query = "SELECT status FROM datasets WHERE id = %s"
        if connection.execute(query, (spec["dataset"]["id"],)).fetchone() is None:
            raise HTTPException(404)
        job = connection.execute(
            f"""
            INSERT INTO jobs (id, tenant_id, status, model, dataset_id, spec, priority, num_gpus, metadata, created_by)
            VALUES (%s, %s, 'queued', %s, %s, %s, 0, 0, '{{}}', %s) RETURNING {JOB_COLUMNS}
            """,
            (job_id, key["tenant_id"], spec["model"], spec["dataset"]["id"], json.dumps(spec), key["id"]),
        ).fetchone()
        connection.execute(
            """
            INSERT INTO events (id, tenant_id, job_id, attempt, type, message, data)
            VALUES (%s, %s, %s, 0, 'status', 'job created, queued', '{"to": "queued"}')
            """,
            (new_id("evt"), key["tenant_id"], job_id),
        )
        connection.execute(
            """
            INSERT INTO audit_entries (tenant_id, actor, action, object_id, result, data)
            VALUES (%s, %s, 'create_job', %s, 'ok', '{}')
            """,
            (key["tenant_id"], key["id"], job_id),
        )
    assert job is not None
    return build_response(dict(job), 201)
