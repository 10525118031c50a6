"""A job is planned before it is queued: what it would take, and what could never work, by field and remedy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from cli.serve import Service
from jobs.database import Role, Sessions, tenant_transaction
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.models import Dataset, Job
from jobs.planning import JobPlan
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import DatasetStatus
from jobs.submission import plan_submission, submit_job
from jobs.task_queue import Queue
from jobs.workers import WorkerDescription, show_presence
from tests.factories import create_model_folder, wait_until, write_rows, write_weights
from tests.plain_client import ApiError, Client
from tests.unit.trainer_core.shapes import LLAMA_31_8B, list_llama_shapes
from trainer_core.planning.hardware import Hardware

GIB = 2**30

# --- Over HTTP, with a worker that has no GPU ---


@pytest.fixture
def dataset_id(client: Client, tmp_path: Path) -> str:
    rows = [{"instruction": "q" * 50, "response": "a" * 150}] * 100
    return str(client.wait_for_dataset(client.upload(write_rows(tmp_path / "rows.jsonl", rows))["id"])["id"])


def plan(client: Client, **request: Any) -> dict[str, Any]:
    return client.post("/jobs", {"model": "tiny", **request}, dry_run=True)


def test_a_dry_run_tells_what_the_job_would_take_and_queues_nothing(client: Client, dataset_id: str) -> None:
    before = [job["id"] for job in client.get("/jobs")["data"]]
    wait_until(lambda: plan(client, dataset={"id": dataset_id})["warnings"], lambda w: "no_worker" not in codes(w))
    training = {"epochs": 2, "max_seq_len": 1024, "global_batch_size": 4}

    answer = plan(client, dataset={"id": dataset_id}, training=training, validation={"fraction": 0.1})

    assert (answer["object"], answer["model"], answer["engine"]) == ("plan", "tiny", "one process")
    assert (answer["num_gpus"], answer["num_processes"], answer["gradient_checkpointing"]) == (0, 1, False)
    assert (answer["micro_batch_size"], answer["accumulation"], answer["micro_batch_tokens"]) == (1, 4, 1024)
    assert (answer["rows"], answer["num_tokens"], answer["num_steps"]) == (100, 2 * 6300, 4)
    assert answer["host_memory_bytes"] == answer["memory"]["peak"] > answer["memory"]["base"] > 0
    assert answer["disk_bytes"] > 5 * 6300
    assert codes(answer["warnings"]) == {"tokens_are_estimated"}
    assert [job["id"] for job in client.get("/jobs")["data"]] == before


def codes(warnings: list[dict[str, str]]) -> set[str]:
    return {warning["code"] for warning in warnings}


def test_the_answers_status_is_200(client: Client, dataset_id: str) -> None:
    body = {"model": "tiny", "dataset": {"id": dataset_id}}

    assert client.http.post("/jobs", json=body, params={"dry_run": "true"}).status_code == 200


@pytest.mark.parametrize(
    ("request_", "param", "code"),
    [
        ({"training": {"precision": "fp16"}}, "training.precision", "fp16_not_supported"),
        ({"training": {"chat_template": "mine"}}, "training.chat_template", "unknown_chat_template"),
        (
            {"training": {"deepspeed": {"stage": 1, "offload": "cpu"}}},
            "training.deepspeed.offload",
            "offload_needs_zero",
        ),
        (
            {"training": {"deepspeed": {"stage": 2, "config": {"wandb": {}}}}},
            "training.deepspeed.config.wandb",
            "deepspeed_key_not_allowed",
        ),
        ({"training": {"micro_batch_size": 3}}, "training.global_batch_size", "batch_sizes_do_not_divide"),
        ({"resources": {"gpus": 3}}, "training.global_batch_size", "batch_sizes_do_not_divide"),
        ({"resources": {"cpus": 3}}, "training.global_batch_size", "batch_sizes_do_not_divide"),
        ({"training": {"max_seq_len": 8192}}, "training.max_seq_len", "max_seq_len_too_long"),
        (
            {"training": {"lora": {"target_modules": ["query"]}}},
            "training.lora.target_modules",
            "target_modules_match_nothing",
        ),
        ({"training": {"early_stopping": {}}}, "training.early_stopping", "early_stopping_needs_validation"),
    ],
)
@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_what_could_not_train_is_refused_by_field_with_a_remedy(
    client: Client, dataset_id: str, request_: dict[str, Any], param: str, code: str, dry_run: str
) -> None:
    body = {"model": "tiny", "dataset": {"id": dataset_id}, **request_}

    response = client.http.post("/jobs", json=body, params={"dry_run": dry_run})

    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (422, param, code)
    assert error["details"]["remedy"]


def test_several_conflicts_are_told_together(client: Client, dataset_id: str) -> None:
    training = {"precision": "fp16", "deepspeed": {"offload": "nvme"}}
    with pytest.raises(ApiError, match="fp16_not_supported"):
        plan(client, dataset={"id": dataset_id}, training=training)

    body = {"model": "tiny", "dataset": {"id": dataset_id}, "training": training}
    conflicts = client.http.post("/jobs", json=body).json()["error"]["details"]["conflicts"]

    assert [conflict["field"] for conflict in conflicts] == ["precision", "deepspeed.offload"]
    assert all(conflict["remedy"] for conflict in conflicts)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("tokenizer.json", {"model": {"vocab": {"b": 99}}}, "vocabulary_too_small"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "model_already_quantized"),
        ("config.json", [], "model_files_damaged"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_and_listed_as_such(
    client: Client, service: Service, dataset_id: str, name: str, content: Any, code: str
) -> None:
    assert service.settings.models_dir is not None
    folder = create_model_folder(service.settings.models_dir / new_id("model"))
    (folder / name).write_text(json.dumps(content))

    response = client.http.post("/jobs", json={"model": folder.name, "dataset": {"id": dataset_id}})

    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (422, "model", code)
    [problem] = client.get(f"/models/{folder.name}")["problems"]
    assert problem["code"] == code


def test_a_model_that_breaks_is_refused_soon_and_taken_at_once_when_it_is_mended(
    client: Client, service: Service, dataset_id: str
) -> None:
    assert service.settings.models_dir is not None
    folder = create_model_folder(service.settings.models_dir / new_id("model"))
    config = (folder / "config.json").read_text()

    def send() -> dict[str, Any]:
        body = {"model": folder.name, "dataset": {"id": dataset_id}}
        answer: dict[str, Any] = client.http.post("/jobs?dry_run=true", json=body).json()
        return answer

    assert "error" not in send()
    (folder / "config.json").write_text("[]")
    refused = wait_until(send, lambda answer: "error" in answer, seconds=5)
    assert refused["error"]["code"] == "model_files_damaged"
    (folder / "config.json").write_text(config)
    assert "error" not in send()


def test_a_hubs_model_is_planned_without_its_shape(settings: Settings, plan_for: Callable[..., JobPlan]) -> None:
    settings.models_file = settings.home / "models.toml"
    settings.models_file.write_text('[[model]]\nid = "remote"\nsource = "someone/some-model"\n')

    planned = plan_for(model="remote")

    assert planned.plan.memory is None
    assert "model_shape_unknown" in planned.warnings


def test_the_command_shows_a_table_or_json(service: Service, dataset_id: str, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"model": "tiny", "dataset": {"id": dataset_id}, "training": {"quantization": "8bit"}}))

    table, raw = run_plan(service, file), run_plan(service, file, "--json")
    file.write_text(json.dumps({"model": "tiny", "dataset": {"id": dataset_id}, "training": {"precision": "fp16"}}))
    refused = run_plan(service, file)

    assert "one process on CPU" in table.stdout
    assert "note: 8bit" in table.stdout
    assert json.loads(raw.stdout)["quantization"] == "8bit"
    assert refused.returncode == 1
    assert "Use 'bf16'" in refused.stderr
    assert "Traceback" not in refused.stderr


def run_plan(service: Service, *arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MEDTUNE_PUBLIC_URL": service.url, "MEDTUNE_API_KEY": service.key}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "plan", *map(str, arguments)],
        env={**environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# --- With workers that say what they have ---


@pytest.fixture
def large(settings: Settings) -> str:
    """The 8B's shapes, which take 16 GB and no room."""
    assert settings.models_dir is not None
    folder = create_model_folder(settings.models_dir / "large", **LLAMA_31_8B)
    write_weights(folder / "model.safetensors", list_llama_shapes(LLAMA_31_8B))
    return "large"


