"""Whatever is wrong with a request: a clear 4xx that names the field, and nothing left behind."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cli.serve import Service
from tests.factories import create_model_folder, upload_script, wait_until
from tests.plain_client import Client

ABSENT = "ds_00000000000000000000000000"


@pytest.fixture(scope="module")
def dataset_id(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    client = Client(service.url, service.key)
    try:
        return upload_script(client, tmp_path_factory.mktemp("rows"))
    finally:
        client.close()


def refuse(client: Client, body: Any, status: int) -> dict[str, Any]:
    before = client.get("/jobs")["data"]
    response = client.http.post("/jobs", json=body)
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (status, {"message", "type", "param", "code", "details"}), error
    assert client.get("/jobs")["data"] == before
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"colour": "red"}, "colour", "unknown_field"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat", "unknown_field"),
        ({"training": {"lora": {"rank": 8}}}, "training.lora.rank", "unknown_field"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate", "invalid_field"),
        ({"training": {"max_steps": 0}}, "training.max_steps", "invalid_field"),
        ({"training": {"quantization": "3bit"}}, "training.quantization", "invalid_field"),
        ({"training": {"deepspeed": {"stage": 0}}}, "training.deepspeed.stage", "invalid_field"),
        ({"model": 7}, "model", "invalid_field"),
        ({"model": None}, "model", "invalid_field"),
        ({"dataset": {"id": "../../etc/passwd"}}, "dataset.id", "invalid_field"),
        ({"dataset": {"uri": "file:///etc/passwd"}}, "dataset.uri", "references_are_off"),
        ({"validation": {"fraction": 0.9}}, "validation.fraction", "invalid_field"),
        ({"validation": {}}, "validation", "invalid_field"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_field"),
        ({"name": "a\u0000b"}, "body", "invalid_field"),
        ({"safety": {"every_steps": 0}}, "safety.every_steps", "invalid_field"),
        ({"priority": 10**30}, "priority", "invalid_field"),
    ],
)
def test_a_wrong_field_is_named(
    client: Client, dataset_id: str, change: dict[str, Any], param: str | None, code: str
) -> None:
    error = refuse(client, {"model": "tiny", "dataset": {"id": dataset_id}, **change}, 422)

    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("body", [[], "text", 7, None])
def test_a_body_that_is_no_object_is_refused(client: Client, body: Any) -> None:
    refuse(client, body, 422)


def test_broken_json_is_refused(client: Client) -> None:
    response = client.http.post("/jobs", content=b'{"model": ', headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_field")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/fine_tuning/jobs", {"model": "tiny", "training_file": "\ud800"}),
        (
            "/v1/fine_tuning/jobs",
            {"model": "tiny", "training_file": "file-x", "medtune": {"training": {"x": "\ud800"}}},
        ),
        ("/v1/uploads", {"bytes": 3, "filename": "a", "mime_type": "\ud800", "purpose": "fine-tune"}),
        ("/v1/uploads", {"bytes": 3, "filename": "a", "mime_type": "", "purpose": "\udc00"}),
        (
            "/v1/uploads",
            {"bytes": 3, "filename": "a", "mime_type": "", "purpose": "fine-tune", "medtune": {"name": "\udc00"}},
        ),
    ],
)
def test_half_a_surrogate_pair_is_refused(client: Client, path: str, body: Any) -> None:
    response = client.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("field", ["dataset", "validation"])
def test_an_absent_dataset_is_refused(client: Client, dataset_id: str, field: str) -> None:
    body = {"model": "tiny", "dataset": {"id": dataset_id}, field: {"id": ABSENT}}

    error = refuse(client, body, 404)

    assert (error["param"], error["code"]) == (f"{field}.id", "dataset_not_found")


@pytest.mark.parametrize("model", ["unknown", "../tiny", "/etc", "tiny/", ".", "TINY"])
def test_an_unknown_model_is_refused(client: Client, dataset_id: str, model: str) -> None:
    error = refuse(client, {"model": model, "dataset": {"id": dataset_id}}, 422)

    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("config.json", "model_config_missing"),
        ("model.safetensors", "model_weights_missing"),
        ("tokenizer.json", "model_tokenizer_missing"),
    ],
)
def test_a_model_folder_that_cannot_be_trained_is_refused_at_once(
    client: Client, service: Service, dataset_id: str, missing: str, code: str
) -> None:
    assert service.settings.models_dir is not None
    name = f"without-{missing.replace('.', '-')}"
    folder = create_model_folder(service.settings.models_dir / name)
    (folder / missing).unlink()

    error = refuse(client, {"model": name, "dataset": {"id": dataset_id}}, 422)

    assert (error["param"], error["code"]) == ("model", code)
    assert error["details"]["remedy"]
    assert str(service.settings.models_dir) not in json.dumps(error)
    assert client.get(f"/models/{name}")["trainable"] is False


@pytest.mark.parametrize(
    ("name", "content", "status", "code"),
    [
        ("rows.jsonl", b"", 422, "file_empty"),
        ("rows.jsonl", b'{"instruction": "caf\xe9"}\n', 422, "file_not_utf8"),
        ("rows.jsonl", b'{"instruction": "' + b"\xf0\x9f", 422, "file_not_utf8"),
        ("rows.jsonl", b"{" * (3 << 20) + b"{", 413, "file_too_large"),
        ("rows.jsonl", b"{" * (5 << 20), 413, "too_large"),
        ("rows.csv", "prompt,completion\nQ,café\n".encode("latin-1"), 422, "file_not_utf8"),
        ("rows.csv", b"question,answer\n", 422, "unsupported_file_type"),
        ("rows.jsonl", b"\x89PNG\r\n\x1a\n", 422, "unsupported_file_type"),
        ("rows.jsonl", b"PK\x03\x04", 422, "unsupported_file_type"),
        ("rows.jsonl", b"%PDF-1.7\n", 422, "unsupported_file_type"),
        ("rows.jsonl", pickle.dumps({}), 422, "unsupported_file_type"),
    ],
    ids=[
        "empty",
        "latin1",
        "cut",
        "over the limit",
        "far over the limit",
        "latin1 CSV",
        "unknown columns",
        "png",
        "zip",
        "pdf",
        "pickle",
    ],
)
def test_a_file_that_is_no_dataset_leaves_nothing_behind(
    client: Client, service: Service, name: str, content: bytes, status: int, code: str
) -> None:
    store = service.settings.home / "store"
    before = client.get("/datasets", limit=1000)["data"], sorted(store.rglob("data"))

    response = client.http.post("/datasets", files={"file": (name, content)})

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert (client.get("/datasets", limit=1000)["data"], sorted(store.rglob("data"))) == before


def test_an_upload_without_a_file_or_with_another_field_is_refused(client: Client) -> None:
    nothing = client.http.post("/datasets", data={"name": "x"})
    other = client.http.post("/datasets", files={"file": ("a.jsonl", b"{}")}, data={"colour": "red"})

    assert (nothing.status_code, nothing.json()["error"]["param"]) == (422, "file")
    assert (other.status_code, other.json()["error"]["param"]) == (422, "colour")


def test_an_upload_without_a_key_is_refused_before_its_body(service: Service) -> None:
    anonymous = Client(service.url, "mt_wrong")

    response = anonymous.http.post("/datasets", files={"file": ("a.jsonl", b"x" * (2 << 20))})
    anonymous.close()

    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/jobs", "/dashboard/sign-in", "/nowhere"])
def test_only_the_upload_route_takes_large_bodies(service: Service, path: str) -> None:
    """Others read before they ask for the key, so they must not read much."""
    anonymous = Client(service.url, "mt_wrong")

    response = anonymous.http.post(path, files={"file": ("a.jsonl", b"x" * (2 << 20))})
    anonymous.close()

    assert response.status_code in (413, 401)


def test_broken_rows_reject_the_dataset_by_line(client: Client, tmp_path: Path) -> None:
    good = json.dumps({"instruction": "q", "response": "a"})
    lines = [good, "", '{"instruction": "broken', '{"instruction": "no answer"}', "[1]", good]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")

    dataset = client.wait_for_dataset(client.upload(path)["id"])
    report = client.get(f"/datasets/{dataset['id']}/report")

    assert dataset["status"] == "rejected"
    assert [finding["line"] for finding in report["findings"]] == [3, 4, 5]
    assert "broken" not in json.dumps(report)
    assert report["rows"] == 5


def test_a_dataset_in_use_cannot_be_deleted_and_a_free_one_can(
    client: Client, service: Service, tmp_path: Path
) -> None:
    used = upload_script(client, tmp_path)
    job = client.post("/jobs", {"model": "tiny", "dataset": {"id": used}})
    free = upload_script(client, tmp_path)

    refused = client.http.delete(f"/datasets/{used}")
    deleted = client.http.delete(f"/datasets/{free}")

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "dataset_in_use")
    assert refused.headers["x-should-retry"] == "false"
    assert (deleted.json()["subject"], deleted.json()["deleted"]) == (free, True)
    wait_until(lambda: not (service.settings.home / "store" / "datasets" / free / "data").exists())
    assert client.http.get(f"/datasets/{free}").status_code == 404
    wait_until(lambda: client.get(f"/jobs/{job['id']}")["status"], lambda status: status == "succeeded")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/jobs/job_none", 404),
        ("GET", "/jobs/%00", 422),
        ("GET", "/datasets/..%2F..%2Fetc", 404),
        ("GET", "/nowhere", 404),
        ("DELETE", "/jobs", 405),
        ("GET", "/jobs?limit=0", 422),
        ("GET", "/jobs?after=%00", 422),
        ("GET", "/jobs?status=done", 422),
        ("GET", "/jobs/job_none/logs?after=-1", 422),
        ("GET", "/jobs/job_none/logs?after=99999999999999999999", 422),
        ("POST", "/jobs?dry_run=true", 422),
    ],
)
def test_odd_addresses_get_clear_errors(client: Client, method: str, path: str, status: int) -> None:
    response = client.http.request(method, path)

    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code", "details"}


def test_a_json_body_over_a_megabyte_is_refused(client: Client) -> None:
    response = client.http.post("/jobs", json={"model": "x" * (1 << 20)})

    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
