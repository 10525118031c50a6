"""The API is killed under load, requests are repeated, and everything is deployed anew."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.factories import wait_until
from tests.faults.harness import PATIENCE, Cluster, check_figure

NUM_POSTS = 60
NUM_KILLS = 3


def test_every_answered_submission_is_a_job_however_often_the_api_is_killed(cluster: Cluster) -> None:
    """T01: clients repeat what was not answered, with the same key. Each key makes one job, and each job ends."""
    dataset_id = cluster.prepare(steps=1)
    body = cluster.build_request(dataset_id)
    keys = [f"key-{number}" for number in range(NUM_POSTS)]
    answered: dict[str, set[str]] = {key: set() for key in keys}
    is_over = threading.Event()

    def post(key: str) -> None:
        while not answered[key] and not is_over.is_set():
            try:
                answer = cluster.client.http.post("/jobs", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                continue
            if answer.status_code == 201:
                answered[key].add(answer.json()["id"])
                cluster.note_accepted(answer.json()["id"], dataset_id)

    with ThreadPoolExecutor(4) as pool:
        posts = pool.map(post, keys)
        for number in range(1, NUM_KILLS + 1):
            _wait_for_answers(answered, number * NUM_POSTS // (NUM_KILLS + 2))
            cluster.api.kill()
            cluster.api.start()
        cluster.wait_until_ready()
        list(posts)
        is_over.set()

    ids = {job_id for found in answered.values() for job_id in found}
    assert len(ids) == NUM_POSTS
    for job_id in ids:
        assert cluster.wait(job_id, seconds=300)["status"] == "succeeded"
    cluster.check_history()


def _wait_for_answers(answered: dict[str, set[str]], count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(map(bool, list(answered.values()))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_same_key_makes_one_job_for_fifty_at_once_and_after_a_crash(cluster: Cluster) -> None:
    """T02"""
    dataset_id = cluster.prepare(steps=1)
    body = cluster.build_request(dataset_id)
    headers = {"Idempotency-Key": "fifty"}

    def post(_: int = 0) -> httpx.Response:
        return cluster.client.http.post("/jobs", json=body, headers=headers)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(post, range(50)))
    cluster.api.kill()
    cluster.heal()
    answers.append(post())
    other = cluster.client.http.post("/jobs", json={**body, "name": "another"}, headers=headers)

    assert {answer.status_code for answer in answers} == {201}
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 1
    assert other.status_code == 422
    cluster.note_accepted(job_id := ids.pop(), dataset_id)
    assert cluster.wait(job_id)["status"] == "succeeded"
    cluster.check_history()


def test_a_rolling_deploy_loses_no_step_and_counts_no_attempt_as_a_failure(cluster: Cluster) -> None:
    """T18: SIGTERM to every part in turn while four jobs run and more wait."""
    ids = [cluster.submit(steps=120, step_seconds=0.05, save_every=50) for _ in range(6)]
    for job_id in ids[:4]:
        cluster.wait_for_step(job_id, 5)

    for node in cluster.nodes:
        begun = time.monotonic()
        node.stop()
        node.wait(200)
        check_figure("a worker is drained", time.monotonic() - begun)
        cluster.heal()
    for part in (cluster.api, cluster.reconciler):
        part.stop()
        part.wait(60)
        cluster.heal()
    jobs = [cluster.wait(job_id, seconds=4 * PATIENCE) for job_id in ids]

    assert [job["status"] for job in jobs] == ["succeeded"] * 6
    for job in jobs:
        for attempt in cluster.client.get(f"/jobs/{job['id']}/attempts")["data"]:
            assert attempt["fault"] in (None, "none")
        for number in range(2, job["attempt"] + 1):  # It saved when it was asked to stop, so nothing is done twice.
            rows = [row for row in cluster.read_journal(job["id"]) if row["attempt"] == number - 1]
            saved = max((row.get("step", 0) for row in rows), default=0)
            assert cluster.get_resumed_step(job["id"], number) >= saved
    cluster.check_history()


def test_a_drain_that_finds_its_connections_broken_still_stores_the_end_of_the_log(cluster: Cluster) -> None:
    """A database that was started anew breaks every connection once. A worker that must stop then tries again."""
    job_id = cluster.submit(steps=120, step_seconds=0.05, save_every=50)
    node = cluster.wait_for_step(job_id, 5)

    node.postgres.cut()
    node.stop()
    wait_until(lambda: "database does not answer, asked again" in node.main.log.read_text(), seconds=PATIENCE)
    node.postgres.restore()
    node.wait(200)
    cluster.heal()
    job = cluster.wait(job_id)

    attempts = cluster.client.get(f"/jobs/{job_id}/attempts")["data"]
    assert (job["status"], len(attempts)) == ("succeeded", 2)
    assert (attempts[1]["fault"], attempts[1]["reason"]["code"]) == ("none", "worker_stopped")
    cluster.check_whole_logs()
    cluster.check_history()
