"""The routes with plain JSON, for tests and benchmarks that look at what is sent; commands use `medtune.Client`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.status import DatasetStatus
from medtune.client import ENDED
from medtune.connection import ApiError, Connection, Json

__all__ = ["ApiError", "Client", "Json", "open_client"]


class Client(Connection):
    def upload(self, path: Path, **fields: str | None) -> Json:
        """`fields`: name, phi_policy, phi_strategy, patient_key, attested_by, attestation, overlap_policy."""
        return self.upload_file(path, fields)

    def download_adapter(self, job_id: str, path: Path) -> None:
        self.download_file(f"/jobs/{job_id}/adapter", path)

    def follow(self, path: str, after: int = 0) -> Iterator[list[Json]]:
        """Pages of logs, metrics or events, from a cursor to the newest there is."""
        has_more = True
        while has_more:
            page = self.get(path, after=after)
            yield page["data"]
            after, has_more = page["cursor"], page["has_more"]

    def wait_for_dataset(self, dataset_id: str) -> Json:
        return _wait(
            lambda: self.get(f"/datasets/{dataset_id}"), lambda d: d["status"] != DatasetStatus.VALIDATING, 0.1
        )

    def wait_for_job(self, job_id: str, on_poll: Callable[[Json], None], poll_seconds: float = 0.5) -> Json:
        def has_ended(job: Json) -> bool:
            on_poll(job)
            return job["status"] in ENDED

        return _wait(lambda: self.get(f"/jobs/{job_id}"), has_ended, poll_seconds)


def _wait(read: Callable[[], Json], is_done: Callable[[Json], bool], poll_seconds: float) -> Json:
    while not is_done(thing := read()):
        time.sleep(poll_seconds)
    return thing


@contextmanager
def open_client(url: str, key: str) -> Iterator[Client]:
    with Client(url, key) as client:
        yield client
