"""`medtune api`: the API and the dashboard in one process."""

import typer
import uvicorn

from api.app import create_app
from cli.errors import load_server_settings


def add_commands(app: typer.Typer) -> None:
    app.command()(api)


def api() -> None:
    """Run the API and the dashboard."""
    settings = load_server_settings()
    uvicorn.run(
        lambda: create_app(settings),
        factory=True,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        server_header=False,
        timeout_graceful_shutdown=5,
    )
