"""`medtune webhooks`: URLs of other systems, which are told when a job is over or waits for somebody."""

from typing import Annotated, Literal

import typer

from api.pages import Page
from api.webhook_schemas import DeliveryPage, DeliveryRead, WebhookRead, WebhookSecretRead
from cli.remote import AsJson, open_service, print_json, print_table

webhooks = typer.Typer(no_args_is_help=True, help="Tell other systems when a job is over or waits for somebody.")

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id.")]
_WebhookPage = Page[WebhookRead]


def add_commands(app: typer.Typer) -> None:
    app.add_typer(webhooks, name="webhooks")


@webhooks.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """List webhooks, newest first; without their secrets."""
    with open_service() as client:
        page = _WebhookPage.model_validate(client.get("/webhooks"))
    if as_json:
        print_json(page)
        return
    rows = [(w.id, w.jobs, f"{w.created_at:%Y-%m-%d %H:%M}", w.url) for w in page.data]
    print_table(("webhook", "jobs", "created", "URL"), rows)


@webhooks.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages go.")],
    jobs: Annotated[
        Literal["all", "named"], typer.Option(help="named: only jobs whose `webhook_url` is this URL.")
    ] = "all",
    as_json: AsJson = False,
) -> None:
    """Register a URL, and print its id and the secret that its messages are signed with: it is shown this once."""
    with open_service() as client:
        added = WebhookSecretRead.model_validate(client.post("/webhooks", {"url": url, "jobs": jobs}))
    _print_secret(added, as_json)


@webhooks.command()
def rotate(webhook: WebhookId, as_json: AsJson = False) -> None:
    """Make a new secret and print it, once. For a day messages are signed with the old one, too."""
    with open_service() as client:
        rotated = WebhookSecretRead.model_validate(client.post(f"/webhooks/{webhook}/rotate"))
    _print_secret(rotated, as_json)


@webhooks.command()
def test(webhook: WebhookId) -> None:
    """Send a test message, and print its id; `deliveries` says what became of it."""
    with open_service() as client:
        sent = DeliveryRead.model_validate(client.post(f"/webhooks/{webhook}/test"))
    typer.echo(sent.id)


@webhooks.command()
def deliveries(
    webhook: WebhookId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent, newest first, and what became of it."""
    with open_service() as client:
        page = DeliveryPage.model_validate(client.get(f"/webhooks/{webhook}/deliveries", limit=limit))
    if as_json:
        print_json(page)
        return
    print_table(
        ("message", "type", "status", "tries", "answer", "next try", "job"), [_describe_delivery(d) for d in page.data]
    )


@webhooks.command()
def remove(webhook: WebhookId) -> None:
    """Remove a webhook with its deliveries, also those that are not sent yet."""
    with open_service() as client:
        client.delete(f"/webhooks/{webhook}")
    typer.echo(f"{webhook} removed")


def _print_secret(webhook: WebhookSecretRead, as_json: bool) -> None:
    if as_json:
        print_json(webhook)
    else:
        typer.echo(f"{webhook.id} {webhook.secret}")


def _describe_delivery(delivery: DeliveryRead) -> tuple[str, ...]:
    answer = " ".join(str(part) for part in (delivery.status_code, delivery.error) if part is not None)
    next_try = f"{delivery.next_at:%Y-%m-%d %H:%M:%S}" if delivery.next_at and delivery.tries else ""
    return (
        delivery.id, delivery.type, delivery.status, str(delivery.tries), answer, next_try, delivery.job or ""
    )  # fmt: skip
