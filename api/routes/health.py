"""Is the process alive, and can it serve?"""

from typing import Literal

import redis
from fastapi import APIRouter
from pydantic import BaseModel

from api.dependencies import ServicesDep
from jobs import repository
from jobs.task_queue import get_redis_url

router = APIRouter(tags=["health"])

_BROKER_SECONDS = 0.5


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(Health):
    database: Literal["ok"] = "ok"
    broker: Literal["ok", "unreachable"]


@router.get("/healthz", summary="The process answers")
def get_health() -> Health:
    return Health()


@router.get("/readyz", summary="The service can take jobs")
def get_readiness(services: ServicesDep) -> Readiness:
    """503 without the database. The broker is shown only: without it jobs are taken all the same, and start later."""
    with services.sessions.begin() as session:
        repository.check_reachable(session)
    return Readiness(broker="ok" if _broker_answers(services) else "unreachable")


def _broker_answers(services: ServicesDep) -> bool:
    url = get_redis_url(services.settings)
    client = redis.Redis.from_url(url, socket_connect_timeout=_BROKER_SECONDS, socket_timeout=_BROKER_SECONDS)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()
