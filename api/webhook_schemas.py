"""Webhooks as clients write and read them."""

import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.pages import Page, ReadModel
from jobs.models import WebhookDelivery, WebhookEndpoint
from jobs.webhooks.targets import MAX_URL


class WebhookCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL)]
    """An https URL at a public address, or at one that the operator allows."""
    jobs: Literal["all", "named"] = "all"
    """Which jobs it is told of: all of the tenant, or those whose `webhook_url` is this URL."""


class WebhookRead(ReadModel):
    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    jobs: Literal["all", "named"]
    previous_secret_until: datetime.datetime | None
    """After a rotation: until then messages are signed with the secret before, too."""
    created_at: datetime.datetime


class WebhookSecretRead(WebhookRead):
    secret: str
    """What its messages are signed with. It is shown this once."""


class DeliveryRead(ReadModel):
    """One message, and what became of it."""

    object: Literal["webhook.delivery"] = "webhook.delivery"
    id: str
    """The message's `webhook-id`: the id of the job's event."""
    type: str
    """`fine_tuning.job.succeeded`, `.failed`, `.cancelled`, `.held`, `.paused`, or `webhook.test`"""
    job: str | None
    status: Literal["pending", "delivered", "failed"]
    tries: int
    status_code: int | None
    """Of the last answer."""
    error: str | None
    """Why the last try failed: http_status, redirect, timeout, connection_failed, not_http, no_answer,
    another_secret_key (not the API's), or the code with which the URL would be refused today."""
    created_at: datetime.datetime
    tried_at: datetime.datetime | None
    next_at: datetime.datetime | None
    """When it is sent again, at the earliest."""


DeliveryPage = Page[DeliveryRead]
"""Made here: pydantic looks for docstrings where it is made first, and cannot read all places."""


def read_webhook(endpoint: WebhookEndpoint) -> WebhookRead:
    return WebhookRead(
        id=endpoint.id,
        url=endpoint.url,
        jobs="all" if endpoint.all_jobs else "named",
        previous_secret_until=endpoint.previous_secret_until,
        created_at=endpoint.created_at,
    )


def read_webhook_with_secret(endpoint: WebhookEndpoint, secret: str) -> WebhookSecretRead:
    return WebhookSecretRead(**read_webhook(endpoint).model_dump(), secret=secret)


def read_delivery(delivery: WebhookDelivery) -> DeliveryRead:
    is_over = delivery.next_at is None
    return DeliveryRead(
        id=delivery.event_id,
        type=delivery.type,
        job=delivery.subject_id if delivery.subject_id.startswith("job_") else None,
        status="delivered" if delivery.delivered_at is not None else "failed" if is_over else "pending",
        tries=delivery.num_tries,
        status_code=delivery.status_code,
        error=delivery.error,
        created_at=delivery.created_at,
        tried_at=delivery.tried_at,
        next_at=delivery.next_at,
    )
