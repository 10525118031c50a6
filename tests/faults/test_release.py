"""The end of a training, where its adapter is signed and stored: deaths, keys and disks at that moment."""

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from cli.serve import MEDTUNE
from jobs.models import Adapter
from jobs.signing_key import find_public_key
from tests.factories import wait_until
from tests.faults.harness import PATIENCE, Cluster
from tests.faults.node import Node
from tests.faults.test_disk_and_logs import MIB, only_node, read_problem, small_disk

__all__ = ["small_disk"]

LONG: dict[str, Any] = {"steps": 40, "step_seconds": 0.05, "save_every": 10}
Moment = Callable[[Cluster, Node, str, ExitStack], Callable[[], bool]]


def signing(cluster: Cluster, node: Node, job_id: str, stack: ExitStack) -> Callable[[], bool]:
    """Loading the library that signs takes half a second."""
    return (node.get_run_dir(job_id) / "adapter" / "manifest.json").exists


def packing(cluster: Cluster, node: Node, job_id: str, stack: ExitStack) -> Callable[[], bool]:
    """Nobody reads from the pipe that is in the archive's place: it is signed, and goes no further."""
    os.mkfifo(node.get_run_dir(job_id) / "adapter.tar.gz")
    return (node.get_run_dir(job_id) / "adapter" / "signature.sig").exists


def storing(cluster: Cluster, node: Node, job_id: str, stack: ExitStack) -> Callable[[], bool]:
    """Half of the object is written."""
    path = get_object(cluster, job_id, attempt=1)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stack.callback(os.close, reader)

    def look() -> bool:
        try:
            return bool(os.read(reader, 10))
        except BlockingIOError:
            return False

    return look


def committing(cluster: Cluster, node: Node, job_id: str, stack: ExitStack) -> Callable[[], bool]:
    """All is stored, and no row says so."""
    blocker = stack.enter_context(psycopg.connect(cluster.database_url))
    blocker.execute("LOCK TABLE adapters IN SHARE MODE")
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'adapters'::regclass"

    def look() -> bool:
        found = blocker.execute(query).fetchone()
        return found is not None and found[0] > 0

    return look


@pytest.mark.parametrize("moment", [signing, packing, storing, committing])
def test_after_a_kill_amid_the_release_there_is_one_adapter_whole_and_signed(
    cluster: Cluster, tmp_path: Path, moment: Moment
) -> None:
    job_id = cluster.submit(**LONG)
    node = cluster.wait_for_step(job_id, 3)
    with ExitStack() as stack:
        wait_until(moment(cluster, node, job_id, stack), seconds=PATIENCE, every=0.001)
        node.kill()
    answer = cluster.client.http.get(f"/jobs/{job_id}/adapter")
    assert answer.status_code == 404, "nothing of it may be downloaded"
    assert answer.json()["error"]["code"] == "adapter_not_found"

    cluster.heal()
    job = cluster.wait(job_id)

    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    with cluster.sessions() as session:
        keys = session.scalars(select(Adapter.store_key).where(Adapter.job_id == job_id)).all()
    stored = get_object(cluster, job_id, attempt=2)
    assert [cluster.home / "store" / key for key in keys] == [stored]
    wait_until(lambda: list(stored.parent.iterdir()), lambda found: found == [stored])
    assert verify(cluster, job_id, tmp_path)
    cluster.check_history()


def get_object(cluster: Cluster, job_id: str, attempt: int) -> Path:
    return cluster.home / "store" / "adapters" / job_id / f"attempt-{attempt}.tar.gz"


