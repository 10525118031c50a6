"""`train`: prepare the rows, plan, then train in this process, or in one process for each rank by torchrun.

    run_training ── prepare ── plan ── train directly               one process
                                   └── torchrun ── rank 0..N        several, on one host or many

When memory runs out or the loss blows up, the plan is changed and training starts again from the last checkpoint.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer_core.data.packing import Arrangement
from trainer_core.errors import ConfigurationError, TrainerError, TrainingHeld, TrainingStopped, describe
from trainer_core.planning.hardware import read_hardware
from trainer_core.planning.model_facts import load_model_facts
from trainer_core.planning.plan import Plan, Workload, plan_training
from trainer_core.recovery import revise_plan
from trainer_core.reporting import ErrorEvent, NoticeEvent, PhaseEvent, Reporter
from trainer_core.run_dir import RunDir, RunSpec
from trainer_core.stopping import StopRequest

log = logging.getLogger(__name__)

_MEETING_SECONDS = 7200
"""How long a host waits for the first one, which prepares the rows."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Nodes:
    """The hosts of a run, which share its folder; this one is number `rank`."""

    count: int = 1
    rank: int = 0
    rendezvous: str = ""
    """HOST:PORT of the first, where the ranks meet."""


def run_training(run_dir: RunDir, reporter: Reporter, nodes: Nodes, stop: StopRequest) -> None:
    """From a run folder with a spec to one with an adapter. Raises TrainerError."""
    check_nodes(nodes, run_dir.load_spec().num_processes)
    with _locked(run_dir) if nodes.rank == 0 else contextlib.nullcontext():
        _run_until_done(run_dir, reporter, nodes, stop)


@contextlib.contextmanager
def _locked(run_dir: RunDir) -> Iterator[None]:
    """Two trainers would write the same files. The kernel lets go of the lock however this process ends."""
    with (run_dir.path / "train.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"Another process trains in {run_dir.path}."
            raise ConfigurationError("run_in_use", message, remedy="Wait for it, or use a folder of its own.") from None
        yield


def _run_until_done(run_dir: RunDir, reporter: Reporter, nodes: Nodes, stop: StopRequest) -> None:
    if nodes.rank == 0:
        prepare_and_plan(run_dir, reporter, num_hosts=nodes.count)
    while True:
        try:
            _train(run_dir, nodes, stop)
            return
        except Exception as error:  # memory runs out in errors of many types
            if not _revise(run_dir, reporter, nodes, describe(error)):
                raise
        if stop.is_wanted:
            raise TrainingStopped("stopped after an error that another plan may avoid")
        # A process that ran out of memory is not to be trusted with it: training begins again in a new one.
        if "trainer_core.train" in sys.modules:
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, "-m", "trainer_core", *sys.argv[1:]])


def check_nodes(nodes: Nodes, num_processes: int) -> None:
    """Raises ConfigurationError."""
    problem = None
    if nodes.count < 1:
        problem = f"{nodes.count} hosts cannot train."
    elif num_processes % nodes.count:
        problem = f"{num_processes} processes cannot be shared evenly by {nodes.count} hosts."
    elif not 0 <= nodes.rank < nodes.count:
        problem = f"There is no host {nodes.rank} among {nodes.count}, counted from 0."
    elif nodes.count > 1 and not nodes.rendezvous:
        problem = "Several hosts need a rendezvous, HOST:PORT of the first."
    if problem is not None:
        raise ConfigurationError("nodes_do_not_fit", problem, remedy="See `python -m trainer_core train --help`.")


def prepare_and_plan(run_dir: RunDir, reporter: Reporter, *, num_hosts: int = 1) -> None:
    """All that one process does for all ranks: rows, plan, and what DeepSpeed compiles."""
    # Heavy imports stay inside functions: a run announces itself at once, and libraries take seconds.
    from trainer_core.data.prepare import prepare

    prepare(run_dir, reporter)
    spec = run_dir.load_spec()
    plan = run_dir.find_plan()
    if plan is None or plan.made_from != spec.digest_plan():
        plan = _plan(run_dir, spec, num_hosts)
        run_dir.write_plan(plan)
    reporter.report(PhaseEvent(phase="loading", message=f"loading {spec.model.id}", details=plan.model_dump()))
    if plan.uses_deepspeed:
        from trainer_core.deepspeed_config import build_operators

        reporter.report(PhaseEvent(phase="loading", message="building DeepSpeed's operators"))
        build_operators(spec, plan)