@pytest.fixture
def add_worker(open_sessions: Callable[[Role], Sessions]) -> Callable[..., None]:
    sessions = open_sessions(Role.WORKER)

    def add(num_gpus: int, queue: Queue = Queue.TRAIN, host_gib: int = 256, **hardware: Any) -> None:
        described = Hardware(host_memory_bytes=host_gib * GIB, **hardware)
        with sessions.begin() as session:
            show_presence(session, WorkerDescription(new_id("worker"), queue, "host", 1, num_gpus, described))

    return add


@pytest.fixture
def plan_for(api: Sessions, identity: Identity, settings: Settings) -> Callable[..., JobPlan]:
    """Plans a job on 20 million characters."""

    def plan_(report: dict[str, Any] | None = None, **request: Any) -> JobPlan:
        statistics = {"characters": 20_000_000, "longest_row_characters": 100_000}
        dataset_id = add_dataset(api, identity, {"statistics": statistics} if report is None else report)
        spec = JobSpec.model_validate({"dataset": {"id": dataset_id}, **request})
        with tenant_transaction(api, identity.tenant_id) as session:
            return plan_submission(session, settings, spec)

    return plan_


def add_dataset(api: Sessions, identity: Identity, report: dict[str, Any]) -> str:
    """Checked if there is a report."""
    dataset_id = new_id("ds")
    with tenant_transaction(api, identity.tenant_id) as session:
        session.add(
            Dataset(
                id=dataset_id,
                tenant_id=identity.tenant_id,
                name="rows",
                filename="rows.jsonl",
                status=DatasetStatus.READY if report else DatasetStatus.VALIDATING,
                store_key="none",
                num_bytes=1,
                sha256="",
                num_rows=10_000 if report else None,
                report=report or None,
                created_by=identity.key_id,
            )
        )
    return dataset_id