def verify(cluster: Cluster, job_id: str, folder: Path) -> bool:
    """Whether the downloaded adapter checks out by the key of one of the nodes."""
    cluster.client.download_adapter(job_id, folder / "adapter.tar.gz")
    with tarfile.open(folder / "adapter.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    public_keys = [find_public_key(cluster.settings.model_copy(update={"home": node.home})) for node in cluster.nodes]
    commands = ([*MEDTUNE, "verify", str(folder / "adapter"), "--public-key", str(key)] for key in public_keys)
    return any(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)


@contextmanager
def filled(disk: Path, left: int, name: str = "filler") -> Iterator[None]:
    """So many bytes are free."""
    stat = os.statvfs(disk)
    filler = disk / name
    filler.write_bytes(bytes(max(stat.f_bavail * stat.f_frsize - left, 0)))
    try:
        yield
    finally:
        filler.unlink()


def delete(key: Path) -> None:
    key.unlink()


def damage(key: Path) -> None:
    key.write_bytes(bytes(range(128, 256)))


@pytest.mark.parametrize(("harm", "code"), [(delete, "signing_key_missing"), (damage, "signing_key_invalid")])
def test_without_its_key_a_worker_signs_nothing_takes_no_job_and_goes_on_when_it_is_mended(
    cluster: Cluster, tmp_path: Path, harm: Callable[[Path], None], code: str
) -> None:
    with only_node(cluster, tmp_path / "home") as node:
        job_id = cluster.submit(**LONG)
        cluster.wait_for_step(job_id, 3)
        key = node.home / "signing-key.pem"
        content, published = key.read_bytes(), (node.home / "signing-key.pub").read_bytes()
        log_begins = node.main.log.stat().st_size
        harm(key)

        job = cluster.wait(job_id, "queued")
        problem = wait_until(lambda: read_problem(cluster, node), seconds=PATIENCE)
        log = node.main.log.read_bytes()[log_begins:]
        key.touch(mode=0o600)
        key.write_bytes(content)
        end = cluster.wait(job_id)

        assert job["reason"]["code"] == code
        assert job["reason"]["remedy"]
        assert "signing-key.pem" in problem
        assert code.encode() in log
        assert b"Traceback" not in log
        assert (end["status"], end["attempt"]) == ("succeeded", 2)
        assert (node.home / "signing-key.pub").read_bytes() == published
        assert verify(cluster, job_id, tmp_path)
        cluster.check_history()


def test_a_disk_that_is_full_at_the_signature_leaves_nothing_half_done_and_the_job_goes_on(
    cluster: Cluster, small_disk: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if small_disk is None:
        pytest.skip("no small disk can be mounted here")
    with only_node(cluster, small_disk, disk_reserve_bytes=0) as node, filled(small_disk, left=MIB):
        job_id = cluster.submit(**LONG)
        cluster.wait_for_step(job_id, 3)
        run_dir = node.get_run_dir(job_id)
        wait_until((run_dir / "adapter" / "manifest.json").exists, seconds=PATIENCE, every=0.001)
        with filled(small_disk, left=0, name="rest"):
            job = cluster.wait(job_id, "queued")
            archives = list(run_dir.glob("adapter.tar.gz"))
        end = cluster.wait(job_id)

        assert job["reason"]["code"] == "disk_full"
        assert "MEDTUNE_DISK_RESERVE_BYTES" in job["reason"]["remedy"]
        assert archives == []
        assert (end["status"], end["attempt"] > 1) == ("succeeded", True)
        assert verify(cluster, job_id, tmp_path_factory.mktemp("downloaded"))
        cluster.check_history()


def test_a_store_that_is_full_keeps_no_half_adapter_and_the_job_goes_on_when_there_is_room(
    cluster: Cluster, tmp_path: Path
) -> None:
    adapters = cluster.home / "store" / "adapters"
    adapters.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(adapters)]  # The archive has seven.
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small disk can be mounted here")
    try:
        job_id = cluster.submit(**LONG)
        cluster.wait_for_step(job_id, 3)
        job = cluster.wait(job_id, "queued")
        left = [path for path in adapters.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", "--lazy", str(adapters)], check=True)
    end = cluster.wait(job_id)

    assert job["reason"]["code"] == "store_unavailable"
    assert "No space left" in job["reason"]["message"]
    assert "room" in job["reason"]["remedy"]
    assert left == []
    assert end["status"] == "succeeded"
    assert verify(cluster, job_id, tmp_path)
    cluster.check_history()
