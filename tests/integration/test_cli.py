"""The client commands and the Python client, against an API process that is killed meanwhile."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import build_app, find_command
from cli.serve import MEDTUNE, find_free_port
from jobs.spec import DatasetReference
from jobs.status import JobStatus
from medtune import ApiError, Client, JobSpec
from tests.conftest import Servers
from tests.factories import wait_until
from tests.integration.api_process import STARTS_SECONDS, Api, run_api
from tests.integration.rows import add_dataset


@pytest.fixture(scope="module")
def api(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    allowed = {"webhook_allowed_networks": [IPv4Network("127.0.0.1/32")], "webhook_allow_http": True}
    yield from run_api(servers, tmp_path_factory.mktemp("cli"), **allowed)


@dataclass
class Running:
    """A command whose output can be read while it runs."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def wait_for(self, words: str) -> None:
        """On standard error or standard output."""
        wait_until(lambda: self.err.read_text() + self.out.read_text(), lambda text: words in text, STARTS_SECONDS)

    def end(self) -> tuple[int, str, str]:
        code = self.process.wait(STARTS_SECONDS)
        return code, self.out.read_text(), self.err.read_text()


@contextmanager
def start(api: Api, key: str, folder: Path, *words: str, **environment: str) -> Iterator[Running]:
    out, err = folder / f"{words[0]}.out", folder / f"{words[0]}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*MEDTUNE, *words], env=build_environment(api, key) | environment, stdout=stdout, stderr=stderr
        )
    try:
        yield Running(process, out, err)
    finally:
        process.kill()
        process.wait(STARTS_SECONDS)


def run(api: Api, key: str, *words: str, code: int = 0, environment: dict[str, str] | None = None) -> str:
    """In this process. What it says; on standard error when it fails."""
    variables = build_environment(api, key) | (environment or {})
    done = CliRunner().invoke(build_app(find_command(words)), words, env=variables)
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


def build_environment(api: Api, key: str) -> dict[str, str]:
    wide = {"COLUMNS": "300", "XDG_CONFIG_HOME": str(api.settings.home)}
    return {**os.environ, **wide, "MEDTUNE_PUBLIC_URL": api.url, "MEDTUNE_API_KEY": key}


def test_waiting_and_following_outlive_a_restart_of_the_api(api: Api, tmp_path: Path) -> None:
    """Nothing is printed twice, and nothing that came meanwhile is lost."""
    identity, key = api.create_key()
    lease = api.start_job(identity)
    for number in range(1, 4):
        api.write(lease, number)
    with (
        start(api, key, tmp_path, "logs", "-f", lease.job_id) as logs,
        start(api, key, tmp_path, "wait", lease.job_id) as waiting,
    ):
        logs.wait_for("line 3")
        waiting.wait_for("starting")
        api.end(signal.SIGKILL)
        api.write(lease, 4)
        for command in (logs, waiting):
            command.wait_for("does not answer")
        api.start()
        api.write(lease, 5)
        logs.wait_for("line 5")
        api.write(lease, 6)
        api.finish(lease)
        followed, waited = logs.end(), waiting.end()

    assert followed[:2] == (0, "".join(f"line {number}\n" for number in range(1, 7)))
    assert waited[:2] == (1, f"{lease.job_id} failed, it broke\n")
    for _, _, told in (followed, waited):
        assert told.count("trying again") == 1
        assert "Traceback" not in told


def test_a_service_that_stays_away_is_given_up_after_the_time_that_was_told(api: Api, tmp_path: Path) -> None:
    identity, key = api.create_key()
    job_id = api.start_job(identity).job_id
    with start(api, key, tmp_path, "wait", job_id, "--patience", "0.5") as waiting:
        waiting.wait_for("starting")
        api.end(signal.SIGKILL)
        code, out, err = waiting.end()
    api.start()

    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"medtune: given up after 0.5 s: {api.url} does not answer: ")


