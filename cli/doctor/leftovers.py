"""What dead processes of this machine left behind, and how it is cleaned up."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy.exc import SQLAlchemyError

from cli.doctor.finding import ERROR, OK, WARNING, Finding, describe, name_some
from cli.doctor.sessions import STATEMENT_SECONDS, reading
from jobs import repository
from jobs.database import Role, build_engine, build_sessions
from jobs.settings import Settings
from trainer_core.run_dir import RunDir
from worker.attempt import OWNER_FILE
from worker.host import close_run_dir, list_run_dirs, recover_host
from worker.launcher import MARKER, end_strays
from worker.machine import get_owners_dir, try_to_lock


@dataclass(frozen=True)
class Leftovers:
    """What dead processes of this machine left behind."""

    orphans: dict[Path, list[int]]
    """Process ids by run folder."""
    dead_owners: dict[Path, str]
    """Owner by run folder."""
    private: list[RunDir]
    """With copies of rows, and nobody works there."""


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
        yield Finding("fix", OK, f"gave back the jobs of {name_some(sorted(set(left.dead_owners.values())))}")
    except SQLAlchemyError as error:
        yield Finding("fix", WARNING, f"the run folders stay: {describe(error)}", "start the database, run this again")
    finally:
        engine.dispose()


def _check_unknown_runs(settings: Settings) -> Iterator[Finding]:
    """They stay, and are deleted when they are old: the database may be the wrong one."""
    names = {run_dir.path.parent.name for run_dir in list_run_dirs(settings)}
    with reading(settings) as session:
        if session is None or not names:
            return
        unknown = sorted(names - repository.find_known_jobs(session, names))
    if unknown:
        remedy = f"see that MEDTUNE_DATABASE_URL is the right one; then delete them below {settings.runs_dir}"
        yield Finding("run folders", WARNING, f"of jobs that the database does not know: {name_some(unknown)}", remedy)


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
