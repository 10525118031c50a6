"""`medtune doctor`: looks at everything that the service needs on this machine, and says how to mend what is wrong.

One line for each thing. It changes nothing but a probe object in the store, unless `--fix` tells it to clean up. No
secret gets into what it prints.
"""

import dataclasses
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import psutil
import redis
import typer
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr, ValidationError
from sqlalchemy import func, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from cli.embedded import _DATABASE_USER
from jobs import audit, repository
from jobs.database import Role, build_engine, build_sessions
from jobs.models import Attempt, Job, Worker
from jobs.schema import build_alembic_config
from jobs.settings import Settings, get_settings
from jobs.store import Store
from jobs.task_queue import BROKER_ERRORS, Queue, build_celery, count_waiting_rings
from trainer_core.planning.hardware import read_gpus
from trainer_core.run_dir import RunDir
from worker.attempt import OWNER_FILE
from worker.gpus import count_gpus
from worker.host import close_run_dir, list_run_dirs, recover_host
from worker.launcher import MARKER, build_isolation, end_strays
from worker.machine import get_owners_dir, try_to_lock

OK, WARNING, ERROR = "ok", "warning", "error"
STATEMENT_SECONDS = 30.0
LIBRARIES_SECONDS = 180
IDLE_SECONDS = 60
"""An idle worker takes a job that fits within less."""
MANY = 5
"""As many ids are named in one line."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    level: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Leftovers:
    """What dead processes of this machine left behind."""

    orphans: dict[Path, list[int]]
    """Process ids by run folder."""
    dead_owners: dict[Path, str]
    """Owner by run folder."""
    private: list[RunDir]
    """With copies of rows, and nobody works there."""


def add_commands(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="End orphaned processes of this machine and clean up after them.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Do not load torch, bitsandbytes and DeepSpeed.")] = False,
) -> None:
    """Check this machine, its servers and the jobs' rows, and say what to do. Exits with 1 when something is broken."""
    logging.disable(logging.WARNING)  # What they would say is in the findings.
    findings = []
    for finding in examine(fix=fix, quick=quick):
        findings.append(finding)
        if not as_json:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{finding.level:8} {finding.check}: {finding.message}{remedy}")
    is_ok = all(finding.level != ERROR for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": is_ok, "checks": [dataclasses.asdict(finding) for finding in findings]}))
    raise typer.Exit(0 if is_ok else 1)


def examine(*, fix: bool, quick: bool) -> Iterator[Finding]:
    try:
        settings = get_settings()
    except ValidationError as error:
        fields = "; ".join(f"MEDTUNE_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        yield Finding("settings", ERROR, fields, "correct the variable; docs/configuration.md has an example of each")
        return
    yield Finding("settings", OK, f"home {settings.home}")
    settings = find_embedded_servers(settings)
    checks = [check_database, check_redis, check_store, check_models, check_gpus, check_libraries]
    checks += [check_namespaces, check_disk, check_workers, check_rows]
    for check in checks:
        if not (quick and check is check_libraries):
            yield from check(settings)
    yield from check_leftovers(settings, fix=fix)


# --- Servers ----------------------------------------------------------------------------------------------------


def find_embedded_servers(settings: Settings) -> Settings:
    """With the URLs of the servers that `medtune serve` runs in this home now, where none are configured."""
    found = {}
    if settings.database_url is None and (url := _find_embedded_postgres(settings.home / "postgres")):
        found["database_url"] = SecretStr(url)
    if settings.redis_url is None and (url := _find_embedded_redis(settings.home / "redis")):
        found["redis_url"] = SecretStr(url)
    return settings.model_copy(update=found)


def check_database(settings: Settings) -> Iterator[Finding]:
    if settings.database_url is None:
        yield Finding("database", OK, "embedded, and not running now", "`medtune serve` starts it")
        return
    try:
        with _connected(settings, None) as session:
            version = session.scalar(select(func.current_setting("server_version")))
            revision = MigrationContext.configure(session.connection()).get_current_revision()
            head = ScriptDirectory.from_config(build_alembic_config(session.get_bind())).get_current_head()  # type: ignore[arg-type]
    except SQLAlchemyError as error:
        remedy = "start PostgreSQL, or correct MEDTUNE_DATABASE_URL"
        yield Finding("database", ERROR, f"does not answer: {_describe(error)}", remedy)
        return
    yield Finding("database", OK, f"PostgreSQL {version}")
    if revision != head:
        yield Finding("migrations", ERROR, f"the schema is {revision or 'empty'}, not {head}", "run `medtune migrate`")
        return
    yield Finding("migrations", OK, f"at the newest, {head}")
    yield from _check_roles(settings)


def check_redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        yield Finding("redis", OK, "embedded, and not running now", "`medtune serve` starts it")
        return
    try:
        with redis.Redis.from_url(
            settings.redis_url.get_secret_value(), socket_connect_timeout=3, socket_timeout=3
        ) as client:
            client.ping()
            policy = _read_policy(client)
            celery = build_celery(settings)
            lengths = ", ".join(f"{queue} {count_waiting_rings(celery, queue)}" for queue in Queue)
            celery.close()
    except (*BROKER_ERRORS, OSError, ValueError) as error:
        message = f"does not answer: {_hide_url(str(error), settings)}"
        yield Finding("redis", ERROR, message, "start Redis, or correct MEDTUNE_REDIS_URL; jobs wait until then")
        return
    if policy == "noeviction":
        yield Finding("redis", OK, f"messages that wait: {lengths}")
    else:
        yield Finding("redis", WARNING, f"maxmemory-policy is {policy}", "set maxmemory-policy to noeviction")


def _check_roles(settings: Settings) -> Iterator[Finding]:
    for role in Role:
        try:
            with _connected(settings, role) as session:
                repository.check_reachable(session)
        except SQLAlchemyError as error:
            remedy = f"as an administrator: GRANT {role} TO the login of MEDTUNE_DATABASE_URL WITH ADMIN OPTION"
            yield Finding("roles", ERROR, f"{role} cannot be used: {_describe(error)}", f"{remedy}, then migrate")
            return
    yield Finding("roles", OK, ", ".join(Role))


def _read_policy(client: Any) -> str:
    try:
        return str(client.config_get("maxmemory-policy").get("maxmemory-policy", "unknown"))
    except redis.ResponseError:
        return "unknown, because CONFIG is not allowed"


def _find_embedded_postgres(folder: Path) -> str | None:
    try:
        pid, _, _, port, *_ = (folder / "data" / "postmaster.pid").read_text(encoding="ascii").splitlines()
        password = (folder / "password").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if not psutil.pid_exists(int(pid)):
        return None
    url = URL.create("postgresql", _DATABASE_USER, password, "127.0.0.1", int(port), "postgres")
    return url.render_as_string(hide_password=False)


def _find_embedded_redis(folder: Path) -> str | None:
    """Its folder is its working directory; its port is nowhere else than in itself."""
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] != "redis-server" or Path(process.cwd()) != folder.resolve():
                continue
            ports = [c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            password = (folder / "password").read_text(encoding="ascii")
        except (psutil.Error, OSError):
            continue
        return f"redis://:{password}@127.0.0.1:{ports[0]}/0" if ports else None
    return None


# --- This machine -----------------------------------------------------------------------------------------------


def check_store(settings: Settings) -> Iterator[Finding]:
    key, data = f"doctor-{secrets.token_hex(8)}", b"medtune"
    try:
        store = Store(settings.store_location)
        with store.writing(key) as writer:
            writer.write(data)
        with store.open(key) as file:
            is_same = file.read() == data
        store.delete(key)
    except Exception as error:  # Each kind of store has errors of its own.
        message = f"cannot be written: {_hide_url(f'{type(error).__name__}: {error}', settings)}"
        yield Finding("store", ERROR, message, "correct MEDTUNE_STORE_URL, its credentials or the folder's owner")
        return
    if is_same:
        yield Finding("store", OK, "an object was written, read and deleted")
    else:
        yield Finding("store", ERROR, "an object came back changed", "look after the disk or the object store")


def check_models(settings: Settings) -> Iterator[Finding]:
    assert settings.models_dir is not None
    if settings.models_file is not None and not settings.models_file.is_file():
        message = f"there is no file {settings.models_file}"
        yield Finding("models", ERROR, message, "correct MEDTUNE_MODELS_FILE")
    names = sorted(path.parent.name for path in settings.models_dir.glob("*/config.json"))
    if names:
        yield Finding("models", OK, f"{len(names)} in {settings.models_dir}: {', '.join(names[:MANY])}")
    else:
        remedy = "put base models there, one folder each; `medtune serve` builds a small one on an empty folder"
        yield Finding("models", WARNING, f"none in {settings.models_dir}", remedy)


def check_gpus(settings: Settings) -> Iterator[Finding]:
    num_shown = _count_shown_gpus(settings)
    gpus = read_gpus()
    if not num_shown and not gpus:
        yield Finding("gpus", OK, "none: jobs train on the CPU")
        return
    names = "; ".join(f"{name}, {(memory or 0) / 2**30:.0f} GiB" for name, memory in gpus)
    driver, cuda = read_driver()
    if len(gpus) != num_shown:
        message = f"the driver shows {num_shown} under /proc and nvidia-smi {len(gpus)} ({names})"
        remedy = "run nvidia-smi and see what it says; in a container, let the NVIDIA toolkit mount the driver's tools"
        yield Finding("gpus", WARNING, message, remedy)
    else:
        yield Finding("gpus", OK, f"{names}; driver {driver}, for CUDA up to {cuda}")


def read_driver() -> tuple[str, str]:
    """The NVIDIA driver's version and the newest CUDA that it can serve, or "unknown"."""
    try:
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    found = [re.search(rf"{words}:\s*([\d.]+)", text) for words in ("Driver Version", r"CUDA (?:UMD )?Version")]
    return tuple(match[1] if match else "unknown" for match in found)  # type: ignore[return-value]


def check_namespaces(settings: Settings) -> Iterator[Finding]:
    del settings
    if build_isolation():
        yield Finding("namespaces", OK, "trainers get a PID namespace of their own")
        return
    message = "not allowed here: what a trainer leaves behind is found by its marker and ended instead"
    remedy = "allow user namespaces (kernel.unprivileged_userns_clone=1, or a container with CAP_SYS_ADMIN)"
    yield Finding("namespaces", WARNING, message, remedy)


def check_disk(settings: Settings) -> Iterator[Finding]:
    folder = next(path for path in (settings.home, *settings.home.parents) if path.is_dir())
    free, reserve = shutil.disk_usage(folder).free, settings.disk_reserve_bytes
    message = f"{free / 2**30:.1f} GiB are free in {folder}, {reserve / 2**30:.1f} GiB are the reserve"
    if free < reserve:
        remedy = "make room, or lower MEDTUNE_DISK_RESERVE_BYTES: workers take no job until then"
        yield Finding("disk", ERROR, message, remedy)
    else:
        yield Finding("disk", OK, message)


# --- Libraries --------------------------------------------------------------------------------------------------

# In a process of its own: a library that crashes takes only that along, and this package imports none of them.
_PROBE = """
import json
found = {}
def probe(name, look):
    try:
        found[name] = look()
    except BaseException as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == name
        found[name] = {"missing": True} if is_missing else {"error": f"{type(error).__name__}: {error}"[:500]}
def torch():
    import torch
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
def bitsandbytes():
    import bitsandbytes
    from bitsandbytes.cextension import lib
    loaded = getattr(getattr(lib, "_lib", None), "_name", None)
    return {"version": bitsandbytes.__version__, "library": loaded and loaded.rpartition("/")[2]}
def deepspeed():
    import deepspeed
    from deepspeed.ops import op_builder
    names = ("CPUAdamBuilder", "FusedAdamBuilder")
    builders = [getattr(op_builder, name)() for name in names]
    return {"version": deepspeed.__version__, "ops": {b.NAME: bool(b.is_compatible(verbose=False)) for b in builders}}
for look in (torch, bitsandbytes, deepspeed):
    probe(look.__name__, look)
print("\\nFOUND " + json.dumps(found))
"""
_TRAIN_EXTRA = "pip install -c constraints.txt 'medtune[train]'"


def check_libraries(settings: Settings) -> Iterator[Finding]:
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIBRARIES_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"loading torch, bitsandbytes and deepspeed took more than {LIBRARIES_SECONDS} s"
        yield Finding("libraries", ERROR, message, "look at the disk and at nvidia-smi: one of the two hangs")
        return
    found = re.search(r"^FOUND (.*)$", result.stdout, re.MULTILINE)
    if found is None:
        message = f"the process that loads them ended with {result.returncode}: {result.stderr.strip()[-300:]}"
        yield Finding("libraries", ERROR, message, f"install them anew: {_TRAIN_EXTRA}")
        return
    libraries = json.loads(found[1])
    has_gpus = _count_shown_gpus(settings) > 0
    yield _judge_torch(libraries["torch"], has_gpus)
    for name in ("bitsandbytes", "deepspeed"):
        yield _judge_library(name, libraries[name], libraries["torch"], has_gpus)


def _judge_torch(torch: dict[str, Any], has_gpus: bool) -> Finding:
    if "version" not in torch:
        return _judge_broken("torch", torch, has_gpus)
    message = f"{torch['version']}, built for CUDA {torch['cuda'] or '(none)'}, sees {torch['gpus']} GPUs"
    if not has_gpus or torch["gpus"]:
        return Finding("torch", OK, message)
    if torch["cuda"] is None:
        return Finding("torch", ERROR, message, "install a build of torch for CUDA: this machine has GPUs")
    _, newest = read_driver()
    remedy = f"the driver serves CUDA up to {newest}: update it, install a torch for that CUDA, or see nvidia-smi"
    return Finding("torch", ERROR, message, remedy)


def _judge_library(name: str, library: dict[str, Any], torch: dict[str, Any], has_gpus: bool) -> Finding:
    if "version" not in library:
        return _judge_broken(name, library, has_gpus)
    if name == "bitsandbytes":
        loaded = library["library"] or "none"
        message = f"{library['version']}, library {loaded}"
        wanted = str(torch.get("cuda") or "").replace(".", "")
        if has_gpus and f"cuda{wanted}" not in loaded:
            remedy = f"it has none for torch's CUDA {torch.get('cuda')}: install a newer bitsandbytes, or another torch"
            return Finding(name, ERROR, message, remedy)
        return Finding(name, OK, message)
    unfit = [op for op, is_compatible in library["ops"].items() if not is_compatible]
    message = f"{library['version']}, operators: {', '.join(library['ops'])}"
    if unfit:
        remedy = "for offload install a C++ compiler, Python's headers and, for GPUs, CUDA's nvcc of torch's version"
        return Finding(name, WARNING, f"{message}; cannot be built here: {', '.join(unfit)}", remedy)
    return Finding(name, OK, message)


def _judge_broken(name: str, library: dict[str, Any], has_gpus: bool) -> Finding:
    if library.get("missing"):
        return Finding(name, ERROR if has_gpus else WARNING, "not installed: nothing trains here", _TRAIN_EXTRA)
    return Finding(name, ERROR, f"cannot be loaded: {library['error']}", f"install it anew: {_TRAIN_EXTRA}")


# --- Rows -------------------------------------------------------------------------------------------------------


def check_workers(settings: Settings) -> Iterator[Finding]:
    with _reading(settings) as session:
        if session is None:
            return
        workers = repository.list_workers(session)
    for queue in Queue:
        living = [worker for worker in workers if worker.queue == queue]
        if not living:
            remedy = f"start `medtune worker --queue {queue}`, or see why it ended in its log"
            yield Finding("workers", WARNING, f"none lives for the queue {queue}", remedy)
        for worker in living:
            name = f"{queue} on {worker.hostname} (pid {worker.pid}, {worker.num_gpus} GPUs)"
            if worker.problem:
                yield Finding("workers", WARNING, f"{name} takes no job: {worker.problem}", "see to that")
            else:
                yield Finding("workers", OK, f"{name}, seen {worker.last_seen_at:%H:%M:%S} UTC")


def check_rows(settings: Settings) -> Iterator[Finding]:
    with _reading(settings) as session:
        if session is None:
            return
        findings = [
            Finding("rows", ERROR, f"not true: {violation.rule}: {_name(violation.rows)}", "report it as a bug")
            for violation in audit.find_violations(session)
        ]
        over = select(Job.id).where(Job.lease_expires_at < func.now() - 2 * timedelta(seconds=settings.lease_seconds))
        lost = session.scalars(over.order_by(Job.id).limit(MANY + 1)).all()
        idle = _find_idle_worker(session)
    if lost:
        message = f"nobody took these from their lost workers: {_name(lost)}"
        findings.append(Finding("rows", ERROR, message, "start `medtune reconciler`, or see its log"))
    if idle:
        remedy = "see that Redis and `medtune reconciler` run; else start the worker again"
        findings.append(Finding("rows", ERROR, idle, remedy))
    yield from findings or [Finding("rows", OK, f"{len(audit.RULES)} rules hold, and no job is stuck")]


def _find_idle_worker(session: Session) -> str | None:
    """A job that waits though a worker that could take it has nothing to do."""
    for worker in repository.list_workers(session):
        if worker.queue != Queue.TRAIN or worker.problem is not None:
            continue
        num_used, num_running = _count_used(session, worker)
        if worker.num_gpus == 0 and num_running:
            continue
        free = worker.num_gpus - num_used
        found = repository.find_next_job(session, host_gpus=worker.num_gpus, free_gpus=free, patience_seconds=86400)
        if found is None or not found.fits:
            continue
        job = repository.get_job(session, found.id)
        since = max(job.queued_at, job.not_before, worker.started_at)
        if worker.last_seen_at - since > timedelta(seconds=IDLE_SECONDS):
            return f"{job.id} waits since {since:%H:%M:%S} UTC though the worker on {worker.hostname} could take it"
    return None


def _count_used(session: Session, worker: Worker) -> tuple[int, int]:
    """GPUs of the worker's machine that jobs use, and how many jobs run there."""
    running = select(func.coalesce(func.sum(Job.num_gpus), 0), func.count()).join_from(
        Attempt, Job, Attempt.job_id == Job.id
    )
    used, count = session.execute(running.where(Attempt.ended_at.is_(None), Attempt.hostname == worker.hostname)).one()
    return int(used), int(count)


# --- What the dead left behind ----------------------------------------------------------------------------------


def check_leftovers(settings: Settings, *, fix: bool) -> Iterator[Finding]:
    left = find_leftovers(settings)
    if fix and (left.orphans or left.dead_owners or left.private):
        yield from _clean_up(settings, left)
        left = find_leftovers(settings)
    remedy = (
        "`medtune doctor --fix` ends them" if not fix else "they survive SIGKILL: only a restart of the machine helps"
    )
    for folder, pids in left.orphans.items():
        message = f"{', '.join(map(str, pids))} of {folder}, whose worker is dead"
        yield Finding("processes", ERROR, message, remedy)
    if not left.orphans:
        yield Finding("processes", OK, "no trainer without its worker")
    remedy = "a worker of this machine cleans up within a heartbeat, or `medtune doctor --fix`"
    for folder, owner in left.dead_owners.items():
        yield Finding("run folders", WARNING, f"{folder} is of {owner}, which is dead", remedy)
    for run_dir in left.private:
        yield Finding("run folders", WARNING, f"{run_dir.path} has copies of rows that nobody uses", remedy)
    yield from _check_unknown_runs(settings)
    if not left.dead_owners and not left.private:
        yield Finding("run folders", OK, "none is left over")


def find_leftovers(settings: Settings) -> Leftovers:
    marked = _list_marked(settings)
    dead_owners, private = {}, []
    for run_dir in list_run_dirs(settings):
        owner = _read_owner(run_dir.path)
        if owner is not None and _is_dead(settings, owner):
            dead_owners[run_dir.path] = owner
        elif owner is None and run_dir.path not in marked and _has_private_files(run_dir):
            private.append(run_dir)
    orphans = {
        folder: pids
        for folder, pids in marked.items()
        if (owner := _read_owner(folder)) is None or _is_dead(settings, owner)
    }
    return Leftovers(orphans, dead_owners, private)


def _clean_up(settings: Settings, left: Leftovers) -> Iterator[Finding]:
    for folder in left.orphans:
        if end_strays(folder):
            yield Finding("fix", OK, f"ended what ran in {folder}")
    for run_dir in left.private:
        close_run_dir(run_dir)
        yield Finding("fix", OK, f"deleted the copies of rows in {run_dir.path}")
    if not left.dead_owners:
        return
    for owner in left.dead_owners.values():
        lock = get_owners_dir(settings) / owner
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch(mode=0o600)  # An owner whose lock file is gone is found by it again.
    if settings.database_url is None:
        yield Finding("fix", WARNING, "the run folders stay: no database runs", "start it and run this again")
        return
    engine = build_engine(settings, Role.WORKER, pool_size=1, statement_seconds=STATEMENT_SECONDS)
    try:
        recover_host(build_sessions(engine), settings)
        yield Finding("fix", OK, f"gave back the jobs of {_name(sorted(set(left.dead_owners.values())))}")
    except SQLAlchemyError as error:
        yield Finding("fix", WARNING, f"the run folders stay: {_describe(error)}", "start the database, run this again")
    finally:
        engine.dispose()


def _check_unknown_runs(settings: Settings) -> Iterator[Finding]:
    """They stay, and are deleted when they are old: the database may be the wrong one."""
    names = {run_dir.path.parent.name for run_dir in list_run_dirs(settings)}
    with _reading(settings) as session:
        if session is None or not names:
            return
        unknown = sorted(names - set(session.scalars(select(Job.id).where(Job.id.in_(names)))))
    if unknown:
        remedy = f"see that MEDTUNE_DATABASE_URL is the right one; then delete them below {settings.runs_dir}"
        yield Finding("run folders", WARNING, f"of jobs that the database does not know: {_name(unknown)}", remedy)


def _list_marked(settings: Settings) -> dict[Path, list[int]]:
    """Processes of this home's runs, by run folder."""
    found: dict[Path, list[int]] = {}
    for process in psutil.process_iter():
        try:
            marker = process.environ().get(MARKER)
            is_dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except (psutil.Error, OSError):
            continue
        if marker and not is_dead and Path(marker).is_relative_to(settings.runs_dir.resolve()):
            folder = settings.runs_dir / Path(marker).relative_to(settings.runs_dir.resolve())
            found.setdefault(folder, []).append(process.pid)
    return found


def _read_owner(folder: Path) -> str | None:
    try:
        return (folder / OWNER_FILE).read_text(encoding="ascii")
    except OSError:
        return None


def _is_dead(settings: Settings, owner: str) -> bool:
    """Whose lock is another machine's, which may share the home, counts as alive."""
    path = get_owners_dir(settings) / owner
    if not path.exists():
        return not any(settings.locks_dir.glob(f"*/owners/{owner}"))
    lock = try_to_lock(path)
    if lock is None:
        return False
    os.close(lock)
    return True


def _has_private_files(run_dir: RunDir) -> bool:
    return (run_dir.path / "data").exists() or run_dir.prepared.exists()


# --- Steps ------------------------------------------------------------------------------------------------------


@contextmanager
def _connected(settings: Settings, role: Role | None) -> Iterator[Session]:
    """Raises SQLAlchemyError."""
    engine = build_engine(settings, role, pool_size=1, statement_seconds=STATEMENT_SECONDS)
    try:
        with build_sessions(engine)() as session:
            yield session
    finally:
        engine.dispose()


@contextmanager
def _reading(settings: Settings) -> Iterator[Session | None]:
    """None when there is no database to read, which has its own line."""
    if not _is_readable(settings):
        yield None
        return
    with _connected(settings, Role.WORKER) as session:
        yield session


def _is_readable(settings: Settings) -> bool:
    if settings.database_url is None:
        return False
    try:
        with _connected(settings, Role.WORKER) as session:
            repository.check_reachable(session)
    except SQLAlchemyError:
        return False
    return True


def _count_shown_gpus(settings: Settings) -> int:
    """What the driver shows, whatever this worker may use of it."""
    return count_gpus(settings.model_copy(update={"worker_gpus": None}))


def _describe(error: SQLAlchemyError) -> str:
    """Without the statement; a URL that cannot be read is not repeated."""
    if isinstance(error, ArgumentError):
        return "MEDTUNE_DATABASE_URL is no URL of a database"
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _hide_url(text: str, settings: Settings) -> str:
    """Servers' and stores' libraries may repeat what they were given."""
    for secret in (settings.redis_url, settings.database_url):
        if secret is not None:
            text = text.replace(secret.get_secret_value(), "***")
    return re.sub(r"://[^/\s@]*@", "://***@", " ".join(text.split()))


def _name(ids: Any) -> str:
    return ", ".join(ids[:MANY]) + (" and more" if len(ids) > MANY else "")
