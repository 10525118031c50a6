"""The `medtune` command. Errors are one clear line on standard error."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console
from sqlalchemy.exc import OperationalError

from cli import keys, remote
from cli.demo import print_result, run_demo
from cli.processes import StartFailed, Stopped, Supervisor
from cli.serve import lock_home, start_service
from jobs.database import DatabaseNotConfigured, build_engine
from jobs.schema import migrate as migrate_schema
from jobs.settings import get_settings
from jobs.task_queue import Queue, RedisNotConfigured
from worker.reconciler import run_reconciler

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Fine-tune language models on your GPUs.")
app.add_typer(keys.app, name="keys")
remote.add_commands(app)

_stderr = Console(stderr=True)


@app.command()
def serve() -> None:
    """Run the whole service here, with its own Postgres and Redis unless others are configured."""
    settings = get_settings()
    with _clear_errors(), lock_home(settings.home), Supervisor(settings.home / "logs") as supervisor:
        service = start_service(supervisor, settings)
        typer.echo(f"medtune   {service.url}\ndashboard {service.url}/dashboard\nAPI key   {service.key}")
        typer.echo(f"data in   {settings.home}\nCtrl-C stops it.")
        supervisor.wait()


@app.command()
def demo() -> None:
    """Run a real job through every part, in a temporary home. The last line is one JSON object."""
    with _clear_errors():
        result = run_demo(_stderr)
        typer.echo(print_result(result))
        if result["status"] != "succeeded":
            raise typer.Exit(1)


@app.command()
def api() -> None:
    """Run the API."""
    settings = get_settings()
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        server_header=False,
        timeout_graceful_shutdown=5,
    )


@app.command()
def worker(
    queue: Annotated[Queue, typer.Option(help="train: runs jobs; check: checks datasets")] = Queue.TRAIN,
) -> None:
    """Run one Celery worker."""
    settings = get_settings()
    options = ["--concurrency=1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    celery = ["-m", "celery", "-A", "worker.app", "worker", "-Q", queue.value, "-n", f"{queue.value}-{os.getpid()}@%h"]
    level = f"--loglevel={settings.log_level}"
    os.execv(sys.executable, [sys.executable, *celery, level, *options])


@app.command()
def reconciler() -> None:
    """Ring for waiting work and take jobs from dead workers. Any number may run."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with _clear_errors():
        run_reconciler(get_settings(), stopping)


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    with _clear_errors():
        engine = build_engine(get_settings(), role=None)
        migrate_schema(engine)
        engine.dispose()
        typer.echo("the database has the newest schema")


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except Stopped:
        raise typer.Exit(130) from None
    except (StartFailed, DatabaseNotConfigured, RedisNotConfigured) as error:
        _fail(str(error))
    except OperationalError as error:
        _fail(f"the database does not answer: {error.orig}")


def _fail(message: str) -> None:
    typer.echo(f"medtune: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    try:
        app()
    except ValidationError as error:
        problems = "; ".join(f"MEDTUNE_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        sys.exit(f"medtune: {problems}")


if __name__ == "__main__":
    main()
