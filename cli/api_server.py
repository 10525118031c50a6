"""`medtune api`: the API and the dashboard in one process."""

from contextlib import suppress

import typer
import uvicorn

from api.app import create_app
from cli.errors import load_server_settings


def add_commands(app: typer.Typer) -> None:
    app.command()(api)


def api() -> None:
    """Run the API and the dashboard."""
    settings = load_server_settings()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    app.state.is_stopping = lambda: server.should_exit
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise typer.Exit(3)  # As uvicorn's own command.
