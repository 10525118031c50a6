"""Errors of a command: one clear line on standard error, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from sqlalchemy.exc import OperationalError

from jobs.database import DatabaseNotConfigured, get_database_url
from jobs.settings import Settings, get_settings
from jobs.task_queue import RedisNotConfigured, get_redis_url


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Say it and exit."""
    typer.echo(f"medtune: {message}", err=True)
    raise typer.Exit(exit_code)


@contextmanager
def clear_errors(*expected: type[Exception]) -> Iterator[None]:
    """Errors of the configuration, of the database, and the expected ones, as one line."""
    clear: tuple[type[Exception], ...] = (DatabaseNotConfigured, RedisNotConfigured, *expected)
    try:
        yield
    except BrokenPipeError:  # Whoever reads has seen enough: click ends quietly.
        raise
    except clear as error:
        fail(str(error))
    except OperationalError as error:
        fail(f"the database does not answer: {error.orig}")


def load_server_settings() -> Settings:
    """With both servers configured: what is missing is told before other programs fail over it."""
    settings = get_settings()
    with clear_errors():
        get_database_url(settings)
        get_redis_url(settings)
    return settings
