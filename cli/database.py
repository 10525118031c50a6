"""`medtune migrate`: work on the database, where its URL is."""

import typer

from cli.errors import clear_errors
from cli.operator import get_operator_settings
from jobs.database import build_engine
from jobs.schema import migrate as migrate_schema


def add_commands(app: typer.Typer) -> None:
    app.command()(migrate)


def migrate() -> None:
    """Bring the database to the newest schema."""
    with clear_errors():
        engine = build_engine(get_operator_settings(), role=None)
        migrate_schema(engine)
        engine.dispose()
        typer.echo("the database has the newest schema")
