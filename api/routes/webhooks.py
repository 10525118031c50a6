"""URLs of other systems, which are told when a job is over or waits for somebody."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.dependencies import IdentityDep, ServicesDep, TransactionDep
from api.idempotency import SendingDep, claim
from api.pages import Page
from api.webhook_schemas import (
    DeliveryPage,
    DeliveryRead,
    WebhookCreate,
    WebhookRead,
    WebhookSecretRead,
    read_delivery,
    read_webhook,
    read_webhook_with_secret,
)
from jobs import lifecycle, repository
from jobs.webhooks.endpoints import FIRST_SECRET, create_endpoint, delete_endpoint, rotate_secret
from jobs.webhooks.messages import derive_secret
from jobs.webhooks.targets import find_address, parse_target

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


def check_url(body: WebhookCreate, _identity: IdentityDep, services: ServicesDep) -> WebhookCreate:
    """Before the transaction: the name service may take its time. Raises InvalidRequest."""
    target = parse_target(body.url, allow_http=services.settings.webhook_allow_http)
    find_address(target, services.settings.webhook_allowed_networks)
    return body


@router.post("", status_code=201, summary="Register a webhook")
def create_webhook(
    body: Annotated[WebhookCreate, Depends(check_url)],
    transaction: TransactionDep,
    services: ServicesDep,
    sending: SendingDep,
) -> WebhookSecretRead:
    """The answer is the only one with the secret. 409 for a URL that is registered already."""
    with transaction as caller:
        # Only the key that asked gets the secret once more.
        first = claim(caller, sending, f"{caller.identity.key_id} {body.model_dump_json()}")
        if first.answer is not None:
            made = WebhookRead.model_validate_json(first.answer)
            secret = derive_secret(services.secret_key, made.id, FIRST_SECRET)
            return WebhookSecretRead(**made.model_dump(), secret=secret)
        endpoint, secret = create_endpoint(
            caller.session,
            services.secret_key,
            tenant_id=caller.identity.tenant_id,
            key_id=caller.identity.key_id,
            url=body.url,
            all_jobs=body.jobs == "all",
        )
        caller.object_id = endpoint.id
        first.keep(read_webhook(endpoint).model_dump_json())
    return read_webhook_with_secret(endpoint, secret)


@router.get("", summary="List webhooks, newest first")
def list_webhooks(transaction: TransactionDep) -> Page[WebhookRead]:
    with transaction as caller:
        return Page(data=[read_webhook(row) for row in repository.list_webhooks(caller.session)], has_more=False)


@router.get("/{webhook_id}", summary="One webhook")
def get_webhook(webhook_id: str, transaction: TransactionDep) -> WebhookRead:
    with transaction as caller:
        return read_webhook(repository.get_webhook(caller.session, webhook_id))


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook")
def delete_webhook(webhook_id: str, transaction: TransactionDep) -> None:
    """With its log of deliveries; what was not sent yet is not sent any more."""
    with transaction as caller:
        delete_endpoint(caller.session, webhook_id)


@router.post("/{webhook_id}/rotate", summary="Make a new secret")
def rotate_webhook(webhook_id: str, transaction: TransactionDep, services: ServicesDep) -> WebhookSecretRead:
    """For a day messages have two signatures, by the new secret and the old: the receiver has time to change."""
    with transaction as caller:
        endpoint, secret = rotate_secret(caller.session, services.secret_key, webhook_id)
    return read_webhook_with_secret(endpoint, secret)


@router.post("/{webhook_id}/test", status_code=202, summary="Send a test message")
def test_webhook(webhook_id: str, transaction: TransactionDep, sending: SendingDep) -> DeliveryRead:
    """What became of it: `GET /webhooks/{webhook_id}/deliveries`."""
    with transaction as caller:
        endpoint = repository.get_webhook(caller.session, webhook_id)
        first = claim(caller, sending, "")
        if first.answer is not None:
            return DeliveryRead.model_validate_json(first.answer)
        delivery = read_delivery(lifecycle.send_test(caller.session, endpoint))
        first.keep(delivery.model_dump_json())
        return delivery


@router.get("/{webhook_id}/deliveries", summary="What was sent, newest first")
def list_deliveries(
    webhook_id: str,
    transaction: TransactionDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(description="The last delivery's id of the page before.")] = None,
) -> DeliveryPage:
    """Kept for 30 days. What the receiver answered is not kept, but for its status code."""
    with transaction as caller:
        repository.get_webhook(caller.session, webhook_id)
        rows = repository.list_webhook_deliveries(caller.session, webhook_id, limit=limit + 1, after=after)
        return DeliveryPage(data=[read_delivery(row) for row in rows[:limit]], has_more=len(rows) > limit)