def test_the_plan_is_for_the_worker_that_has_most_memory_among_those_with_enough_gpus(
    large: str, add_worker: Callable[..., None], plan_for: Callable[..., JobPlan]
) -> None:
    add_worker(8, gpu_name="small", gpu_memory_bytes=24 * GIB)
    add_worker(1, gpu_name="big", gpu_memory_bytes=80 * GIB)
    add_worker(8, Queue.CHECK, gpu_name="not for training", gpu_memory_bytes=200 * GIB)

    one, eight = (plan_for(model=large, resources={"gpus": gpus}) for gpus in (1, 8))

    assert (one.hardware.gpu_name, one.plan.gradient_checkpointing) == ("big", False)
    assert (eight.hardware.gpu_name, eight.plan.gradient_checkpointing) == ("small", True)
    assert plan_for(model=large).num_gpus == 1


def test_what_fits_no_worker_is_refused_with_the_nearest_that_would(
    api: Sessions, identity: Identity, settings: Settings, large: str, add_worker: Callable[..., None]
) -> None:
    add_worker(1, gpu_name="small", gpu_memory_bytes=12 * GIB)
    dataset_id = add_dataset(api, identity, {"statistics": {"characters": 10**7, "longest_row_characters": 10**4}})
    spec = JobSpec.model_validate({"model": large, "dataset": {"id": dataset_id}})

    with pytest.raises(InvalidRequest) as caught, tenant_transaction(api, "a") as session:
        submit_job(session, identity, settings, spec)

    assert (caught.value.code, caught.value.param) == ("does_not_fit", "training")
    assert "12.0 GiB" in caught.value.message
    assert "quantization '4bit'" in caught.value.details["remedy"]


@pytest.mark.parametrize(
    ("gpus", "hardware"), [(1, None), (1, {"gpu_name": "unknown"}), (2, {"gpu_memory_bytes": GIB})]
)
def test_nothing_is_too_large_where_no_memory_is_known(
    large: str,
    add_worker: Callable[..., None],
    plan_for: Callable[..., JobPlan],
    gpus: int,
    hardware: dict[str, Any] | None,
) -> None:
    """No worker, one that does not know its memory, one that has too few GPUs."""
    if hardware is not None:
        add_worker(1, **hardware)

    planned = plan_for(model=large, resources={"gpus": gpus})

    assert planned.plan.memory is not None
    assert "memory_unknown" in planned.warnings
    assert ("no_worker" in planned.warnings) is (hardware is None or gpus == 2)


