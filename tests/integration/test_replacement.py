"""Identifiers of an uploaded dataset replaced by its check: what is stored, what is left, and who can read it back."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from typer.testing import CliRunner

from cli.main import build_app
from cli.serve import MEDTUNE, Service, build_environment
from jobs import audit_log, lifecycle, repository
from jobs.database import Role, Sessions, build_engine, build_sessions, tenant_transaction
from jobs.errors import LeaseLost
from jobs.ids import new_id
from jobs.models import AuditEntry, Dataset, Json, VaultRow
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import DatasetStatus, PhiPolicy
from jobs.store import Store, StoreUnavailable
from jobs.task_queue import Queue, build_celery, ring
from jobs.vault_key import find_vault_keyring, get_vault_key_file, load_vault_keyring
from tests.conftest import FAST, Servers
from tests.factories import wait_until, write_rows
from tests.integration.test_data_policies import PRIVATE, ROWS, STATEMENT, upload
from tests.plain_client import Client
from trainer_core.data.phi.replacement import Replacer
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.vault import VaultEntry, create_key_file, create_secret
from trainer_core.errors import ConfigurationError
from worker.checks import CheckInterrupted, CheckLease, check_dataset, open_workspace, sweep_leftovers

WORDS = ("Maria", "Kowalski", "0132")


@pytest.fixture
def rows_of_service(service: Service) -> Iterator[Sessions]:
    engine = build_engine(service.settings, Role.WORKER, pool_size=1)
    yield build_sessions(engine)
    engine.dispose()


def list_objects(settings: Settings, dataset_id: str) -> list[Path]:
    return sorted((Path(settings.store_location) / "datasets" / dataset_id).iterdir())


def wait_for_one_object(settings: Settings, dataset_id: str) -> Path:
    return wait_until(lambda: list_objects(settings, dataset_id), lambda objects: len(objects) == 1)[0]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_rows_without_identifiers_take_the_place_of_those_that_were_uploaded(
    client: Client, service: Service, rows_of_service: Sessions, tmp_path: Path
) -> None:
    raw = write_rows(tmp_path / "rows.jsonl", ROWS).read_bytes()
    dataset = upload(client, tmp_path, ROWS, phi_policy="replace")
    stored = wait_for_one_object(service.settings, dataset["id"])
    report = client.get(f"/datasets/{dataset['id']}/report")

    assert read_rows(stored) == [
        ROWS[0],
        {"instruction": "Patient: [PATIENT_1], call [PHONE_1]", "response": "[PATIENT_1] should rest."},
    ]
    assert (dataset["status"], dataset["rows"], dataset["bytes"]) == ("ready", 2, stored.stat().st_size)
    assert dataset["sha256"] == hashlib.sha256(stored.read_bytes()).hexdigest()
    assert report["replacement"]["uploaded"] == {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    assert report["replacement"]["changed_rows"] == 1
    assert dataset["phi"]["replaced"] == {"name": 2, "phone": 1}
    assert dataset["phi"]["strategy"] == "safe_harbor"
    assert (dataset["phi"]["findings"], dataset["phi"]["release_blocker"]) == (0, None)
    with rows_of_service() as session:
        entries = session.scalars(select(VaultRow).where(VaultRow.dataset_id == dataset["id"])).all()
        leftovers = session.get_one(Dataset, dataset["id"]).has_leftovers
    assert {(e.scope, e.token) for e in entries} == {("row:2", "[PATIENT_1]"), ("row:2", "[PHONE_1]")}
    assert not leftovers
    for told in (dataset, report, [e.ciphertext for e in entries]):
        assert not any(word in json.dumps(told) for word in WORDS)


def test_what_is_left_counts_as_a_finding_until_a_person_answers_for_it(client: Client, tmp_path: Path) -> None:
    dangling = {"instruction": "Who called?", "response": "It was [PATIENT_7], on 617-555-0132."}
    dataset = upload(client, tmp_path, [dangling], phi_policy="replace")
    report = client.get(f"/datasets/{dataset['id']}/report")

    assert dataset["phi"]["replaced"] == {"phone": 1}
    assert {finding["rule"] for finding in report["phi"]["findings"]} == {"PHI015"}
    assert dataset["phi"]["release_blocker"]
    body = {"attested_by": "Ann Roe", "attestation": STATEMENT}
    attested = client.post(f"/datasets/{dataset['id']}/attest", body)
    assert attested["phi"]["release_blocker"] is None


def test_rows_of_a_patient_share_placeholders_and_keyed_ones_are_the_same_in_every_dataset(
    client: Client, service: Service, tmp_path: Path
) -> None:
    visits = [
        {"instruction": "Patient: Maria Kowalski", "response": "Rest.", "patient": "A-1"},
        {"instruction": "Patient: Maria Kowalski, again", "response": "Rest.", "patient": "A-1"},
    ]
    fields = {"phi_policy": "replace", "phi_strategy": "expert_determination", "patient_key": "patient"}
    first = upload(client, tmp_path, visits, **fields)
    second = upload(client, tmp_path, visits, **fields)

    stored = [wait_for_one_object(service.settings, dataset["id"]).read_bytes() for dataset in (first, second)]
    tokens = {
        row["instruction"].split()[1].rstrip(",") for row in read_rows(list_objects(service.settings, first["id"])[0])
    }
    assert stored[0] == stored[1]
    assert len(tokens) == 1
    assert (first["phi"]["strategy"], first["phi"]["patient_key"]) == ("expert_determination", "patient")


def test_a_patient_key_that_no_row_has_rejects_the_dataset_and_its_file_is_deleted(
    client: Client, service: Service, tmp_path: Path
) -> None:
    dataset = upload(client, tmp_path, ROWS, phi_policy="replace", patient_key="mrn")
    wait_until(lambda: not list_objects(service.settings, dataset["id"]))
    report = client.get(f"/datasets/{dataset['id']}/report")

    assert dataset["status"] == "rejected"
    assert [finding["code"] for finding in report["findings"]] == ["patient_key_unknown"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"phi_strategy": "safe_harbor"}, "field_without_use", "phi_strategy"),
        ({"phi_policy": "reject", "patient_key": "mrn"}, "field_without_use", "patient_key"),
        ({"phi_policy": "replace", "phi_strategy": "best"}, "invalid_field", "phi_strategy"),
        ({"phi_policy": "replace", "patient_key": ""}, "invalid_field", "patient_key"),
        ({"phi_policy": "replace", "attested_by": "Ann Roe"}, "field_without_use", "attested_by"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(
    client: Client, tmp_path: Path, fields: dict[str, str], code: str, param: str
) -> None:
    content = write_rows(tmp_path / "rows.jsonl", ROWS).read_bytes()
    answer = client.http.post("/datasets", files={"file": ("rows.jsonl", content)}, data=fields)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, code, param)


def test_a_deleted_dataset_leaves_neither_rows_nor_a_vault(
    client: Client, service: Service, rows_of_service: Sessions, tmp_path: Path
) -> None:
    dataset_id = upload(client, tmp_path, ROWS, phi_policy="replace")["id"]
    wait_for_one_object(service.settings, dataset_id)

    deletion = client.delete(f"/datasets/{dataset_id}")

    wait_until(lambda: not list_objects(service.settings, dataset_id))
    assert deletion["record"]["deleted_rows"]["vault_entries"] > 0
    with rows_of_service() as session:
        assert session.scalars(select(VaultRow).where(VaultRow.dataset_id == dataset_id)).all() == []


def test_the_operator_reads_a_placeholder_back_and_the_audit_log_says_so(
    client: Client,
    service: Service,
    rows_of_service: Sessions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset_id = upload(client, tmp_path, ROWS, phi_policy="replace")["id"]
    for name, value in service.settings.model_dump(context={"reveal_secrets": True}).items():
        if name in ("home", "database_url"):
            monkeypatch.setenv(f"MEDTUNE_{name.upper()}", str(value))
    for module in ("cli.operator", "cli.vault"):
        monkeypatch.setattr(f"{module}.get_settings", Settings)

    def show(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(build_app("vault"), ["vault", "show", *options])
        return result.exit_code, result.output

    code, output = show("--dataset", dataset_id, "--token", "[PATIENT_1]", "--scope", "row:2")
    assert (code, {json.loads(line)["value"] for line in output.splitlines()}) == (0, {"Maria Kowalski", "Maria"})
    create_key_file(other := tmp_path / "other.txt")
    assert show("--dataset", dataset_id, "--key", str(other))[0] == 1
    assert show("--dataset", "ds_none") == (1, "medtune: there is no dataset 'ds_none'\n")
    assert show()[0] == 2
    with rows_of_service() as session:
        shown = session.scalars(select(AuditEntry).where(AuditEntry.object_id == dataset_id)).all()
    (entry, _) = [entry for entry in shown if entry.action == "show_vault"]
    assert (entry.actor, entry.data) == (audit_log.OPERATOR, {"token": "[PATIENT_1]", "scope": "row:2"})


# Without a service: a database of the test's own, and worker processes that it starts and kills.


def add_dataset(
    settings: Settings, api: Sessions, identity: Identity, rows: list[dict[str, Any]], **columns: Any
) -> Dataset:
    dataset_id = new_id("ds")
    path = write_rows(settings.home / "upload.jsonl", rows)
    written = Store(settings.store_location).put(path, f"datasets/{dataset_id}/data")
    dataset = Dataset(
        id=dataset_id,
        tenant_id=identity.tenant_id,
        name="rows",
        filename="rows.jsonl",
        store_key=f"datasets/{dataset_id}/data",
        num_bytes=written.num_bytes,
        sha256=written.sha256,
        created_by=identity.key_id,
        **{"phi_policy": PhiPolicy.REPLACE, "phi_strategy": Strategy.SAFE_HARBOR, **columns},
    )
    with tenant_transaction(api, identity.tenant_id) as session:
        session.add(dataset)
    return dataset


class FreeLease(CheckLease):
    """Of a check that nobody else wants; the worker must stop after so many rows."""

    def __init__(self, worker: Sessions, dataset_id: str, rows_until_stop: int = 10**9) -> None:
        self.rows_left = rows_until_stop
        super().__init__(worker, dataset_id, "one", 1000.0, self.must_stop)

    def must_stop(self) -> bool:
        self.rows_left -= 1
        return self.rows_left <= 0


def check(settings: Settings, worker: Sessions, dataset: Dataset, lease: CheckLease | None = None) -> None:
    """As a worker's task does, up to its commit."""
    with worker.begin() as session:
        claimed = lifecycle.claim_dataset(session, "one", 1000.0)
    assert claimed is not None
    assert claimed.id == dataset.id
    lease = lease or FreeLease(worker, dataset.id)
    with open_workspace(settings, "one") as folder:
        found = check_dataset(settings, worker, claimed, lease, folder)
        with worker.begin() as session:
            lifecycle.finish_dataset(session, dataset.id, "one", found.report, found.clean, found.hashes)


