"""A small typed client of the native API."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

Json = dict[str, Any]

FINAL = frozenset({"succeeded", "failed", "cancelled", "held"})


class ApiError(Exception):
    """The service refused, in its own words."""

    def __init__(self, response: httpx.Response) -> None:
        try:
            error = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            error = {"code": f"http_{response.status_code}", "message": response.text[:200]}
        self.code: str = error["code"]
        remedy = (error.get("details") or {}).get("remedy")
        super().__init__(f"{error['message']} ({self.code})" + (f"; {remedy}" if remedy else ""))


class Client:
    def __init__(self, url: str, key: str) -> None:
        is_local = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
        headers = {"Authorization": f"Bearer {key}"}
        # A proxy is for what is elsewhere.
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=not is_local)

    def get(self, path: str, **params: Any) -> Json:
        return self._read(self.http.get(path, params={k: v for k, v in params.items() if v is not None}))

    def post(self, path: str, body: Json | None = None, **params: Any) -> Json:
        return self._read(self.http.post(path, json=body, params=params))

    def upload(self, path: Path, name: str | None = None) -> Json:
        with path.open("rb") as file:
            return self._read(
                self.http.post(
                    "/datasets", files={"file": (path.name, file)}, data={"name": name} if name else {}, timeout=None
                )
            )

    def download_adapter(self, job_id: str, path: Path) -> None:
        with self.http.stream("GET", f"/jobs/{job_id}/adapter") as response:
            if response.is_error:
                response.read()
                raise ApiError(response)
            with path.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)

    def follow(self, path: str, after: int = 0) -> Iterator[list[Json]]:
        """Pages of logs, metrics or events, from a cursor to the newest there is."""
        has_more = True
        while has_more:
            page = self.get(path, after=after)
            yield page["data"]
            after, has_more = page["cursor"], page["has_more"]

    def wait_for_dataset(self, dataset_id: str) -> Json:
        return self._wait(lambda: self.get(f"/datasets/{dataset_id}"), lambda d: d["status"] != "validating", 0.1)

    def wait_for_job(self, job_id: str, on_poll: Callable[[Json], None], poll_seconds: float = 0.5) -> Json:
        def is_final(job: Json) -> bool:
            on_poll(job)
            return job["status"] in FINAL

        return self._wait(lambda: self.get(f"/jobs/{job_id}"), is_final, poll_seconds)

    def close(self) -> None:
        self.http.close()

    @staticmethod
    def _wait(read: Callable[[], Json], is_done: Callable[[Json], bool], poll_seconds: float) -> Json:
        while not is_done(thing := read()):
            time.sleep(poll_seconds)
        return thing

    @staticmethod
    def _read(response: httpx.Response) -> Json:
        if response.is_error:
            raise ApiError(response)
        content: Json = response.json()
        return content


@contextmanager
def open_client(url: str, key: str) -> Iterator[Client]:
    client = Client(url, key)
    try:
        yield client
    finally:
        client.close()
