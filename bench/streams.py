"""200 streams of 200 jobs at one API process: the time from a line's row to the line at the client, and the processor.

Run: python -m bench.streams. Each job gets a line and a metric per second. The figures go into bench/results/api.json.
"""

import asyncio
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
from sqlalchemy import insert

from bench.api import DATASET, KEY, start_ours
from bench.report import read_figures, write_result
from cli.processes import Supervisor
from jobs import lifecycle, repository
from jobs.database import Role, Sessions, build_engine, build_sessions
from jobs.lifecycle import Claimant
from jobs.models import LogChunk, Metric
from jobs.settings import Settings
from tests.plain_client import Client, open_client

NUM_STREAMS = 200
SECONDS = 30


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-streams-") as folder:
        home = Path(folder)
        with Supervisor(home / "logs") as supervisor:
            settings = start_ours(supervisor, home, max_streams_per_key=NUM_STREAMS)
            write_result("api", read_figures("api") | measure(settings))


def measure(settings: Settings) -> dict[str, float]:
    url = f"http://127.0.0.1:{settings.port}"
    engine = build_engine(settings, Role.WORKER)
    sessions = build_sessions(engine)
    with open_client(url, KEY) as client:
        job_ids = [start_job(client, sessions) for _ in range(NUM_STREAMS)]
    api = next(p for p in psutil.Process().children(recursive=True) if p.cmdline()[-1:] == ["api"])
    delays = asyncio.run(follow(url, job_ids, sessions, api))
    engine.dispose()
    return delays


def start_job(client: Client, sessions: Sessions) -> str:
    client.post("/jobs", {"model": "tiny", "dataset": {"id": DATASET}})
    claimed = lifecycle.claim_job(sessions, Claimant("bench", "bench", 3600))
    assert claimed is not None
    return claimed[0].id


async def follow(url: str, job_ids: list[str], sessions: Sessions, api: psutil.Process) -> dict[str, float]:
    """All streams are open before the first line is written."""
    written: dict[int, float] = {}
    received: list[tuple[int, float]] = []
    opened = asyncio.Semaphore(0)
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits, trust_env=False) as http:
        tails = [asyncio.create_task(follow_job(http, job_id, opened, received)) for job_id in job_ids]
        for _ in job_ids:
            await opened.acquire()
        before = sum(api.cpu_times()[:2])
        writing = threading.Thread(target=write_lines, args=(sessions, job_ids, written))
        writing.start()
        while len(received) < SECONDS * len(job_ids):
            await asyncio.sleep(0.1)
        cpu_seconds = sum(api.cpu_times()[:2]) - before
        writing.join()
        for tail in tails:
            tail.cancel()
        await asyncio.gather(*tails, return_exceptions=True)
    quantiles = statistics.quantiles([max(0.0, at - written[number]) for number, at in received], n=100)
    return {
        "sse_200_delay_p99_seconds": quantiles[98],
        "sse_200_delay_median_seconds": quantiles[49],
        "sse_200_cpu_share": cpu_seconds / SECONDS,
    }


async def follow_job(
    http: httpx.AsyncClient, job_id: str, opened: asyncio.Semaphore, received: list[tuple[int, float]]
) -> None:
    async with http.stream("GET", f"/jobs/{job_id}/stream") as response:
        assert response.is_success, response.status_code
        opened.release()
        kind = ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "log":
                received.append((json.loads(value)["seq"], time.monotonic()))


def write_lines(sessions: Sessions, job_ids: list[str], written: dict[int, float]) -> None:
    """`written`: when each second's lines were there to be read."""
    with sessions() as session:
        tenant_id = repository.get_job(session, job_ids[0]).tenant_id
    for number in range(1, SECONDS + 1):
        second = time.monotonic() + 1
        common = [{"job_id": job_id, "tenant_id": tenant_id, "attempt": 1, "seq": number} for job_id in job_ids]
        with sessions.begin() as session:
            step = {"step": number, "epoch": 0.0, "tokens": 0, "values": {"loss": 1.0}}
            session.execute(insert(Metric), [row | step for row in common])
            session.execute(insert(LogChunk), [row | {"num_lines": 1, "text": f"line {number}\n"} for row in common])
        written[number] = time.monotonic()
        time.sleep(max(0.0, second - time.monotonic()))


if __name__ == "__main__":
    main()
