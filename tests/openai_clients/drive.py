"""Drives a service with whichever `openai` package is on the path, in the words of any program that uses one.

`python drive.py VERSION URL KEY`; an assertion that fails ends it.
"""

import csv
import hashlib
import http.client
import http.server
import importlib
import io
import json
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

openai: Any = importlib.import_module("openai")
"""By name, because types differ between versions."""

STEPS = 300
SLOW = {"steps": STEPS, "step_seconds": 1, "slow_attempts": 1}
"""There is all the time to pause it; after that it ends at once."""
DEADLINE_SECONDS = 300


def main(version: str, url: str, key: str) -> None:
    assert openai.__version__ == version, openai.__version__
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    check_errors(client, url)
    training_file = upload(client, SLOW)
    check_models(client)
    job = drive_job(client, training_file)
    check_results(client, job)
    check_lists(client, job)
    check_silent_retry(client, url, key, training_file)
    check_uploads(client)


def upload(client: Any, script: dict[str, Any]) -> str:
    row = {"instruction": json.dumps(script), "response": "yes"}
    content = json.dumps(row).encode() + b"\n"
    file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "rows.jsonl", "fine-tune")
    file = client.files.wait_for_processing(file.id, poll_interval=0.1, max_wait_seconds=DEADLINE_SECONDS)
    assert file.status == "processed", file
    assert client.files.content(file.id).read() == content
    return str(file.id)


def drive_job(client: Any, training_file: str) -> Any:
    jobs = client.fine_tuning.jobs
    job = jobs.create(
        model="tiny",
        training_file=training_file,
        suffix="heart",
        seed=7,
        metadata={"version": openai.__version__},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5, "batch_size": "auto"}},
        },
        extra_body={"medtune": {"training": {"lora": {"r": 4}}, "priority": 3}},
    )
    assert job.object == "fine_tuning.job"
    assert job.id.startswith("ftjob-")
    assert (job.model, job.seed, job.training_file, job.validation_file) == ("tiny", 7, training_file, None)
    parameters = job.hyperparameters
    assert (parameters.n_epochs, parameters.batch_size, parameters.learning_rate_multiplier) == (2, 16, 0.5)
    assert (job.fine_tuned_model, job.finished_at, job.result_files, job.error) == (None, None, [], None)
    assert job.medtune["training"]["lora"]["r"] == 4
    assert job.medtune["training"]["learning_rate"] == 1e-4

    wait(lambda: jobs.retrieve(job.id), lambda job: job.status == "running")
    wait(lambda: [e for e in jobs.list_events(job.id) if e.type == "metrics"], bool)
    jobs.pause(job.id)
    wait(lambda: jobs.retrieve(job.id), lambda job: job.status == "paused")
    checkpoint = wait(lambda: jobs.checkpoints.list(job.id).data, bool)[0]
    assert checkpoint.fine_tuning_job_id == job.id
    assert checkpoint.metrics.train_loss == 3 / checkpoint.step_number
    assert jobs.resume(job.id).status == "queued"
    job = wait(lambda: jobs.retrieve(job.id), lambda job: job.status in ("succeeded", "failed", "cancelled"))
    assert job.status == "succeeded", job
    return job


def check_results(client: Any, job: Any) -> None:
    assert job.trained_tokens == 100 * STEPS
    assert job.finished_at >= job.created_at
    metrics, adapter = job.result_files
    table = list(csv.DictReader(io.StringIO(client.files.content(metrics).text)))
    assert [int(line["step"]) for line in table] == list(range(1, STEPS + 1))
    assert float(table[-1]["train_loss"]) == 3 / STEPS
    assert client.files.retrieve(metrics).purpose == "fine-tune-results"
    archive = client.files.content(adapter).read()
    assert client.files.retrieve(adapter).bytes == len(archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert "adapter/adapter_model.safetensors" in tar.getnames()
    assert job.fine_tuned_model.split(":")[:4:3] == ["ft", "heart"]
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    for result in job.result_files:
        refuse(openai.BadRequestError, "file_is_a_result", client.files.delete, result)
    refuse(openai.ConflictError, "job_is_final", client.fine_tuning.jobs.cancel, job.id)
    assert client.models.delete(job.fine_tuned_model).deleted
    refuse(openai.NotFoundError, "model_not_found", client.models.retrieve, job.fine_tuned_model)


def check_lists(client: Any, job: Any) -> None:
    """With pages that are smaller than what there is."""
    jobs = client.fine_tuning.jobs
    events = list(jobs.list_events(job.id, limit=100))
    assert len({event.id for event in events}) == len(events)
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert set(steps) == set(range(1, STEPS + 1))
    assert steps == sorted(steps, reverse=True)
    assert "succeeded" in [event.data.get("to") for event in events]
    assert [event.created_at for event in events] == sorted((e.created_at for e in events), reverse=True)
    checkpoints = list(jobs.checkpoints.list(job.id, limit=1))
    assert next(point.step_number for point in checkpoints) == STEPS
    assert len({point.id for point in checkpoints}) == len(checkpoints)

    ids = [upload(client, {"steps": n}) for n in range(3)]
    found = [file.id for file in client.files.list(limit=2, order="desc", purpose="fine-tune")]
    assert found[:3] == ids[::-1]
    oldest_first = client.files.list(limit=2, order="asc", after=ids[0])
    assert [file.id for file in oldest_first] == ids[1:]
    refuse(openai.ConflictError, "dataset_in_use", client.files.delete, job.training_file)
    assert client.files.delete(ids[0]).deleted
    refuse(openai.NotFoundError, "dataset_not_found", client.files.retrieve, ids[0])
    label = {"metadata[version]": openai.__version__}
    assert [found.id for found in jobs.list(limit=1, extra_query=label)] == [job.id]


def check_models(client: Any) -> None:
    assert "tiny" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny").object == "model"


def check_errors(client: Any, url: str) -> None:
    create = client.fine_tuning.jobs.create
    unknown = "file-" + "0" * 26
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="mt_wrong")
    refuse(openai.AuthenticationError, "invalid_api_key", stranger.models.list)
    refuse(openai.NotFoundError, "job_not_found", client.fine_tuning.jobs.retrieve, "ftjob-" + "0" * 26)
    refuse(openai.NotFoundError, "file_not_found", client.files.retrieve, "file-abc")
    refuse(openai.NotFoundError, "model_not_found", client.models.retrieve, "meta/none")
    error = refuse(openai.BadRequestError, "model_not_found", create, model="none", training_file=unknown)
    assert error.param == "model"
    error = refuse(openai.NotFoundError, "dataset_not_found", create, model="tiny", training_file=unknown)
    assert error.param == "training_file"
    body = {"medtune": {"training": {"lora": {"r": -1}}}}
    error = refuse(
        openai.BadRequestError, "invalid_field", create, model="tiny", training_file=unknown, extra_body=body
    )
    assert error.param == "medtune.training.lora.r"
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}
    error = refuse(
        openai.BadRequestError, "method_not_supported", create, model="tiny", training_file=unknown, method=method
    )
    assert error.param == "method.type"
    rows = ("rows.jsonl", b'{"instruction": "q", "response": "a"}\n')
    refuse(openai.BadRequestError, "purpose_not_supported", client.files.create, file=rows, purpose="vision")
    refuse(
        openai.BadRequestError, "unsupported_file_type", client.files.create, file=("x", b"\0\1"), purpose="fine-tune"
    )


