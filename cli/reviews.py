"""`medtune reviews` and `medtune adapters`: decide about findings of the safety checks, and about releases."""

from typing import Annotated, Any

import typer

from cli.remote import AsJson, open_service, print_json, print_table

reviews = typer.Typer(no_args_is_help=True, help="Decide about what the safety checks found.")
adapters = typer.Typer(no_args_is_help=True, help="Approve, release, reject adapters.")

By = Annotated[str, typer.Option("--by", help="The name of the person who decides.")]
Reason = Annotated[str, typer.Option(help="Why; 20 characters or more.")]


def add_commands(app: typer.Typer) -> None:
    app.add_typer(reviews, name="reviews")
    app.add_typer(adapters, name="adapters")


@reviews.command(name="list")
def list_reviews(
    state: Annotated[str | None, typer.Option(help="Only those with this state.")] = None,
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List reviews, newest first."""
    with open_service() as client:
        page = client.get("/reviews", state=state, job=job, limit=100)
    if as_json:
        print_json(page)
        return
    rows = [(r["id"], r["state"], r["cause"], str(len(r["findings"])), r["job"]) for r in page["data"]]
    print_table(("review", "state", "of", "findings", "job"), rows)


@reviews.command(name="show")
def show_review(review: str) -> None:
    """Print what a review is about, and what was decided."""
    with open_service() as client:
        found = client.get(f"/reviews/{review}")
    typer.echo(_describe_review(found))
    for finding in found["findings"]:
        typer.echo(f"  {finding['check']} {finding['probe_id']}: {finding.get('explanation', '')}")
        if finding.get("answer"):
            typer.echo(f"    answer: {finding['answer']}")
    for decision in found["decisions"]:
        typer.echo(f"  {decision['name']}: {decision['to'].replace('_', ' ')}: {decision['reason']}")


@reviews.command(name="approve")
def approve_review(review: str, by: By, reason: Reason) -> None:
    """Accept the findings. It takes two persons, each with a key of their own."""
    _decide(f"/reviews/{review}/approve", by, reason)


@reviews.command(name="reject")
def reject_review(review: str, by: By, reason: Reason) -> None:
    """Reject the held job, or the adapter, because of the findings."""
    _decide(f"/reviews/{review}/reject", by, reason)


@adapters.command(name="list")
def list_adapters(
    state: Annotated[str | None, typer.Option(help="Only those with this state.")] = None, as_json: AsJson = False
) -> None:
    """List adapters, newest first; released ones of others, too."""
    with open_service() as client:
        page = client.get("/adapters", state=state, limit=100)
    if as_json:
        print_json(page)
        return
    rows = [(a["job"], a["state"], a["model"], a["name"] or "") for a in page["data"]]
    print_table(("adapter", "state", "model", "name"), rows)


@adapters.command(name="show")
def show_adapter(job: str) -> None:
    """Print an adapter's state, and what stands in the way of its release."""
    with open_service() as client:
        typer.echo(_describe_adapter(client.get(f"/adapters/{job}")))


@adapters.command(name="review")
def request_review(job: str) -> None:
    """Open a review of the safety findings that stand in the way, and print its id."""
    with open_service() as client:
        typer.echo(client.post(f"/adapters/{job}/review")["id"])


@adapters.command(name="approve")
def approve_adapter(job: str, by: By, reason: Reason) -> None:
    """Approve a candidate; refused while anything stands in the way."""
    _decide(f"/adapters/{job}/approve", by, reason)


@adapters.command(name="release")
def release_adapter(job: str, by: By, reason: Reason) -> None:
    """Release an approved adapter; refused while anything stands in the way."""
    _decide(f"/adapters/{job}/release", by, reason)


@adapters.command(name="reject")
def reject_adapter(job: str, by: By, reason: Reason) -> None:
    """Reject an adapter, or withdraw a released one."""
    _decide(f"/adapters/{job}/reject", by, reason)


def _decide(path: str, by: str, reason: str) -> None:
    with open_service() as client:
        answer = client.post(path, {"reviewer": by, "reason": reason})
    typer.echo(_describe_review(answer) if answer["object"] == "review" else _describe_adapter(answer))


def _describe_review(review: dict[str, Any]) -> str:
    state = review["state"].replace("_", " ")
    return f"{review['id']} {state}, {len(review['findings'])} findings, job {review['job']}"


def _describe_adapter(adapter: dict[str, Any]) -> str:
    lines = [f"{adapter['job']} {adapter['state']}"]
    lines += [f"  {blocker['message']}; {blocker['remedy']}" for blocker in adapter["blockers"] or []]
    return "\n".join(lines)
