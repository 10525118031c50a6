"""`medtune usage`: GPU hours of the tenant's jobs, from a running service."""

import datetime
from typing import Annotated, Any

import typer

from cli.remote import AsJson, open_service, print_json, print_table

_Time = Annotated[
    datetime.datetime | None,
    typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="In this machine's time zone."),
]


def add_commands(app: typer.Typer) -> None:
    app.command()(usage)


def usage(
    group_by: Annotated[str, typer.Option(help="key, model, status, or tag:NAME of the jobs' metadata.")] = "key",
    since: _Time = None,
    until: _Time = None,
    as_json: AsJson = False,
) -> None:
    """Show GPU hours per key, tag, model or status; without times, of the last 30 days."""
    times = {"since": since, "until": until}
    asked = {name: time.astimezone().isoformat() for name, time in times.items() if time is not None}
    with open_service() as client:
        answer = client.get("/usage", group_by=group_by, **asked)
    if as_json:
        print_json(answer)
        return
    rows = [(_name(group), *_describe(group)) for group in answer["data"]]
    print_table(
        (group_by, "jobs", "attempts", "GPU hours", "CPU hours", "tokens"),
        [*rows, ("total", *_describe(answer["total"]))],
    )


def _name(group: dict[str, Any]) -> str:
    value = "–" if group["value"] is None else group["value"]
    return f"{value} {group['name']}" if group["name"] else value


def _describe(totals: dict[str, Any]) -> tuple[str, ...]:
    hours = (f"{totals[name]:,.2f}" for name in ("gpu_hours", "cpu_hours"))
    return (f"{totals['jobs']:,}", f"{totals['attempts']:,}", *hours, f"{totals['tokens']:,}")