def test_a_service_that_never_answered_is_given_up_at_once(api: Api) -> None:
    url = f"http://127.0.0.1:{find_free_port('127.0.0.1')}"

    assert run(api, "mt_x", "--url", url, "wait", "job_x", code=1).startswith(f"medtune: {url} does not answer: ")


def test_a_terminal_sees_a_bar_with_steps_loss_and_the_time_that_is_left(api: Api, tmp_path: Path) -> None:
    identity, key = api.create_key()
    lease = api.start_job(identity)
    api.start_training(lease, step=7, max_steps=20, eta_seconds=65)
    with start(api, key, tmp_path, "wait", lease.job_id, FORCE_COLOR="1", NO_COLOR="1") as waiting:
        for words in ("running", "step 7/20", "loss 1.000", "ETA 0:01:05", "━"):
            waiting.wait_for(words)
        api.finish(lease)
        assert waiting.end()[0] == 1


def test_what_is_no_terminal_gets_a_line_for_each_change(api: Api, tmp_path: Path) -> None:
    identity, key = api.create_key()
    lease = api.start_job(identity)
    with start(api, key, tmp_path, "wait", lease.job_id) as waiting:
        waiting.wait_for("starting")
        api.start_training(lease, step=7, max_steps=20, eta_seconds=65)
        waiting.wait_for("ETA")
        api.finish(lease)
        _, _, err = waiting.end()

    assert err.splitlines() == [
        f"{lease.job_id} starting",
        f"{lease.job_id} running, step 7/20, loss 1.000, ETA 0:01:05",
        f"{lease.job_id} failed, step 7/20, loss 1.000",
    ]


def test_tables_are_json_when_asked(api: Api) -> None:
    identity, key = api.create_key()
    job_id = api.start_job(identity).job_id

    table = run(api, key, "jobs", "--status", "starting")
    page = json.loads(run(api, key, "jobs", "--json", "--limit", "1"))
    none = json.loads(run(api, key, "jobs", "--json", "--status", "paused"))

    assert job_id in table
    assert [job["id"] for job in page["data"]] == [job_id]
    with Client(api.url, key) as client:
        assert page == client.get("/jobs", limit=1)
    assert none == {"object": "list", "data": [], "has_more": False}
    for command in ("datasets", "reviews list", "adapters list", "webhooks list"):
        assert json.loads(run(api, key, *command.split(), "--json"))["object"] == "list"


def test_webhooks_are_managed_on_the_command_line(api: Api) -> None:
    _, key = api.create_key("webhooks")
    url = "http://127.0.0.1:9/hook"

    webhook_id, secret = run(api, key, "webhooks", "add", url, "--jobs", "named").split()
    listed = json.loads(run(api, key, "webhooks", "list", "--json"))["data"]
    message = run(api, key, "webhooks", "test", webhook_id).strip()
    deliveries = run(api, key, "webhooks", "deliveries", webhook_id)
    rotated = json.loads(run(api, key, "webhooks", "rotate", webhook_id, "--json"))
    refused = run(api, key, "webhooks", "add", url, code=1)
    removed = run(api, key, "webhooks", "remove", webhook_id)
    unknown = run(api, key, "webhooks", "test", webhook_id, code=1)

    assert [(found["id"], found["url"], found["jobs"]) for found in listed] == [(webhook_id, url, "named")]
    assert all(word in deliveries for word in (message, "webhook.test", "pending"))
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != secret
    assert "webhook_exists" in refused
    assert removed == f"{webhook_id} removed\n"
    assert "webhook_not_found" in unknown