def test_unpacked_rows_are_as_long_as_the_longest_and_unknown_until_checked(
    large: str, add_worker: Callable[..., None], plan_for: Callable[..., JobPlan]
) -> None:
    add_worker(1, gpu_memory_bytes=24 * GIB)
    training = {"packing": False, "max_seq_len": 131072}
    short = {"statistics": {"characters": 10**6, "longest_row_characters": 1000}}

    checked, unchecked = plan_for(short, model=large, training=training), plan_for({}, model=large, training=training)

    assert checked.plan.micro_batch_tokens == 270 * checked.plan.micro_batch_size
    assert (unchecked.plan.num_steps, "rows_not_checked" in unchecked.warnings) == (None, True)
    with pytest.raises(InvalidRequest, match=r"24\.0 GiB"):
        plan_for(model=large, training={**training, "packing": True})


def test_the_plan_says_how_many_rows_are_too_long(plan_for: Callable[..., JobPlan]) -> None:
    statistics = {"characters": 10**6, "longest_row_characters": 5000, "lengths": {"1024": 900, "4096": 70, "5792": 30}}
    old = {"statistics": {"characters": 10**6, "longest_row_characters": 5000}}

    def forecast(max_seq_len: int, report: dict[str, Any] | None = None, **training: str) -> str | None:
        training = {"max_seq_len": max_seq_len, **training}  # type: ignore[dict-item]
        planned = plan_for(report or {"statistics": statistics}, model="tiny", training=training)
        return planned.warnings.get("rows_may_be_too_long")

    assert "About 100 of 10,000 rows" in str(forecast(512))
    assert "would be left out; the longest has about 1,270." in str(forecast(512))
    assert "About 30 of 10,000 rows" in str(forecast(1044, truncation="split"))
    assert "cut into several" in str(forecast(1044, truncation="split"))
    assert forecast(1270) is None
    assert forecast(512, old) is None


def test_early_stopping_needs_rows_that_are_held_out(
    api: Sessions, identity: Identity, plan_for: Callable[..., JobPlan]
) -> None:
    training = {"early_stopping": {"patience": 2}}
    held_out = add_dataset(api, identity, {"statistics": {"characters": 100, "longest_row_characters": 10}})

    with pytest.raises(InvalidRequest) as caught:
        plan_for(model="tiny", training=training)

    assert (caught.value.code, caught.value.param) == ("early_stopping_needs_validation", "training.early_stopping")
    assert plan_for(model="tiny", training=training, validation={"id": held_out})
    assert plan_for(model="tiny", training=training, validation={"fraction": 0.1})


def test_warnings_tell_of_a_full_disk_a_large_scale_and_8_bits(
    large: str, add_worker: Callable[..., None], plan_for: Callable[..., JobPlan]
) -> None:
    add_worker(2, gpu_memory_bytes=80 * GIB, disk_free_bytes=10**9)
    training = {
        "quantization": "8bit",
        "lora": {"variant": "rslora", "r": 64, "alpha": 128},
        "deepspeed": {"stage": 3},
    }

    planned = plan_for(model=large, training=training, resources={"gpus": 2})

    expected = {"tokens_are_estimated", "disk_may_be_full", "8bit_is_slow", "8bit_is_not_cut", "scale_is_large"}
    assert set(planned.warnings) == expected


def test_the_throughput_is_the_median_of_recent_jobs_of_the_kind(
    api: Sessions, open_sessions: Callable[[Role | None], Sessions], identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity, {"statistics": {"characters": 4000, "longest_row_characters": 40}})
    spec = JobSpec.model_validate({"model": "tiny", "dataset": {"id": dataset_id}})
    owner = open_sessions(None)
    for tokens_per_second in (10.0, 20.0, 900.0):
        with tenant_transaction(api, "a") as session:
            job_id = submit_job(session, identity, settings, spec).id
        with owner.begin() as session:
            session.execute(text("ALTER TABLE jobs DISABLE TRIGGER guard_job"))  # Nothing ever ran.
            finished = {"status": "succeeded", "finished_at": Job.created_at}
            metrics = {"tokens_per_second": tokens_per_second}
            session.execute(update(Job).where(Job.id == job_id).values(metrics=metrics, **finished))

    with tenant_transaction(api, "a") as session:
        planned = plan_submission(session, settings, spec)

    assert planned.plan.num_tokens is not None
    assert planned.plan.seconds == planned.plan.num_tokens / 20