def find_dataset(worker: Sessions, dataset_id: str) -> Dataset:
    with worker() as session:
        return session.get_one(Dataset, dataset_id)


def test_a_check_that_must_stop_leaves_the_upload_as_it_was_and_nothing_else(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset = add_dataset(settings, api, identity, ROWS * 10)
    for rows in (1, 15, 45, 70):  # While it validates, finds, writes and looks again.
        with pytest.raises(CheckInterrupted):
            check(settings, worker, dataset, FreeLease(worker, dataset.id, rows))
        with worker.begin() as session:
            lifecycle.release_datasets(session, "one")

    assert [path.name for path in list_objects(settings, dataset.id)] == ["data"]
    assert list(settings.home.glob("check-*")) == []
    check(settings, worker, dataset)
    assert find_dataset(worker, dataset.id).status == DatasetStatus.READY


def test_what_a_dead_worker_left_in_the_store_is_deleted_by_whoever_looks_next(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset = add_dataset(settings, api, identity, ROWS)
    store = Store(settings.store_location)
    store.put(settings.home / "upload.jsonl", f"{dataset.store_folder}/clean-of-a-dead-check")
    sweep_leftovers(worker, store, dataset.id)
    assert len(list_objects(settings, dataset.id)) == 2  # Another may be checking it.
    check(settings, worker, dataset)
    assert len(list_objects(settings, dataset.id)) == 3
    with worker() as session:
        assert repository.count_waiting_datasets(session, at_most=5) == 1

    sweep_leftovers(worker, store, dataset.id)

    checked = find_dataset(worker, dataset.id)
    assert [f"{checked.store_folder}/{path.name}" for path in list_objects(settings, dataset.id)] == [checked.store_key]
    with worker() as session:
        assert repository.count_waiting_datasets(session, at_most=5) == 0
    with tenant_transaction(api, identity.tenant_id) as session:
        session.delete(session.get_one(Dataset, dataset.id))
    sweep_leftovers(worker, store, dataset.id)
    assert list_objects(settings, dataset.id) == []


@pytest.mark.parametrize("policy", [PhiPolicy.REPLACE, PhiPolicy.REPORT])
def test_a_rejected_datasets_file_is_deleted_also_when_its_worker_died_after_the_commit(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, policy: PhiPolicy
) -> None:
    strategy = Strategy.SAFE_HARBOR if policy == PhiPolicy.REPLACE else None
    dataset = add_dataset(settings, api, identity, [{"nothing": PRIVATE}], phi_policy=policy, phi_strategy=strategy)
    check(settings, worker, dataset)
    assert find_dataset(worker, dataset.id).status == DatasetStatus.REJECTED
    assert len(list_objects(settings, dataset.id)) == 1
    with worker() as session:
        (left,) = repository.list_datasets_with_leftovers(session, 5)  # What every check begins with.

    sweep_leftovers(worker, Store(settings.store_location), left.id)

    assert list_objects(settings, dataset.id) == []
    assert find_dataset(worker, dataset.id).report is not None
    with worker() as session:
        assert repository.count_waiting_datasets(session, at_most=5) == 0


def test_a_check_that_lost_its_dataset_stores_nothing(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset = add_dataset(settings, api, identity, ROWS)
    with worker.begin() as session:
        claimed = lifecycle.claim_dataset(session, "one", 1000.0)
    assert claimed is not None
    with open_workspace(settings, "one") as folder:
        found = check_dataset(settings, worker, claimed, FreeLease(worker, dataset.id), folder)
        with pytest.raises(LeaseLost), worker.begin() as session:
            lifecycle.finish_dataset(session, dataset.id, "somebody else", found.report, found.clean)

    with worker() as session:
        assert session.scalars(select(VaultRow)).all() == []
    assert find_dataset(worker, dataset.id).store_key == dataset.store_key


def test_while_a_vault_is_stored_the_lease_is_renewed_and_only_a_second_check_and_a_deletion_wait(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """However many rows it has."""
    dataset = add_dataset(settings, api, identity, ROWS)
    with worker.begin() as session:
        lifecycle.claim_dataset(session, "one", 0.0)
    this_one = select(Dataset.id).where(Dataset.id == dataset.id)

    def iter_vault_rows() -> Iterator[list[Json]]:
        names = ("scope", "label", "blind_index", "token", "nonce", "ciphertext")
        columns = {"dataset_id": dataset.id, "tenant_id": "a", "key_version": 1, **dict.fromkeys(names, "x")}
        yield [columns]
        with worker.begin() as another:
            assert lifecycle.claim_dataset(another, "two", 1000.0) is None
        with worker.begin() as another:
            lifecycle.renew_dataset(another, dataset.id, "one", 1000.0)
        with tenant_transaction(api, "a") as client:  # As for a new job.
            assert client.scalar(this_one.with_for_update(read=True, nowait=True)) == dataset.id
        with pytest.raises(OperationalError, match="could not obtain lock"), tenant_transaction(api, "a") as client:
            client.scalar(this_one.with_for_update(nowait=True))
        yield [{**columns, "token": "y"}]

    with worker.begin() as session:
        clean = lifecycle.CleanRows("clean", 1, "0" * 64, iter_vault_rows)
        lifecycle.finish_dataset(session, dataset.id, "one", {"ok": True, "rows": 2}, clean)

    assert find_dataset(worker, dataset.id).store_key == "clean"
    with worker() as session:
        assert len(session.scalars(select(VaultRow)).all()) == 2


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["a vault", "nothing found yet"])
def test_without_the_key_that_wrote_the_vault_no_dataset_passes_and_no_other_is_made(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, rows: list[dict[str, Any]]
) -> None:
    first, second = add_dataset(settings, api, identity, rows), add_dataset(settings, api, identity, ROWS)
    check(settings, worker, first)
    key = get_vault_key_file(settings)
    content = key.read_text()
    key.unlink()

    with pytest.raises(ConfigurationError, match="is gone") as gone:
        check(settings, worker, second)
    missing = settings.model_copy(update={"vault_key_file": settings.home / "nowhere"})
    with pytest.raises(ConfigurationError) as absent:
        check_dataset(missing, worker, second, FreeLease(worker, second.id), settings.home)

    assert (gone.value.code, absent.value.code) == ("vault_key_missing", "vault_key_missing")
    assert not key.exists()
    assert find_dataset(worker, second.id).status == DatasetStatus.VALIDATING
    write_key(key, content)
    with worker.begin() as session:
        lifecycle.release_datasets(session, "one")
    check(settings, worker, second)
    assert find_dataset(worker, second.id).status == DatasetStatus.READY


@pytest.mark.parametrize("version", [1, 2])
def test_with_another_key_than_the_vault_was_written_with_no_dataset_passes(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, version: int
) -> None:
    """A new version passes beside the old one, and not in its place."""
    first, second = (add_dataset(settings, api, identity, ROWS) for _ in range(2))
    check(settings, worker, first)
    key = get_vault_key_file(settings)
    content, other = key.read_text(), create_secret().replace("1", str(version), 1)
    write_key(key, other)

    with pytest.raises(ConfigurationError) as wrong:
        check(settings, worker, second)

    assert wrong.value.code == "vault_key_wrong"
    assert find_dataset(worker, second.id).status == DatasetStatus.VALIDATING
    write_key(key, content + (other if version == 2 else ""))
    with worker.begin() as session:
        lifecycle.release_datasets(session, "one")
    check(settings, worker, second)
    assert find_dataset(worker, second.id).status == DatasetStatus.READY


def write_key(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content)


def test_the_api_cannot_read_the_vault_and_workers_cannot_change_it(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    check(settings, worker, add_dataset(settings, api, identity, ROWS))

    for sessions, statement in [
        (api, "SELECT * FROM vault_entries"),
        (worker, "UPDATE vault_entries SET token = ''"),
        (worker, "DELETE FROM vault_entries"),
    ]:
        with pytest.raises(ProgrammingError, match="permission denied"), tenant_transaction(sessions, "a") as session:
            session.execute(text(statement))


def test_a_home_makes_its_own_vault_key_once_and_one_that_others_can_read_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    path = get_vault_key_file(settings)
    assert (find_vault_keyring(settings), path.exists()) == (None, False)
    load_vault_keyring(settings)
    content = path.read_bytes()

    assert path == settings.home / "vault-key.txt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    load_vault_keyring(settings)
    assert path.read_bytes() == content
    path.chmod(0o640)
    for load in (load_vault_keyring, find_vault_keyring):
        with pytest.raises(ConfigurationError, match="others may read"):
            load(settings)


class WorkerProcess:
    """`medtune worker --queue check`, with everything below it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with (settings.home / "worker.log").open("ab") as log:
            command = [*MEDTUNE, "worker", "--queue", "check"]
            environment = {**os.environ, **build_environment(settings)}
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def ring(self) -> None:
        celery = build_celery(self._settings)
        ring(celery, Queue.CHECK)
        celery.close()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def quick(settings: Settings, servers: Servers) -> Settings:
    """Clocks of tests, and queues that no other test uses."""
    return settings.model_copy(update={**FAST, "redis_url": SecretStr(servers.redis_url + "11")})


@pytest.mark.parametrize("moment", ["while it replaces", "before its commit"])
def test_after_a_kill_another_worker_makes_the_same_rows_and_no_doubled_vault(
    api: Sessions, worker: Sessions, identity: Identity, quick: Settings, moment: str
) -> None:
    rows = [{**ROWS[1], "instruction": f"{PRIVATE}, or 617-555-{number:04}"} for number in range(500)]
    dataset = add_dataset(quick, api, identity, rows)
    assert quick.database_url is not None
    with psycopg.connect(quick.database_url.get_secret_value()) as blocker:
        blocker.execute("LOCK TABLE vault_entries IN SHARE MODE")

        def is_at_the_moment() -> bool:
            if moment == "while it replaces":
                return bool(list(quick.home.glob("check-*/data")))
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'vault_entries'::regclass"
            found = blocker.execute(query).fetchone()
            return found is not None and found[0] > 0

        first = WorkerProcess(quick)
        first.ring()
        wait_until(is_at_the_moment)
        first.kill()
    num_left = len(list_objects(quick, dataset.id))
    second = WorkerProcess(quick)

    try:
        wait_until(lambda: find_dataset(worker, dataset.id).lease_owner is None)  # It saw that the first one is dead.
        second.ring()
        wait_until(lambda: find_dataset(worker, dataset.id).status, lambda status: status == DatasetStatus.READY)
        stored = wait_for_one_object(quick, dataset.id)
        wait_until(lambda: not list(quick.home.glob("check-*")))
    finally:
        second.kill()

    entries: list[VaultEntry] = []
    expected, _ = Replacer(keyring=load_vault_keyring(quick)).replace_rows(rows, entries.append)
    with worker() as session:
        kept = session.scalars(select(VaultRow)).all()
    assert num_left == (2 if moment == "before its commit" else 1)
    assert read_rows(stored) == expected
    assert sorted((row.scope, row.token, row.blind_index) for row in kept) == sorted(
        (entry.scope, entry.token, entry.blind_index) for entry in entries
    )


def test_a_worker_that_is_asked_to_stop_hands_its_check_on_at_once(
    api: Sessions, worker: Sessions, identity: Identity, quick: Settings
) -> None:
    patient = quick.model_copy(update={"lease_seconds": 1000.0})
    dataset = add_dataset(quick, api, identity, ROWS * 1500)
    first = WorkerProcess(patient)
    first.ring()
    wait_until(lambda: list(quick.home.glob("check-*/data")))

    code = first.stop()

    stopped = find_dataset(worker, dataset.id)
    assert (code, stopped.status, stopped.lease_owner) == (0, DatasetStatus.VALIDATING, None)
    assert [path.name for path in list_objects(quick, dataset.id)] == ["data"]
    assert list(quick.home.glob("check-*")) == []


def test_a_worker_that_checks_does_not_start_without_the_key_that_is_configured(quick: Settings) -> None:
    settings = quick.model_copy(update={"vault_key_file": quick.home / "nowhere.txt"})
    command = [*MEDTUNE, "worker", "--queue", "check"]
    environment = {**os.environ, **build_environment(settings)}

    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert result.returncode == 1
    assert "nowhere.txt: there is no key file" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", [bytes(range(128, 256)), b"", b"nonsense"])
def test_a_key_that_was_damaged_under_a_running_worker_rejects_no_dataset(
    api: Sessions, worker: Sessions, identity: Identity, quick: Settings, content: bytes
) -> None:
    load_vault_keyring(quick)
    key = get_vault_key_file(quick)
    kept = key.read_text()
    process = WorkerProcess(quick)
    try:
        process.ring()
        wait_until(lambda: b"check_next_dataset" in read_log(quick) and b"succeeded" in read_log(quick))
        key.write_bytes(content)
        dataset = add_dataset(quick, api, identity, ROWS)
        process.ring()
        log = wait_until(lambda: read_log(quick), lambda log: b"cannot be checked now" in log)

        assert b"vault_key_" in log
        assert b"Put the right file back" in log
        assert b"Traceback" not in log
        reason = wait_until(lambda: find_dataset(worker, dataset.id).reason)
        assert reason is not None
        assert reason["code"].startswith("vault_key_")
        assert str(quick.home) not in str(reason)
        assert [path.name for path in list_objects(quick, dataset.id)] == ["data"]
        key.write_text(kept)

        def look() -> DatasetStatus:
            process.ring()
            return find_dataset(worker, dataset.id).status

        wait_until(look, lambda status: status == DatasetStatus.READY, every=0.5)
        assert find_dataset(worker, dataset.id).reason is None
    finally:
        process.kill()


def read_log(settings: Settings) -> bytes:
    return (settings.home / "worker.log").read_bytes()


@pytest.fixture
def small_home(settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Workspace and store share a disk of 1 MiB."""
    home = tmp_path / "disk"
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(home)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield settings.model_copy(update={"home": home})
    subprocess.run(["umount", "--lazy", str(home)], check=True)


def test_wherever_the_disk_fills_a_check_leaves_nothing_and_is_made_anew_when_there_is_room(
    api: Sessions, worker: Sessions, identity: Identity, small_home: Settings
) -> None:
    """While it makes the key, copies the rows, replaces, writes the vault, hashes and stores."""
    rows = [{**ROWS[1], "instruction": f"{PRIVATE}, or 617-555-{number:04}"} for number in range(200)]
    dataset = add_dataset(small_home, api, identity, rows)
    (small_home.home / "upload.jsonl").unlink()
    store = list_objects(small_home, dataset.id)
    filler, num_failures = small_home.home / "filler", 0
    while True:
        free = shutil.disk_usage(small_home.home).free
        filler.write_bytes(bytes(free - num_failures * 8192))
        try:
            check(small_home, worker, dataset)
            break
        except (OSError, StoreUnavailable):
            num_failures += 1
        filler.unlink()
        assert find_dataset(worker, dataset.id).status == DatasetStatus.VALIDATING
        assert list_objects(small_home, dataset.id) == store
        assert list(small_home.home.glob("check-*")) == []
        assert list(small_home.home.glob("vault-key.txt.*")) == []
        with worker.begin() as session:
            assert session.scalars(select(VaultRow)).all() == []
            lifecycle.release_datasets(session, "one")

    assert num_failures > 10
    assert find_dataset(worker, dataset.id).status == DatasetStatus.READY
