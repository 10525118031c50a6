"""`train`: prepare the rows, then train in this process, or in one process for each rank.

Ranks meet on the loopback interface. The first that fails ends all of them, and its error is the run's.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from trainer_core.errors import TrainerError
from trainer_core.reporting import ErrorEvent, PhaseEvent, Reporter
from trainer_core.run_dir import RunDir, RunSpec

log = logging.getLogger(__name__)


def run_training(run_dir: RunDir, reporter: Reporter) -> None:
    """From a run folder with a spec to one with an adapter. Raises TrainerError."""
    # Heavy imports stay inside: a run announces itself at once, and libraries take seconds.
    from trainer_core.data.prepare import prepare

    prepare(run_dir, reporter)
    spec = run_dir.load_spec()
    reporter.report(PhaseEvent(phase="loading", message=f"loading {spec.model.id}"))
    uses_deepspeed = spec.training.deepspeed.stage in (2, 3)
    if uses_deepspeed:
        from trainer_core.deepspeed_config import build_operators

        reporter.report(PhaseEvent(phase="loading", message="building DeepSpeed's operators"))
        build_operators(spec)
    if uses_deepspeed or spec.num_processes > 1:
        _run_ranks(run_dir, spec)
    else:
        from trainer_core.train import train

        train(run_dir)


def _run_ranks(run_dir: RunDir, spec: RunSpec) -> None:
    error_file = get_rank_error_file(run_dir)
    error_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "trainer_core", "rank", str(run_dir.path)]
    if setpriv := shutil.which("setpriv"):  # The kernel ends the ranks when this process is killed without a chance.
        command = [setpriv, "--pdeathsig", "KILL", *command]
    shared = _build_rank_environment(spec)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` ends the ranks
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(spec.num_processes):
            ranks.append(subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
        for _ in ranks:
            _, status = os.wait()  # whichever ends first
            if status != 0:
                raise _describe_failed_rank(os.waitstatus_to_exitcode(status), error_file)
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.wait()  # only then are their GPUs free


def _build_rank_environment(spec: RunSpec) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // spec.num_processes)
    return {
        **os.environ,
        "WORLD_SIZE": str(spec.num_processes),
        "LOCAL_WORLD_SIZE": str(spec.num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def get_rank_error_file(run_dir: RunDir) -> Path:
    """Where the first rank that fails leaves its error, and the others find that they are late."""
    return run_dir.path / "rank_error.json"


def write_rank_error(run_dir: RunDir, error: ErrorEvent) -> None:
    """Keep the error, unless another rank was first: what follows the first error is its consequence."""
    try:
        with get_rank_error_file(run_dir).open("x", encoding="utf-8") as file:
            file.write(error.model_dump_json())
    except FileExistsError:
        log.warning("a consequence of another rank's error: %s", error.message)


def _describe_failed_rank(exit_code: int, error_file: Path) -> TrainerError:
    if exit_code == -signal.SIGKILL:
        return TrainerError(
            "out_of_memory",
            "A training process was killed from outside, which is what the system does when memory runs out.",
            remedy="Lower micro_batch_size or max_seq_len, quantise the base, or give the run more memory.",
        )
    if exit_code < 0 or not error_file.exists():
        return TrainerError("rank_died", f"A training process ended with exit code {exit_code} and no explanation.")
    event = ErrorEvent.model_validate_json(error_file.read_bytes())
    details: dict[str, Any] = event.details
    return TrainerError(event.code, event.message, remedy=event.remedy, **details)
