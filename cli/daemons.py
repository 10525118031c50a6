"""`medtune worker` and `medtune reconciler`: one process each, for a process manager to run."""

import os
import signal
import sys
import threading
from typing import Annotated

import typer

from cli.errors import clear_errors, fail, load_server_settings
from jobs.signing_key import ensure_signing_key
from jobs.task_queue import Queue
from jobs.vault_key import find_vault_keyring
from trainer_core.data.overlap.benchmark_files import list_benchmark_files
from trainer_core.data.phi.ner import NerModel
from trainer_core.data.phi.site_patterns import load_site_patterns
from trainer_core.errors import ConfigurationError
from trainer_core.safety.probes import load_all_probes
from trainer_core.safety.rules import RuleSet
from worker.attempt import find_guard
from worker.gpus import count_gpus
from worker.reconciler import run_reconciler
from worker.webhooks import run_sender


def add_commands(app: typer.Typer) -> None:
    for command in (worker, reconciler):
        app.command()(command)


def worker(
    queue: Annotated[Queue, typer.Option(help="train: runs jobs; check: checks datasets")] = Queue.TRAIN,
) -> None:
    """Run one Celery worker: as many jobs at once as the machine has GPUs for, or one check at a time."""
    settings = load_server_settings()
    try:  # Now, and not when a dataset waits or a run has ended.
        if settings.phi_patterns_file:
            load_site_patterns(settings.phi_patterns_file)
        load_all_probes(settings.safety_probes_file)
        RuleSet.load(settings.safety_rules_file)
        if guard := find_guard(settings):
            guard.load_key()
        if queue == Queue.TRAIN:
            ensure_signing_key(settings)
        else:  # A missing one is made when it is needed: whether there was one, the database knows.
            find_vault_keyring(settings)
        if settings.benchmarks_dir:
            list_benchmark_files(settings.benchmarks_dir)
        if settings.phi_ner_model and queue == Queue.CHECK:
            with NerModel(settings.phi_ner_model):
                pass
    except ConfigurationError as error:
        fail(f"{error.message}. {error.remedy}".replace("..", "."))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    name = f"{queue}-{os.getpid()}@%h"
    celery = ["-m", "celery", "-A", "worker.app", "worker", "-Q", queue.value, "-n", name]
    concurrency = max(1, count_gpus(settings)) if queue == Queue.TRAIN else 1
    options = [f"--concurrency={concurrency}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    os.execv(sys.executable, [sys.executable, *celery, *options, f"--loglevel={settings.log_level}"])


def reconciler() -> None:
    """Ring for waiting work, take jobs from dead workers, and send webhooks. Any number may run."""
    settings = load_server_settings()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    sender = threading.Thread(target=run_sender, args=(settings, stopping), name="webhooks")
    with clear_errors():
        sender.start()
        try:
            run_reconciler(settings, stopping)
        finally:
            stopping.set()
            sender.join()