def refuse(kind: type[Exception], code: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The error, which must be of this class and code."""
    try:
        answer = call(*args, **kwargs)
    except kind as error:
        refusal: Any = error
    else:
        raise AssertionError(f"{call} was not refused, but answered {answer}")
    assert refusal.code == code, refusal
    return refusal


def check_silent_retry(client: Any, url: str, key: str, training_file: str) -> None:
    """The first answer is lost on its way; the client sends the job once more, and nobody asked it to."""
    with LosingProxy(url) as proxy:
        by_proxy = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=key)
        label = {"of": f"lost-{openai.__version__}"}
        job = by_proxy.fine_tuning.jobs.create(model="tiny", training_file=training_file, metadata=label)
    assert proxy.retries == ["0", "1"]
    found = list(client.fine_tuning.jobs.list(extra_query={"metadata[of]": label["of"]}))
    assert [found.id for found in found] == [job.id]
    client.fine_tuning.jobs.cancel(job.id)


def check_uploads(client: Any) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]
    rows = b"".join(json.dumps({"messages": chat, "number": number}).encode() + b"\n" for number in range(10))
    parts = [rows[:100], rows[100:101], rows[101:]]

    def begin() -> tuple[str, list[str]]:
        """With its parts in another order than that of the file."""
        upload = client.uploads.create(
            bytes=len(rows), filename="parts.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
        assert (upload.object, upload.status, upload.expires_at) == ("upload", "pending", upload.created_at + 3600)
        sent = [client.uploads.parts.create(upload.id, data=part).id for part in reversed(parts)]
        return upload.id, sent[::-1]

    upload, part_ids = begin()
    md5 = hashlib.md5(rows).hexdigest()
    complete = client.uploads.complete
    refuse(openai.BadRequestError, "md5_mismatch", complete, upload, part_ids=part_ids, md5="0" * 32)
    refuse(openai.BadRequestError, "upload_incomplete", complete, upload, part_ids=part_ids[:2])
    refuse(openai.NotFoundError, "part_not_found", complete, upload, part_ids=["part_x"])
    done = complete(upload, part_ids=part_ids, md5=md5)
    assert (done.status, done.file.filename, done.file.bytes) == ("completed", "parts.jsonl", len(rows))
    client.files.wait_for_processing(done.file.id, poll_interval=0.1, max_wait_seconds=DEADLINE_SECONDS)
    assert client.files.content(done.file.id).read() == rows
    assert complete(upload, part_ids=part_ids, md5=md5).file.id == done.file.id
    refuse(openai.ConflictError, "upload_is_closed", client.uploads.cancel, upload)

    by_the_package = client.uploads.upload_file_chunked(
        file=rows, filename="chunked.jsonl", bytes=len(rows), mime_type="application/jsonl", purpose="fine-tune"
    )
    assert (by_the_package.status, by_the_package.file.filename) == ("completed", "chunked.jsonl")

    upload, part_ids = begin()
    assert client.uploads.cancel(upload).status == "cancelled"
    refuse(openai.ConflictError, "upload_is_closed", complete, upload, part_ids=part_ids)
    refuse(openai.ConflictError, "upload_is_closed", client.uploads.parts.create, upload, data=b"x")


class LosingProxy:
    """Passes requests on, and lets the answer to the first of them get lost."""

    def __init__(self, target: str) -> None:
        self.retries: list[str] = []
        retries, address = self.retries, urlsplit(target).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                retries.append(self.headers["x-stainless-retry-count"])
                connection = http.client.HTTPConnection(address)
                connection.request("POST", self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if len(retries) == 1:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody needs to read it."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LosingProxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def wait(read: Callable[[], Any], is_done: Callable[[Any], object]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_done(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.1)
    return value


if __name__ == "__main__":
    main(*sys.argv[1:])