def _plan(run_dir: RunDir, spec: RunSpec, num_hosts: int) -> Plan:
    arrangement = Arrangement.load(run_dir.prepared, "train")
    lengths = arrangement.sum_rows(np.diff(np.load(run_dir.prepared / "offsets.npy")))
    if spec.training.early_stopping is not None and len(Arrangement.load(run_dir.prepared, "validation")) == 0:
        raise ConfigurationError(
            "early_stopping_needs_validation",
            "Early stopping looks at the validation loss, and there are no validation rows.",
            remedy="Give validation a fraction or a file, or leave early_stopping out.",
            field="early_stopping",
        )
    folder = Path(spec.model.source)
    return plan_training(
        spec.training,
        num_processes=spec.num_processes,
        gpus=spec.gpus,
        longest_sequence=int(lengths.max()),
        facts=load_model_facts(folder) if folder.is_dir() else None,
        hardware=read_hardware(run_dir.path).model_copy(update={"num_hosts": num_hosts}),
        workload=Workload(len(lengths), int(lengths.sum())),
    ).model_copy(update={"made_from": spec.digest_plan()})


def _train(run_dir: RunDir, nodes: Nodes, stop: StopRequest) -> None:
    spec = run_dir.load_spec()
    if spec.num_processes > 1:
        _run_torchrun(run_dir, spec, nodes, stop)
        return
    if run_dir.load_plan().uses_deepspeed:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=find_port())
    from trainer_core.train import train

    train(run_dir, stop)


def _revise(run_dir: RunDir, reporter: Reporter, nodes: Nodes, error: TrainerError) -> bool:
    """Change the plan so that the run can go on after an error. False if it cannot.

    Raises TrainingStopped on one of several hosts: their launchers do not talk to each other, and whoever started them
    must start them again.
    """
    before = run_dir.find_plan()
    if before is None:  # the first host has not come that far
        return False
    plan = revise_plan(before, run_dir.load_spec().training, error.code)
    if plan is None:
        return False
    if nodes.rank == 0:
        change = plan.changes[-1].change
        log.warning("%s %s", error.message, change)
        message = f"{error.message} Training goes on from the last checkpoint: {change}."
        reporter.report(NoticeEvent(code=error.code, message=message, details=plan.changes[-1].model_dump()))
        run_dir.write_plan(plan)
    if nodes.count > 1:
        raise TrainingStopped(f"{error.message} The plan is changed; all hosts must start again.")
    return True


# --- Ranks ---


def _run_torchrun(run_dir: RunDir, spec: RunSpec, nodes: Nodes, stop: StopRequest) -> None:
    error_file = get_rank_error_file(run_dir)
    error_file.unlink(missing_ok=True)
    agent = subprocess.Popen(_build_command(run_dir, spec, nodes), env=_build_environment(spec, nodes))
    try:
        exit_code = _wait(agent, stop)
    finally:
        agent.kill()
        agent.wait()
    if error_file.exists():
        event = ErrorEvent.model_validate_json(error_file.read_bytes())
        if event.code == "stopped":
            raise TrainingStopped(event.message)
        if event.code == "safety_held":
            raise TrainingHeld(event.message, **event.details)
        raise TrainerError(event.code, event.message, remedy=event.remedy, **event.details)
    if exit_code != 0:
        raise TrainerError(
            "rank_died",
            "A training process ended without a word, which is what the system does to it when memory runs out.",
            remedy="Look at the host's kernel log; lower micro_batch_size or max_seq_len, or quantise the base.",
        )


def _build_command(run_dir: RunDir, spec: RunSpec, nodes: Nodes) -> list[str]:
    host, _, port = (nodes.rendezvous or f"127.0.0.1:{find_port()}").rpartition(":")
    command = [
        *[sys.executable, "-m", "torch.distributed.run"],
        *["--nnodes", str(nodes.count), "--node-rank", str(nodes.rank)],
        *["--nproc-per-node", str(spec.num_processes // nodes.count)],
        *["--master-addr", host, "--master-port", port],
        *["--rdzv-conf", f"timeout={_MEETING_SECONDS}"],
        # SIGTERM asks the ranks to save and stop, and is theirs alone: torchrun would soon end them by force.
        *["--signals-to-handle", "SIGINT"],
        "--no-python",
        *_die_with_parent(),
        *[sys.executable, "-m", "trainer_core", "rank", str(run_dir.path)],
    ]
    return ["env", "--ignore-signal=TERM", *_die_with_parent(), *command]


def _die_with_parent() -> list[str]:
    """What makes the kernel end a process when its parent is killed without a chance to end it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _build_environment(spec: RunSpec, nodes: Nodes) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) * nodes.count // spec.num_processes)
    own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    if nodes.count == 1:
        own["GLOO_SOCKET_IFNAME"] = "lo"
    return {**os.environ, **own}


def _wait(agent: subprocess.Popen[bytes], stop: StopRequest) -> int:
    """Until torchrun ends; a wish to stop is told to the ranks, its children, again and again: they may just begin."""
    stop.leave_to_ranks()
    while True:
        try:
            return agent.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if not stop.is_wanted:
                continue
        for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGTERM)


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


def find_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
