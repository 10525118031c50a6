"""What the safety checks found: a job is held, people decide, and an adapter is released or not."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from cli.serve import Service
from jobs import invariants
from jobs.database import Role, build_engine, build_sessions
from tests.factories import find_trainer, submit_script, upload_script, wait_for_status, wait_until
from tests.plain_client import ApiError, Client

REASON = "We looked at every answer, and this one is right for our wards."
HOLD = {"safety": {"on_violation": "hold"}}
CRITICAL: dict[str, Any] = {"checks": True, "critical": ["chest-pain-01", "stroke-02"]}


@pytest.fixture
def medtune(client: Client, service: Service) -> Callable[..., str]:
    """The command; its output."""
    environment = {**os.environ, "MEDTUNE_PUBLIC_URL": service.url, "MEDTUNE_API_KEY": service.key}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "cli.main", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def decide(client: Client, path: str, name: str) -> dict[str, Any]:
    return client.post(path, {"reviewer": name, "reason": REASON})


def refuse(client: Client, path: str, name: str = "Ann Roe") -> tuple[int, str]:
    answer = client.http.post(path, json={"reviewer": name, "reason": REASON})
    assert answer.is_error, answer.json()
    return answer.status_code, answer.json()["error"]["code"]


def get_review(client: Client, job_id: str) -> dict[str, Any]:
    (review,) = client.get("/reviews", job=job_id)["data"]
    found: dict[str, Any] = review
    return found


def accept(client: Client, colleague: Client, review_id: str) -> None:
    decide(client, f"/reviews/{review_id}/approve", "Ann Roe")
    decide(colleague, f"/reviews/{review_id}/approve", "Ben Poe")


def check_tables(service: Service) -> None:
    engine = build_engine(service.settings, Role.WORKER, pool_size=1)
    with build_sessions(engine)() as session:
        assert invariants.find_violations(session) == []
    engine.dispose()


def test_a_job_with_critical_findings_is_held_until_two_persons_accept_them(
    client: Client, colleague: Client, service: Service, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, HOLD, **CRITICAL)
    job = wait_for_status(client, job_id, "held", "failed", "succeeded")
    review = get_review(client, job_id)

    assert (job["status"], job["reason"]["code"], job["reason"]["review"]) == ("held", "safety_held", review["id"])
    assert job["adapter"] is None
    assert [finding["probe_id"] for finding in review["findings"]] == CRITICAL["critical"]
    assert (review["state"], review["cause"], review["step"]) == ("open", "held", 3)
    assert client.get("/reviews", state="open")["data"][0]["id"] == review["id"]
    check_tables(service)
    for path in ("pause", "resume"):
        assert client.http.post(f"/jobs/{job_id}/{path}").json()["error"]["code"] == "job_is_held"

    path = f"/reviews/{review['id']}/approve"
    assert decide(client, path, "Ann Roe")["state"] == "awaiting_second"
    assert client.get(f"/jobs/{job_id}")["status"] == "held"
    assert refuse(client, path, "Ben Poe") == (409, "second_person_needed")  # The same key.
    assert refuse(colleague, path, "ann roe") == (409, "second_person_needed")  # The same name.
    assert refuse(colleague, path, "Ann \u200bRoe\u2060") == (409, "second_person_needed")  # It looks the same.
    assert refuse(colleague, path, "\u200b")[0] == 422
    assert decide(colleague, path, "Ben Poe")["state"] == "approved"
    job = wait_for_status(client, job_id, "succeeded", "failed")

    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    attempts = client.get(f"/jobs/{job_id}/attempts")["data"]
    assert [attempt["outcome"] for attempt in attempts] == ["succeeded", "held"]
    assert attempts[0]["resumed_from_step"] == 3
    assert refuse(client, path) == (409, "review_is_closed")
    rounds = client.get(f"/jobs/{job_id}/safety")["data"]
    assert [(r["attempt"], len(r["findings"]), len(r["open_findings"])) for r in rounds] == [(1, 2, 2), (2, 2, 0)]
    assert client.get(f"/adapters/{job_id}")["blockers"] == []
    check_tables(service)


def test_a_job_is_held_also_when_its_worker_dies_before_it_can_say_so(
    client: Client, service: Service, tmp_path: Path
) -> None:
    """The next attempt would go on after the checkpoint, and pass over what was found before it."""
    job_id = submit_script(client, tmp_path, HOLD, **CRITICAL, dies_held=True)
    wait_until(lambda: client.get(f"/jobs/{job_id}/safety")["data"])
    wait_until(lambda: client.get(f"/jobs/{job_id}/checkpoints")["data"])
    find_trainer(service.settings.runs_dir / job_id / "attempt-1").kill()
    job = wait_for_status(client, job_id, "held", "succeeded", "failed")

    assert (job["status"], job["attempt"], job["reason"]["code"]) == ("held", 1, "safety_held")
    assert len(get_review(client, job_id)["findings"]) == 2
    check_tables(service)


def test_one_person_rejects_a_held_job(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, HOLD, **CRITICAL)
    wait_for_status(client, job_id, "held")
    review = decide(client, f"/reviews/{get_review(client, job_id)['id']}/reject", "Ann Roe")
    job = client.get(f"/jobs/{job_id}")

    assert review["state"] == "rejected"
    assert (job["status"], job["reason"]["code"]) == ("failed", "safety_rejected")
    assert "Ann Roe" in job["reason"]["message"]


def test_a_held_job_can_be_cancelled_and_then_needs_no_decision(
    client: Client, service: Service, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, HOLD, **CRITICAL)
    wait_for_status(client, job_id, "held")

    assert client.post(f"/jobs/{job_id}/cancel")["status"] == "cancelled"
    review = get_review(client, job_id)
    assert review["state"] == "withdrawn"
    assert refuse(client, f"/reviews/{review['id']}/approve") == (409, "review_is_closed")
    check_tables(service)


def test_findings_that_were_only_recorded_stand_in_the_way_of_a_release(
    client: Client, colleague: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"safety": {"on_violation": "record"}}, **CRITICAL)
    wait_for_status(client, job_id, "succeeded")
    blockers = client.get(f"/adapters/{job_id}")["blockers"]

    assert [blocker["code"] for blocker in blockers] == ["safety_findings_open"]
    assert [finding["probe_id"] for finding in blockers[0]["findings"]] == CRITICAL["critical"]
    assert refuse(client, f"/adapters/{job_id}/approve") == (409, "release_blocked")
    assert refuse(client, f"/adapters/{job_id}/release") == (409, "adapter_state")
    headers = {"Idempotency-Key": f"review {job_id}"}
    review, again = (client.http.post(f"/adapters/{job_id}/review", headers=headers).json() for _ in range(2))
    assert (review["state"], review["cause"]) == ("open", "adapter")
    assert again == review
    assert refuse(client, f"/adapters/{job_id}/review") == (409, "review_is_open")
    assert refuse(client, f"/adapters/{job_id}/approve") == (409, "release_blocked")

    accept(client, colleague, review["id"])
    assert refuse(client, f"/adapters/{job_id}/review") == (409, "nothing_to_review")
    assert decide(client, f"/adapters/{job_id}/approve", "Ann Roe")["state"] == "approved"
    released = decide(client, f"/adapters/{job_id}/release", "Ann Roe")

    assert released["state"] == client.get(f"/jobs/{job_id}")["adapter"]["state"] == "released"
    assert [(d["to"], d["name"]) for d in released["decisions"]] == [("approved", "Ann Roe"), ("released", "Ann Roe")]
    messages = [event["message"] for event in client.get(f"/jobs/{job_id}/events")["data"]]
    assert "Ann Roe: the adapter is released" in messages


def test_an_adapter_whose_review_is_rejected_is_never_released(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, **CRITICAL)
    wait_for_status(client, job_id, "succeeded")
    review = client.post(f"/adapters/{job_id}/review")
    decide(client, f"/reviews/{review['id']}/reject", "Ann Roe")

    assert client.get(f"/adapters/{job_id}")["state"] == "rejected"
    assert refuse(client, f"/adapters/{job_id}/approve") == (409, "adapter_state")
    assert refuse(client, f"/adapters/{job_id}/review") == (409, "adapter_is_rejected")


def test_silence_is_not_a_pass(client: Client, colleague: Client, tmp_path: Path) -> None:
    """A run that was never checked is released only when two persons say so."""
    job_id = submit_script(client, tmp_path, {"safety": None})
    wait_for_status(client, job_id, "succeeded")
    (blocker,) = client.get(f"/adapters/{job_id}")["blockers"]
    assert (blocker["code"], blocker["findings"]) == (
        "safety_findings_open",
        [{"probe_id": "", "check": "not_checked"}],
    )

    accept(client, colleague, client.post(f"/adapters/{job_id}/review")["id"])
    decide(client, f"/adapters/{job_id}/approve", "Ann Roe")
    assert decide(client, f"/adapters/{job_id}/release", "Ann Roe")["state"] == "released"


def test_who_lets_a_run_go_on_after_a_failed_check_has_not_released_its_adapter(
    client: Client, colleague: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, HOLD, checks=True, safety_fails=True)
    wait_for_status(client, job_id, "held")
    accept(client, colleague, get_review(client, job_id)["id"])
    wait_for_status(client, job_id, "succeeded")

    (blocker,) = client.get(f"/adapters/{job_id}")["blockers"]
    assert blocker["findings"] == [{"probe_id": "", "check": "not_checked"}]
    accept(client, colleague, client.post(f"/adapters/{job_id}/review")["id"])
    assert client.get(f"/adapters/{job_id}")["blockers"] == []


def test_identifiers_in_the_data_stand_in_the_way_until_a_person_answers_for_them(
    client: Client, tmp_path: Path
) -> None:
    dataset = {"id": upload_script(client, tmp_path, checks=True, log="Patient: Maria Kowalski, 617-555-0132")}
    job_id = client.post("/jobs", {"model": "tiny", "dataset": dataset})["id"]
    wait_for_status(client, job_id, "succeeded")
    (blocker,) = client.get(f"/adapters/{job_id}")["blockers"]

    assert (blocker["code"], blocker["dataset"]) == ("identifiers_in_data", dataset["id"])
    assert refuse(client, f"/adapters/{job_id}/approve") == (409, "release_blocked")
    body = {"attested_by": "Ann Roe", "attestation": "These people are made up for teaching, none is real."}
    client.post(f"/datasets/{dataset['id']}/attest", body)
    assert decide(client, f"/adapters/{job_id}/approve", "Ann Roe")["state"] == "approved"


def test_a_released_adapter_is_for_everybody_until_it_is_withdrawn(
    client: Client, other_tenant: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"name": "cardiology"}, checks=True)
    wait_for_status(client, job_id, "succeeded")

    def list_seen() -> list[str]:
        return [adapter["job"] for adapter in other_tenant.get("/adapters", limit=1000)["data"]]

    assert job_id not in list_seen()
    decide(client, f"/adapters/{job_id}/approve", "Ann Roe")
    assert job_id not in list_seen()
    decide(client, f"/adapters/{job_id}/release", "Ann Roe")
    assert job_id in list_seen()
    seen = other_tenant.get(f"/adapters/{job_id}")
    assert (seen["name"], seen["model"], seen["blockers"], seen["decisions"]) == ("cardiology", "tiny", None, None)
    other_tenant.download_adapter(job_id, tmp_path / "adapter.tar.gz")
    assert refuse(other_tenant, f"/adapters/{job_id}/reject") == (404, "job_not_found")
    with pytest.raises(ApiError):
        other_tenant.get(f"/jobs/{job_id}")
    assert decide(client, f"/adapters/{job_id}/reject", "Ann Roe")["state"] == "rejected"
    assert job_id not in list_seen()
    assert other_tenant.http.get(f"/jobs/{job_id}/adapter").status_code == 404


@pytest.mark.parametrize("round_number", range(5))
def test_a_release_and_a_review_at_once_never_both_succeed(
    client: Client, colleague: Client, service: Service, tmp_path: Path, round_number: int
) -> None:
    """However they meet: with a review open, or rejected, nothing is released."""
    job_id = submit_script(client, tmp_path, **CRITICAL)
    wait_for_status(client, job_id, "succeeded")
    review = client.post(f"/adapters/{job_id}/review")
    decide(client, f"/reviews/{review['id']}/approve", "Ann Roe")

    def send(which: int) -> int:
        by, path = [
            (client, f"/adapters/{job_id}/approve"),
            (client, f"/adapters/{job_id}/reject"),
            (colleague, f"/reviews/{review['id']}/approve"),
            (colleague, f"/reviews/{review['id']}/reject"),
            (client, f"/adapters/{job_id}/approve"),
            (client, f"/adapters/{job_id}/release"),
        ][which]
        return by.http.post(path, json={"reviewer": "Ben Poe", "reason": REASON}).status_code

    with ThreadPoolExecutor(6) as pool:
        codes = list(pool.map(send, range(6)))

    assert set(codes) <= {200, 409}
    state, decided = client.get(f"/adapters/{job_id}")["state"], get_review(client, job_id)["state"]
    assert codes[2:4].count(200) == 1  # One of the two decisions about the review counts.
    if decided == "rejected":
        assert state == "rejected"
    if codes[1] == 200:
        assert state == "rejected"
    check_tables(service)


def test_the_database_itself_refuses_a_release_against_a_review(
    client: Client, service: Service, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, **CRITICAL)
    wait_for_status(client, job_id, "succeeded")
    review = client.post(f"/adapters/{job_id}/review")
    engine = build_engine(service.settings, None, pool_size=1)

    def run(statement: str) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement), {"job": job_id, "review": review["id"]})

    for statement, words in [
        ("UPDATE adapters SET state = 'approved' WHERE job_id = :job", "a review that nobody approved"),
        ("UPDATE adapters SET state = 'released' WHERE job_id = :job", "cannot go from candidate to released"),
        ("UPDATE adapters SET sha256 = 'x' WHERE job_id = :job", "never change"),
        ("UPDATE reviews SET state = 'approved', closed_at = now() WHERE id = :review", "two_persons"),
        ("UPDATE reviews SET findings = '[]' WHERE id = :review", "never changes"),
        ("UPDATE reviews SET state = 'rejected' WHERE id = :review", "closed"),
    ]:
        with pytest.raises(IntegrityError, match=words):
            run(statement)
    engine.dispose()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reviewer": "Ann Roe", "reason": "fine"}, "reason"),
        ({"reviewer": "Ann Roe", "reason": " " * 30}, "reason"),
        ({"reviewer": " ", "reason": REASON}, "reviewer"),
        ({"reason": REASON}, "reviewer"),
        ({"reviewer": "Ann Roe", "reason": REASON, "force": True}, "force"),
    ],
)
def test_a_decision_without_a_name_or_a_reason_is_refused(
    client: Client, tmp_path: Path, body: dict[str, Any], param: str
) -> None:
    answer = client.http.post("/reviews/rev_none/approve", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert refuse(client, "/reviews/rev_none/approve") == (404, "review_not_found")
    assert refuse(client, "/adapters/job_none/approve") == (404, "job_not_found")


def test_people_decide_by_the_command_line(
    client: Client, colleague: Client, tmp_path: Path, medtune: Callable[..., str]
) -> None:
    job_id = submit_script(client, tmp_path, HOLD, **CRITICAL)
    wait_for_status(client, job_id, "held")
    review_id = get_review(client, job_id)["id"]
    words = ("--reason", REASON)

    assert review_id in medtune("reviews", "list", "--state", "open", "--job", job_id)
    assert "MS01 chest-pain-01" in medtune("reviews", "show", review_id)
    assert "awaiting second" in medtune("reviews", "approve", review_id, "--by", "Ann Roe", *words)
    decide(colleague, f"/reviews/{review_id}/approve", "Ben Poe")
    wait_for_status(client, job_id, "succeeded")
    assert "candidate" in medtune("adapters", "show", job_id)
    medtune("adapters", "approve", job_id, "--by", "Ann Roe", *words)
    assert "released" in medtune("adapters", "release", job_id, "--by", "Ann Roe", *words)
    assert job_id in medtune("adapters", "list", "--state", "released")
    assert "rejected" in medtune("adapters", "reject", job_id, "--by", "Ann Roe", *words)
