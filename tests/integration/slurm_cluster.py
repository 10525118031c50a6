"""A real Slurm cluster on this machine: munged, slurmctld, and a slurmd for each of its nodes, all on loopback."""

import getpass
import os
import secrets
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cli.processes import Supervisor
from cli.serve import find_free_port

_HOST = socket.gethostname().partition(".")[0]
_START_SECONDS = 30
_POLL_SECONDS = 0.1
_IS_IN_QUEUE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# A job that is put back into the queue starts again once its credential has expired.
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=5
ReturnToService=2
MpiDefault=none
GresTypes=gpu
MailProg=/bin/true
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 Gres=gpu:2\n"


@dataclass(frozen=True)
class SlurmCluster:
    """Client commands against the cluster in a folder."""

    home: Path

    def submit(self, script: Path, *options: str, cwd: Path, environment: dict[str, str]) -> str:
        """The job's id. `environment` comes on top of this process's own."""
        command = ["sbatch", "--parsable", *options, str(script)]
        return self._run(command, cwd=cwd, environment=environment).strip()

    def signal(self, job: str, name: str) -> None:
        """To the job's script, as Slurm does before the time limit."""
        self._run(["scancel", "--batch", f"--signal={name}", job])

    def cancel(self, job: str) -> None:
        self._run(["scancel", job])

    def get_job(self, job: str) -> dict[str, str]:
        """JobState, Restarts, ExitCode and what else `scontrol show job` tells."""
        words = self._run(["scontrol", "--oneliner", "show", "job", job]).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, job: str, seconds: float) -> dict[str, str]:
        """The job once it has left the queue."""
        deadline = time.monotonic() + seconds
        while (found := self.get_job(job))["JobState"] in _IS_IN_QUEUE or job in self._list_queue():
            assert time.monotonic() < deadline, found
            time.sleep(_POLL_SECONDS)
        return found

    def empty(self) -> None:
        """Cancel every job, and wait until no process of theirs is left."""
        for job in self._list_queue():
            self._run(["scontrol", "update", f"JobId={job}", "Requeue=0"])  # so that no script puts its job back
            self.cancel(job)
            self.wait_for_end(job, seconds=30)

    def is_ready(self, num_nodes: int) -> bool:
        command = ["sinfo", "--noheader", "--format=%T %D"]
        found = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        return found.stdout.strip() == f"idle {num_nodes}"

    def _list_queue(self) -> list[str]:
        return self._run(["squeue", "--noheader", "--format=%A"]).split()

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.home / "slurm.conf")}

    def _run(self, command: list[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
        env = self._environment | (environment or {})
        return subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def start_cluster(supervisor: Supervisor, home: Path, *, num_nodes: int) -> SlurmCluster:
    """Nodes of two CPUs each, and two GPUs that are none. The supervisor stops its daemons; `empty` it before."""
    # The first is named as this machine, so that its name resolves; the others are never looked up.
    nodes = [_HOST, *(f"{_HOST}-{number}" for number in range(1, num_nodes))]
    _write_files(home, nodes)
    configuration = {"SLURM_CONF": str(home / "slurm.conf")}
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    options = [f"--{option}={home / name}" for option, name in {**files, "seed-file": "munge.seed"}.items()]
    # `--force`: the folder is private, which munged takes for a mistake.
    supervisor.start("munged", ["munged", "--foreground", "--force", *options], is_server=True)
    supervisor.wait_until((home / "munge.socket").exists, "munged", _START_SECONDS)
    supervisor.start("slurmctld", ["slurmctld", "-D"], environment=configuration)
    for node in nodes:
        supervisor.start(f"slurmd-{node}", ["slurmd", "-D", "-N", node], environment=configuration)
    cluster = SlurmCluster(home)
    supervisor.wait_until(lambda: cluster.is_ready(num_nodes), "the Slurm cluster", _START_SECONDS)
    return cluster


def _write_files(home: Path, nodes: list[str]) -> None:
    (home / "munge.key").touch(mode=0o600)
    (home / "munge.key").write_bytes(secrets.token_bytes(128))
    (home / "state").mkdir()
    for gpu in ("gpu0", "gpu1"):
        (home / gpu).touch()
    (home / "gres.conf").write_text(f"Name=gpu File={home}/gpu[0-1]\n", encoding="utf-8")
    port = find_free_port("127.0.0.1")
    text = _CONFIGURATION.format(home=home, host=_HOST, user=getpass.getuser(), port=port)
    for node in nodes:
        (home / f"spool-{node}").mkdir()
        text += _NODE.format(name=node, host=_HOST, port=find_free_port("127.0.0.1"))
    (home / "slurm.conf").write_text(text + "PartitionName=test Nodes=ALL Default=YES State=UP\n", encoding="utf-8")
