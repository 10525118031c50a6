"""A tenant's registered URLs."""

from datetime import timedelta

from sqlalchemy import func
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.models import WebhookEndpoint
from jobs.webhooks.messages import derive_secret, hash_secret

MAX_ENDPOINTS = 20
"""Of each tenant."""
OVERLAP = timedelta(hours=24)
"""After a rotation messages are signed with the old secret, too, for so long."""

FIRST_SECRET = 1
"""The version of an endpoint's first secret."""


def create_endpoint(
    session: Session, secret_key: bytes, *, tenant_id: str, key_id: str, url: str, all_jobs: bool
) -> tuple[WebhookEndpoint, str]:
    """A new endpoint and its secret, which is not shown again. Raises Conflict."""
    repository.lock_webhooks(session, tenant_id)
    existing = repository.list_webhooks(session)
    for endpoint in existing:
        if endpoint.url == url:
            raise Conflict("webhook_exists", f"{endpoint.id} has this URL already", param="url", webhook=endpoint.id)
    if len(existing) >= MAX_ENDPOINTS:
        message = f"there are {MAX_ENDPOINTS} webhooks already, which is the limit"
        raise Conflict("too_many_webhooks", message, remedy="delete one that is not needed")
    endpoint = WebhookEndpoint(
        id=new_id("wh"),
        tenant_id=tenant_id,
        url=url,
        all_jobs=all_jobs,
        secret_version=FIRST_SECRET - 1,
        created_by=key_id,
    )
    session.add(endpoint)
    return endpoint, _renew_secret(session, secret_key, endpoint)


def rotate_secret(session: Session, secret_key: bytes, endpoint_id: str) -> tuple[WebhookEndpoint, str]:
    """The endpoint and its new secret. Raises NotFound."""
    endpoint = repository.lock_webhook(session, endpoint_id)
    endpoint.previous_secret_until = func.now() + OVERLAP
    return endpoint, _renew_secret(session, secret_key, endpoint)


def _renew_secret(session: Session, secret_key: bytes, endpoint: WebhookEndpoint) -> str:
    endpoint.secret_version += 1
    secret = derive_secret(secret_key, endpoint.id, endpoint.secret_version)
    endpoint.secret_hash = hash_secret(secret)
    session.flush()
    session.refresh(endpoint)
    return secret


def delete_endpoint(session: Session, endpoint_id: str) -> None:
    """With its deliveries, also those that are not sent yet. Raises NotFound."""
    session.delete(repository.lock_webhook(session, endpoint_id))
    session.flush()
