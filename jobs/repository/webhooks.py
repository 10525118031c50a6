"""Webhooks and what was sent to them."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import WebhookDelivery, WebhookEndpoint
from jobs.repository.pages import page_of_newest


def list_webhooks(session: Session) -> Sequence[WebhookEndpoint]:
    """Newest first."""
    return session.scalars(select(WebhookEndpoint).order_by(WebhookEndpoint.id.desc())).all()


def get_webhook(session: Session, endpoint_id: str) -> WebhookEndpoint:
    return _get(session.get(WebhookEndpoint, endpoint_id), endpoint_id)


def find_webhook_by_url(session: Session, url: str) -> WebhookEndpoint | None:
    return session.scalar(select(WebhookEndpoint).where(WebhookEndpoint.url == url))


def lock_webhook(session: Session, endpoint_id: str) -> WebhookEndpoint:
    locked = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).with_for_update()
    return _get(session.scalar(locked), endpoint_id)


def lock_webhooks(session: Session, tenant_id: str) -> None:
    """Nobody else adds one to the tenant until this transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhooks/{tenant_id}", 0))))


def list_webhook_deliveries(
    session: Session, endpoint_id: str, *, limit: int, after: str | None = None
) -> Sequence[WebhookDelivery]:
    """Newest first; up to `limit` older than the one of the event `after`."""
    deliveries = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    return session.scalars(page_of_newest(deliveries, WebhookDelivery.event_id, after, limit)).all()


def _get(endpoint: WebhookEndpoint | None, endpoint_id: str) -> WebhookEndpoint:
    if endpoint is None:
        raise NotFound("webhook_not_found", f"there is no webhook {endpoint_id!r}")
    return endpoint
