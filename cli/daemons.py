"""`medtune api`, `worker` and `reconciler`: the service's processes, one each, for a process manager to run."""

import os
import signal
import sys
import threading
from typing import Annotated

import typer
import uvicorn

from cli.errors import clear_errors
from jobs.database import build_engine
from jobs.settings import Settings, get_settings
from jobs.task_queue import Queue, build_celery
from worker.reconciler import run_reconciler


def add_commands(app: typer.Typer) -> None:
    for command in (api, worker, reconciler):
        app.command()(command)


def api() -> None:
    """Run the API and the dashboard."""
    settings = _get_settings()
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def worker(
    queue: Annotated[Queue, typer.Option(help="train: runs jobs; check: checks datasets")] = Queue.TRAIN,
) -> None:
    """Run one Celery worker, which does one thing at a time."""
    settings = _get_settings()
    name = f"{queue}-{os.getpid()}@%h"
    celery = ["-m", "celery", "-A", "worker.app", "worker", "-Q", queue.value, "-n", name]
    options = ["--concurrency=1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    os.execv(sys.executable, [sys.executable, *celery, *options, f"--loglevel={settings.log_level}"])


def reconciler() -> None:
    """Ring for waiting work and take jobs from dead workers. Any number may run."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with clear_errors():
        run_reconciler(get_settings(), stopping)


def _get_settings() -> Settings:
    """With both servers configured: what is missing is told before other programs fail over it."""
    settings = get_settings()
    with clear_errors():
        build_engine(settings, role=None).dispose()
        build_celery(settings).close()
    return settings
