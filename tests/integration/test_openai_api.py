"""What the official client cannot show of OpenAI's API: fields, refusals, and that it is the same job as in our own."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, update

from api.routes.openai.results import write_step_metrics
from api.routes.openai.schemas import _STATUSES
from cli.serve import Service
from jobs.database import Sessions, build_engine, build_sessions
from jobs.models import Metric, Upload
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import FINAL, JobStatus
from tests.factories import upload_script, wait_until
from tests.integration.rows import add_dataset, submit
from tests.plain_client import Client

JOBS = "/v1/fine_tuning/jobs"
UPLOAD = {"bytes": 39, "filename": "rows.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
PARTS = [b'{"a": 1}\n'] + [b"\n"] * 40


@pytest.fixture(scope="module")
def dataset_id(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    client = Client(service.url, service.key)
    found = upload_script(client, tmp_path_factory.mktemp("rows"))
    client.close()
    return found


@pytest.fixture
def body(dataset_id: str) -> dict[str, Any]:
    return {"model": "tiny", "training_file": f"file-{dataset_id[-26:]}"}


def refuse(client: Client, path: str, body: dict[str, Any], status: int = 400) -> tuple[str, str]:
    answer = client.http.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code", "details"}
    return error["code"], error["param"]


def test_a_job_is_the_same_in_both_apis(client: Client, body: dict[str, Any], dataset_id: str) -> None:
    job = client.post(
        JOBS, {**body, "validation_file": body["training_file"], "suffix": "both", "metadata": {"a": "b"}}
    )
    job_id = f"job_{job['id'][-26:]}"

    ours = client.get(f"/jobs/{job_id}")
    cancelled = client.post(f"/jobs/{job_id}/cancel")

    assert job["medtune"]["id"] == ours["id"] == job_id
    assert (ours["name"], ours["dataset"], ours["metadata"]) == ("both", {"id": dataset_id, "uri": None}, {"a": "b"})
    assert ours["validation"]["id"] == dataset_id
    assert job["organization_id"] == "default"
    if cancelled["status"] == "cancelled":
        assert client.get(f"{JOBS}/{job['id']}")["status"] == "cancelled"
    else:
        wait_until(lambda: client.get(f"{JOBS}/{job['id']}")["status"], lambda status: status == "cancelled", 300)


def test_older_clients_send_hyperparameters_at_the_top(client: Client, body: dict[str, Any]) -> None:
    given = {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": 2}

    job = client.post(JOBS, {**body, "hyperparameters": given, "seed": 5})
    client.post(f"{JOBS}/{job['id']}/cancel")

    assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2}
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": job["hyperparameters"]}}
    training = job["medtune"]["training"]
    assert (training["global_batch_size"], training["learning_rate"], training["seed"]) == (4, 4e-4, 5)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"colour": "red"}, "unknown_field", "colour"),
        ({"medtune": {"colour": "red"}}, "unknown_field", "medtune.colour"),
        ({"medtune": {"training": {"epochs": 0}}}, "invalid_field", "medtune.training.epochs"),
        ({"medtune": {"model": "tiny"}}, "field_given_twice", "medtune.model"),
        ({"seed": 1, "medtune": {"training": {"seed": 2}}}, "field_given_twice", "medtune.training.seed"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e9}},
            "invalid_field",
            "hyperparameters.learning_rate_multiplier",
        ),
        ({"hyperparameters": {"n_epochs": 0}}, "invalid_field", None),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method_not_supported", "method.type"),
        ({"integrations": [{"type": "wandb"}]}, "integrations_not_supported", "integrations"),
        ({"suffix": "x" * 65}, "invalid_field", "suffix"),
    ],
)
def test_what_cannot_be_is_refused_by_its_own_name(
    client: Client, body: dict[str, Any], fields: dict[str, Any], code: str, param: str | None
) -> None:
    found = refuse(client, JOBS, {**body, **fields})

    assert found[0] == code
    assert param is None or found[1] == param


def test_a_key_that_was_used_for_another_request_is_refused(client: Client, body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": f"v1 {body['training_file']}"}

    first, again = (client.http.post(JOBS, json=body, headers=headers) for _ in range(2))
    other = client.http.post(JOBS, json={**body, "seed": 3}, headers=headers)
    by_the_other_api = client.http.post("/jobs", json={"model": "tiny"}, headers=headers)

    assert (first.status_code, first.text) == (200, again.text)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert by_the_other_api.status_code == 422
    client.post(f"{JOBS}/{first.json()['id']}/cancel")


def test_jobs_without_labels_are_found(client: Client, body: dict[str, Any]) -> None:
    plain, labelled = (client.post(JOBS, {**body, "metadata": labels})["id"] for labels in (None, {"a": "b"}))

    found = {job["id"] for job in client.get(JOBS, metadata="null", limit=1000)["data"]}

    assert (plain in found, labelled in found) == (True, False)
    for job_id in (plain, labelled):
        client.post(f"{JOBS}/{job_id}/cancel")


def test_a_file_that_is_no_good_says_which_lines(client: Client) -> None:
    rows = b'{"instruction": "q", "response": "a"}\n{"instruction": "no answer"}\n'
    file = client.http.post("/v1/files", files={"file": ("bad.jsonl", rows)}, data={"purpose": "fine-tune"}).json()

    file = wait_until(lambda: client.get(f"/v1/files/{file['id']}"), lambda file: file["status"] != "uploaded", 300)

    assert file["status"] == "error"
    assert "line 2" in file["status_details"]


def test_a_file_takes_the_options_of_a_dataset(client: Client) -> None:
    form = {"purpose": "fine-tune", "medtune[phi_policy]": "reject", "medtune[name]": "mine"}
    files = {"file": ("rows.jsonl", b'{"instruction": "q", "response": "a"}\n')}

    file = client.http.post("/v1/files", files=files, data=form).json()

    dataset = client.get(f"/datasets/ds_{file['id'][-26:]}")
    assert (dataset["name"], dataset["filename"], dataset["phi"]["policy"]) == ("mine", "rows.jsonl", "reject")
    for field, code in (
        ("medtune[colour]", "unknown_field"),
        ("colour", "unknown_field"),
        ("expires_after[seconds]", "expires_after_not_supported"),
        ("medtune[phi_policy]", "invalid_field"),
    ):
        answer = client.http.post("/v1/files", files=files, data={"purpose": "fine-tune", field: "red"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_an_upload_that_nobody_completes_expires_and_leaves_no_bytes(client: Client, service: Service) -> None:
    upload_id = client.post("/v1/uploads", UPLOAD)["id"]
    part = client.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x" * 39})
    folder = Path(service.settings.store_location) / "uploads" / upload_id
    assert [path.name for path in folder.iterdir()] == [part.json()["id"]]
    engine = build_engine(service.settings, role=None)
    with build_sessions(engine).begin() as session:
        over = func.now() - timedelta(seconds=1)
        session.execute(update(Upload).where(Upload.id == upload_id).values(expires_at=over))
    engine.dispose()

    late = client.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x"})
    completed = client.http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [part.json()["id"]]})

    for answer in (late, completed):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "upload_is_closed")
        assert answer.headers["x-should-retry"] == "false"
    wait_until(lambda: list(folder.iterdir()), lambda left: not left)


def test_of_completing_and_cancelling_at_once_one_wins_and_the_other_is_told(client: Client) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(15):
            upload_id = client.post("/v1/uploads", {**UPLOAD, "bytes": sum(map(len, PARTS))})["id"]
            sent = [client.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": part}) for part in PARTS]
            parts = [answer.json()["id"] for answer in sent]
            completing = pool.submit(client.http.post, f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts})
            cancelling = pool.submit(client.http.post, f"/v1/uploads/{upload_id}/cancel")
            answers = [future.result() for future in (completing, cancelling)]
            [loser] = [answer for answer in answers if answer.status_code != 200]
            assert (loser.status_code, loser.json()["error"]["code"]) == (409, "upload_is_closed")


def test_uploads_that_cannot_be_are_refused(client: Client) -> None:
    assert refuse(client, "/v1/uploads", {**UPLOAD, "purpose": "vision"}) == ("purpose_not_supported", "purpose")
    assert refuse(client, "/v1/uploads", {**UPLOAD, "bytes": 1 << 40}, 413) == ("file_too_large", "bytes")
    assert refuse(client, "/v1/uploads", {**UPLOAD, "medtune": {"x": "y"}}) == ("unknown_field", "medtune.x")
    upload_id = client.post("/v1/uploads", UPLOAD)["id"]
    answers = [client.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x" * 39}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert answers[-1].json()["error"]["code"] == "too_many_parts"
    twice = {"part_ids": [answers[0].json()["id"]] * 2}
    assert refuse(client, f"/v1/uploads/{upload_id}/complete", twice) == ("part_named_twice", "part_ids")


def test_every_status_has_one_that_clients_know() -> None:
    assert set(_STATUSES) | FINAL == set(JobStatus)


def test_of_a_step_that_was_trained_twice_the_last_time_counts(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    losses = [(1, 3.0), (2, 2.5), (3, 2.0), (2, 2.4), (3, 1.9), (4, 1.5)]
    with worker.begin() as session:
        for seq, (step, loss) in enumerate(losses, 1):
            values = {"loss": loss} | ({"eval_loss": 1.25} if step == 4 else {})
            numbers = {"attempt": 1, "step": step, "epoch": step / 4, "tokens": 10 * step, "values": values}
            session.add(Metric(job_id=job_id, seq=seq, tenant_id=identity.tenant_id, **numbers))
    with worker() as session:
        lines = write_step_metrics(session, job_id).decode().splitlines()

    assert lines == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,epoch,tokens,learning_rate",
        "1,3.0,,,,0.25,10,",
        "2,2.4,,,,0.5,20,",
        "3,1.9,,,,0.75,30,",
        "4,1.5,,1.25,,1.0,40,",
    ]
