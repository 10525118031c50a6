"""`medtune serve` and `medtune demo`: everything, here, by one command."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from cli.demo import run_demo
from cli.errors import clear_errors
from cli.processes import StartFailed, Stopped, Supervisor
from cli.serve import lock_home, start_service
from jobs.settings import get_settings


def add_commands(app: typer.Typer) -> None:
    for command in (serve, demo):
        app.command()(command)


def serve() -> None:
    """Run the whole service here, with its own Postgres and Redis unless others are configured."""
    settings = get_settings()
    with _exits(), lock_home(settings.home), Supervisor(settings.home / "logs") as supervisor:
        service = start_service(supervisor, settings)
        typer.echo(f"medtune   {service.url}\ndashboard {service.url}/dashboard\nAPI key   {service.key}")
        typer.echo(f"data in   {settings.home}\nCtrl-C stops it.")
        supervisor.wait()


def demo() -> None:
    """Run a real job through every part, in a temporary home. The last line is one JSON object."""
    with _exits():
        result = run_demo(Console(stderr=True, soft_wrap=True))
        typer.echo(json.dumps(result))
        if result["status"] != "succeeded":
            raise typer.Exit(1)


@contextmanager
def _exits() -> Iterator[None]:
    try:
        with clear_errors(StartFailed):
            yield
    except Stopped:
        raise typer.Exit(130) from None
