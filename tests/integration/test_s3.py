"""Everything that the service keeps may be in S3: a whole job, from the upload to the adapter, and its end."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cli.serve import Service
from jobs.store import Store, StoreUnavailable
from tests.conftest import Servers, run_service
from tests.factories import read_all, submit_script, upload_script, wait_for_status, wait_until, write_rows
from tests.plain_client import ApiError, Client, open_client
from tests.s3_server import SECRET, serving_s3
from tests.unit.jobs.test_references import HOSTILE

BUCKET, LAKE = "medtune", "lake"
"""Of the service, and of the data that references may name."""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_s3(tmp_path_factory.mktemp("s3"), BUCKET, LAKE) as url:
        yield url


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def service(servers: Servers, s3: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"store_url": f"s3://{BUCKET}/here", "data_roots": [str(root), f"s3://{LAKE}/train"]}
    yield from run_service(servers, tmp_path_factory.mktemp("service"), **settings)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with open_client(service.url, service.key) as client:
        yield client


def list_keys(folder: str = "") -> list[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"here/{folder}")
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def test_a_job_needs_no_folder_but_the_bucket(service: Service, client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=4, save_every=2, tells_all=True)
    job = wait_for_status(client, job_id, "succeeded", "failed", seconds=60)
    assert job["status"] == "succeeded", job["reason"]
    dataset_id = job["dataset"]["id"]
    client.download_adapter(job_id, tmp_path / "adapter.tar.gz")

    with tarfile.open(tmp_path / "adapter.tar.gz") as archive:
        assert "adapter/adapter_model.safetensors" in archive.getnames()
    assert list_keys(f"datasets/{dataset_id}/") == [f"here/datasets/{dataset_id}/data"]
    assert len(list_keys(f"checkpoints/{job_id}/")) == len(client.get(f"/jobs/{job_id}/checkpoints")["data"]) == 2
    assert list_keys(f"adapters/{job_id}/")
    assert not (service.settings.home / "store").exists()
    log = "".join(chunk["text"] for chunk in read_all(client, f"/jobs/{job_id}/logs"))
    assert SECRET not in log
    assert "AWS_" not in log


def test_what_is_deleted_is_gone_from_the_bucket(client: Client, tmp_path: Path) -> None:
    dataset_id = upload_script(client, tmp_path)
    assert list_keys(f"datasets/{dataset_id}/")

    assert client.http.delete(f"/datasets/{dataset_id}").is_success

    wait_until(lambda: not list_keys(f"datasets/{dataset_id}/"))


def test_rows_with_identifiers_leave_the_bucket_when_they_are_replaced(client: Client, tmp_path: Path) -> None:
    row = {"instruction": "Call the patient at (555) 201-3344.", "response": "yes"}
    dataset = client.upload(write_rows(tmp_path / "rows.jsonl", [row]), phi_policy="replace")
    assert client.wait_for_dataset(dataset["id"])["status"] == "ready"

    keys = wait_until(lambda: list_keys(f"datasets/{dataset['id']}/"), lambda found: len(found) == 1)

    content = boto3.client("s3").get_object(Bucket=BUCKET, Key=keys[0])["Body"].read()
    assert "555" not in json.loads(content)["instruction"]


def test_a_refused_upload_leaves_nothing_in_the_bucket(client: Client, tmp_path: Path) -> None:
    before = list_keys()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"instruction": "q", "response": "a"}\n' * 1000 + b"\xff")

    with pytest.raises(ApiError, match="file_not_utf8"):
        client.upload(path)

    assert list_keys() == before


def test_an_object_of_many_parts_comes_back_as_it_was(s3: str, tmp_path: Path) -> None:
    """Larger than what is sent at once."""
    store, content = Store(f"s3://{BUCKET}/here"), bytes(range(256)) * (40 << 12)
    (tmp_path / "large").write_bytes(content)

    written = store.put(tmp_path / "large", "parts/large")
    store.fetch("parts/large", tmp_path / "back")
    with store.open("parts/large") as file:
        streamed = io.BytesIO(file.read())

    assert written.num_bytes == len(content)
    assert (tmp_path / "back").read_bytes() == content == streamed.getvalue()
    store.delete("parts/large")
    store.delete("parts/large")
    assert not store.exists("parts/large")


def test_an_interrupted_write_leaves_nothing_in_the_bucket(s3: str) -> None:
    store = Store(f"s3://{BUCKET}/here")

    def write_half() -> None:
        with store.writing("a/b") as writer:
            writer.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()

    assert not store.exists("a/b")


def test_a_bucket_that_is_not_there_is_a_named_error(s3: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    with pytest.raises(StoreUnavailable):
        Store("s3://elsewhere/here").put(tmp_path / "file", "a")


ROW = b'{"instruction": "Is it so?", "response": "yes"}\n'


def put_into_lake(name: str, content: bytes) -> str:
    boto3.client("s3").put_object(Bucket=LAKE, Key=f"train/{name}", Body=content)
    return f"s3://{LAKE}/train/{name}"


def test_an_object_of_the_lake_becomes_a_dataset_with_its_own_bytes(client: Client) -> None:
    uri = put_into_lake("a/rows.jsonl", ROW)

    created = client.post("/datasets", {"uri": uri, "name": "From the lake"})
    dataset = client.wait_for_dataset(created["id"])

    assert (created["status"], created["sha256"], created["uri"]) == ("validating", None, uri)
    assert (dataset["status"], dataset["rows"], dataset["bytes"]) == ("ready", 1, len(ROW))
    assert (dataset["name"], dataset["filename"]) == ("From the lake", "rows.jsonl")
    assert dataset["sha256"] == hashlib.sha256(ROW).hexdigest()
    boto3.client("s3").delete_object(Bucket=LAKE, Key="train/a/rows.jsonl")
    assert len(list_keys(f"datasets/{dataset['id']}/")) == 1


def test_a_job_waits_for_the_files_that_it_refers_to(client: Client, root: Path) -> None:
    (root / "folder").mkdir()
    write_rows(root / "folder" / "train.jsonl", [{"instruction": json.dumps({"steps": 2}), "response": "yes"}])
    write_rows(root / "held out.jsonl", [{"instruction": "Is it?", "response": "no"}])
    uris = [f"file://{root}/folder/train.jsonl", f"file://{root}/held out.jsonl"]
    body = {"model": "tiny", "dataset": {"uri": uris[0]}, "validation": {"uri": uris[1]}}

    plan = client.post("/jobs", body, dry_run=True)
    created = [client.http.post("/jobs", json=body, headers={"Idempotency-Key": "once"}).json() for _ in range(2)]
    job = wait_for_status(client, created[0]["id"], "succeeded", "failed", seconds=60)

    assert plan["object"] == "plan"
    assert created[0]["id"] == created[1]["id"]
    assert job["status"] == "succeeded", job["reason"]
    events = [event["data"]["to"] for event in read_all(client, f"/jobs/{job['id']}/events") if "to" in event["data"]]
    assert events[:2] == ["validating", "queued"]
    names = [client.get(f"/datasets/{job[part]['id']}")["uri"] for part in ("dataset", "validation")]
    assert names == uris


def test_a_file_that_is_not_there_fails_the_job_with_the_reason(client: Client, root: Path) -> None:
    body = {"model": "tiny", "dataset": {"uri": f"file://{root}/missing.jsonl"}}
    missing = client.post("/datasets", {"uri": f"s3://{LAKE}/train/missing.jsonl"})

    job = wait_for_status(client, client.post("/jobs", body)["id"], "succeeded", "failed", seconds=60)

    assert job["reason"]["code"] == "dataset_rejected"
    for dataset_id in (job["dataset"]["id"], client.wait_for_dataset(missing["id"])["id"]):
        report = client.get(f"/datasets/{dataset_id}/report")
        assert [finding["code"] for finding in report["findings"]] == ["reference_not_found"]
        assert list_keys(f"datasets/{dataset_id}/") == []


def test_referenced_files_count_to_what_a_key_may_store(client: Client, service: Service, root: Path) -> None:
    write_rows(root / "limited.jsonl", [{"instruction": "Is it?", "response": "no"}])
    max_bytes = (root / "limited.jsonl").stat().st_size * 3 // 2
    key = client.post("/keys", {"name": "limited", "max_storage_bytes": max_bytes})["value"]
    with open_client(service.url, key) as limited:
        sent = [limited.post("/datasets", {"uri": f"file://{root}/limited.jsonl"})["id"] for _ in range(2)]
        checked = [limited.wait_for_dataset(dataset_id) for dataset_id in sent]
        refused = next(dataset["id"] for dataset in checked if dataset["status"] == "rejected")
        report = limited.get(f"/datasets/{refused}/report")

    assert sorted(dataset["status"] for dataset in checked) == ["ready", "rejected"]
    assert [finding["code"] for finding in report["findings"]] == ["storage_limit_reached"]
    assert list_keys(f"datasets/{refused}/") == []


def test_identifiers_of_a_referenced_file_never_reach_the_store(client: Client, root: Path) -> None:
    row = {"instruction": "Call the patient at (555) 201-3344.", "response": "yes"}
    write_rows(root / "calls.jsonl", [row])
    created = client.post("/datasets", {"uri": f"file://{root}/calls.jsonl", "phi_policy": "replace"})
    dataset = client.wait_for_dataset(created["id"])

    (key,) = list_keys(f"datasets/{dataset['id']}/")

    assert dataset["phi"]["replaced"]
    assert b"555" not in boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()


@pytest.mark.parametrize("uri", HOSTILE)
def test_a_reference_that_leads_elsewhere_makes_nothing(client: Client, uri: str) -> None:
    before = [client.get(path, limit=1)["data"] for path in ("/datasets", "/jobs")]
    bodies = [("/datasets", {"uri": uri}), ("/jobs", {"model": "tiny", "dataset": {"uri": uri}})]
    bodies.append(("/jobs", {"model": "tiny", "dataset": bodies[0][1], "validation": {"uri": uri}}))

    for path, body in bodies:
        response = client.http.post(path, json=body)
        assert response.status_code == 422
        assert response.json()["error"]["code"] in ("invalid_reference", "reference_outside_roots", "invalid_field")

    assert [client.get(path, limit=1)["data"] for path in ("/datasets", "/jobs")] == before


def test_a_body_that_is_no_reference_is_refused_by_its_field(client: Client) -> None:
    json_type = {"Content-Type": "application/json"}
    answers = [
        client.http.post("/datasets", json={"uri": "s3://lake/train/a", "path": "/etc"}),
        client.http.post("/datasets", json={"name": "none"}),
        client.http.post("/datasets", content=b"{", headers=json_type),
        client.http.post("/datasets", content=b"[" * 100_000, headers=json_type),
        client.http.post("/datasets", content=b'{"uri": "' + b"a" * (1 << 20) + b'"}', headers=json_type),
    ]

    assert [answer.status_code for answer in answers] == [422, 422, 422, 422, 413]
    assert [answer.json()["error"]["param"] for answer in answers[:2]] == ["path", "uri"]