def test_the_shell_completes_commands_ids_and_statuses(api: Api) -> None:
    identity, key = api.create_key("completion")
    job_id = api.start_job(identity).job_id

    def complete(line: str) -> list[str]:
        words = {"_MEDTUNE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        program = "from cli.main import main; import sys; sys.argv = ['medtune']; main()"
        done = subprocess.run(
            [MEDTUNE[0], "-c", program],
            env=build_environment(api, key) | words,
            capture_output=True,
            text=True,
            check=False,
            timeout=STARTS_SECONDS,
        )
        return done.stdout.split()

    assert complete("medtune webh") == ["webhooks"]
    assert complete("medtune --url x jobs --status ca") == ["cancelled"]
    # A completion does not wait for a service that is slow.
    wait_until(lambda: complete("medtune wait job_"), lambda found: found == [job_id], STARTS_SECONDS)


def test_the_file_leads_to_the_service(api: Api, tmp_path: Path) -> None:
    _, key = api.create_key("file")
    file = tmp_path / "medtune.toml"
    file.touch(mode=0o600)
    file.write_text(f'url = "{api.url}"\napi_key = "{key}"\n')
    unset = {"MEDTUNE_PUBLIC_URL": "", "MEDTUNE_API_KEY": "", "XDG_CONFIG_HOME": str(tmp_path)}

    assert json.loads(run(api, "", "jobs", "--json", environment=unset))["data"] == []
    file.chmod(0o644)
    assert "chmod 600" in run(api, "", "jobs", code=1, environment=unset)


def test_a_program_gets_the_services_own_models(api: Api) -> None:
    identity, key = api.create_key("program")
    dataset_id = add_dataset(api.sessions, identity)
    with Client(api.url, key) as client:
        plain = client.create_job({"model": "tiny", "dataset": {"id": dataset_id}})
        spec = JobSpec(model="tiny", dataset=DatasetReference(id=dataset_id), metadata={"team": "cardiology"})
        same = {client.create_job(spec, idempotency_key="mine").id for _ in range(2)}
        plan = client.plan_job(spec)
        page = client.list_jobs(status=JobStatus.QUEUED, metadata={"team": "cardiology"})
        paused, resumed = client.pause_job(plain.id), client.resume_job(plain.id)
        cancelled = client.cancel_job(plain.id)
        retried = client.retry_job(plain.id, {"training": {"max_steps": 3}})
        events = [event.data.get("to") for event in client.iter_events(plain.id) if event.type == "status"]
        ended = client.wait_for_job(plain.id)

    assert {job.id for job in page.data} == same
    assert len(same) == 1
    assert plan.model == "tiny"
    assert [job.status for job in (plain, paused, resumed, cancelled)] == ["queued", "paused", "queued", "cancelled"]
    assert (retried.parent, retried.training["max_steps"]) == (plain.id, 3)
    assert events == ["queued", "paused", "queued", "cancelled"]
    assert ended == cancelled


def test_an_error_says_what_is_wrong_and_where(api: Api, tmp_path: Path) -> None:
    identity, key = api.create_key("errors")
    dataset_id = add_dataset(api.sessions, identity)
    with Client(api.url, key) as client:
        with pytest.raises(ApiError) as unknown:
            client.get_job("job_none")
        with pytest.raises(ApiError) as wrong:
            client.create_job({"model": "tiny", "dataset": {"id": dataset_id}, "training": {"learning_rat": 1}})
        with pytest.raises(ApiError) as precision:
            client.plan_job({"model": "tiny", "dataset": {"id": dataset_id}, "training": {"precision": "fp16"}})
        with pytest.raises(ApiError, match="not_found"):
            client.get("/nowhere")
        with pytest.raises(ApiError, match="not_found"):
            client.download_adapter("job_none", tmp_path / "adapter.tar.gz")
    with Client(f"{api.url}/dashboard/assets", key) as client, pytest.raises(ApiError):
        client.list_jobs()

    assert (unknown.value.status, unknown.value.code) == (404, "job_not_found")
    assert (wrong.value.status, wrong.value.code, wrong.value.param) == (422, "unknown_field", "training.learning_rat")
    assert precision.value.remedy
    assert precision.value.remedy in str(precision.value)
    assert list(tmp_path.iterdir()) == []
