"""Messages to webhooks: rows that are written with the change that they tell of, and sent later, at least once."""

import datetime
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    Interval,
    Row,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    delete,
    func,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from jobs.ids import new_id
from jobs.models import Job, WebhookDelivery, WebhookEndpoint
from jobs.status import JobStatus
from jobs.webhooks.messages import TEST_TYPE, TOLD_STATUSES, name_type

CLAIM_SECONDS = 60
"""So long no other sender takes a delivery; the sender needs less, or is dead."""
MAX_TRIES = 12
_FACTOR, _LONGEST_PAUSE = 3, 8 * 3600.0
KEPT_DAYS = 30

_endpoints, _deliveries = WebhookEndpoint.__table__.c, WebhookDelivery.__table__.c


def tell_webhooks(session: Session, job: Job, event_id: str, status: JobStatus) -> None:
    """In the transaction that changes the status; the message has the id of its event."""
    if status not in TOLD_STATUSES:
        return
    wants = or_(_endpoints.all_jobs, _endpoints.url == job.spec.get("webhook_url"))
    values = {
        _deliveries.endpoint_id: _endpoints.id,
        _deliveries.event_id: literal(event_id),
        _deliveries.tenant_id: _endpoints.tenant_id,
        _deliveries.subject_id: literal(job.id),
        _deliveries.type: literal(name_type(status)),
    }
    told = select(*values.values()).where(_endpoints.tenant_id == job.tenant_id, wants)
    session.execute(insert(WebhookDelivery).from_select(list(values), told))


def send_test(session: Session, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """A message that says nothing, to see whether it arrives."""
    delivery = WebhookDelivery(
        endpoint_id=endpoint.id,
        event_id=new_id("evt"),
        tenant_id=endpoint.tenant_id,
        subject_id=endpoint.id,
        type=TEST_TYPE,
    )
    session.add(delivery)
    session.flush()
    session.refresh(delivery)
    return delivery


def claim_deliveries(session: Session, *, busy: Collection[str], limit: int) -> Sequence[Row[Any]]:
    """Those that are due, one of each endpoint that is not `busy`: one that hangs does not hold up the others.

    Each has its try counted, and is due again when this sender is not heard of within CLAIM_SECONDS.
    """
    parameters = {"busy": list(busy), "limit": limit, "claim": datetime.timedelta(seconds=CLAIM_SECONDS)}
    return session.connection().execute(_CLAIM, parameters).all()


def record_delivery(
    session: Session, delivery: Row[Any], *, status_code: int | None, error: str | None, backoff_seconds: float
) -> None:
    """A 2xx ends it, and so does the last failure. What was delivered stays delivered, whoever says otherwise later."""
    is_delivered = error is None
    pause = min(backoff_seconds * _FACTOR ** (delivery.num_tries - 1), _LONGEST_PAUSE)
    is_over = is_delivered or delivery.num_tries >= MAX_TRIES
    values = {
        "status_code": status_code,
        "error": error,
        "delivered_at": func.now() if is_delivered else None,
        "next_at": None if is_over else func.now() + datetime.timedelta(seconds=pause),
    }
    same = (_deliveries.endpoint_id == delivery.endpoint_id, _deliveries.event_id == delivery.event_id)
    session.execute(update(WebhookDelivery.__table__).where(*same, _deliveries.delivered_at.is_(None)).values(values))  # type: ignore[arg-type]


def forget_deliveries(session: Session) -> None:
    """Those that ended long ago."""
    old = _deliveries.created_at < func.now() - datetime.timedelta(days=KEPT_DAYS)
    session.execute(delete(WebhookDelivery).where(old, _deliveries.next_at.is_(None)))


# --- Statements, built once -------------------------------------------------------------------------------------


def _build_claim() -> Update:
    due: Select[Any] = (
        select(_deliveries.event_id, _deliveries.next_at)
        .where(_deliveries.endpoint_id == _endpoints.id, _deliveries.next_at <= func.now())
        .order_by(_deliveries.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    first = due.lateral("due")
    chosen = (
        select(_endpoints.id, _endpoints.url, _endpoints.secret_version, _endpoints.secret_hash, first.c.event_id)
        .add_columns((_endpoints.previous_secret_until > func.now()).label("has_previous_secret"))
        .select_from(WebhookEndpoint.__table__.join(first, true()))
        .where(_endpoints.id != func.all(bindparam("busy", type_=ARRAY(Text))))
        .order_by(first.c.next_at)
        .limit(bindparam("limit"))
        .cte("chosen")
    )
    claimed = update(WebhookDelivery.__table__).where(  # type: ignore[arg-type]
        and_(_deliveries.endpoint_id == chosen.c.id, _deliveries.event_id == chosen.c.event_id)
    )
    return claimed.values(
        next_at=func.now() + bindparam("claim", type_=Interval),
        num_tries=_deliveries.num_tries + 1,
        tried_at=func.now(),
    ).returning(*_deliveries, chosen.c.url, chosen.c.secret_version, chosen.c.secret_hash, chosen.c.has_previous_secret)


_CLAIM = _build_claim()
