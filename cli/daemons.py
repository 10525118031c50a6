"""`medtune worker` and `medtune reconciler`: one process each, for a process manager to run."""

import os
import signal
import sys
import threading
from typing import Annotated

import typer

from cli.errors import clear_errors, load_server_settings
from jobs.task_queue import Queue
from worker.gpus import count_gpus
from worker.reconciler import run_reconciler


def add_commands(app: typer.Typer) -> None:
    for command in (worker, reconciler):
        app.command()(command)


def worker(
    queue: Annotated[Queue, typer.Option(help="train: runs jobs; check: checks datasets")] = Queue.TRAIN,
) -> None:
    """Run one Celery worker: as many jobs at once as the machine has GPUs for, or one check at a time."""
    settings = load_server_settings()
    name = f"{queue}-{os.getpid()}@%h"
    celery = ["-m", "celery", "-A", "worker.app", "worker", "-Q", queue.value, "-n", name]
    concurrency = max(1, count_gpus(settings)) if queue == Queue.TRAIN else 1
    options = [f"--concurrency={concurrency}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    os.execv(sys.executable, [sys.executable, *celery, *options, f"--loglevel={settings.log_level}"])


def reconciler() -> None:
    """Ring for waiting work and take jobs from dead workers. Any number may run."""
    settings = load_server_settings()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with clear_errors():
        run_reconciler(settings, stopping)
