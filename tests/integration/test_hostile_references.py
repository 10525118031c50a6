"""Names, ids and addresses that want to lead somewhere else: each is a clear 4xx, and nothing out there is opened."""

import ctypes
import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cli.serve import Service
from tests.factories import submit_script, upload_script, wait_for_status
from tests.plain_client import Client, open_client

SECRET = "CANARY-7f3a"
"""What stands in the file outside."""

CANARY = "{canary}"
"""Stands for that file's path."""

REFERENCES = {
    "file URL": "file:///etc/passwd",
    "file URL of the canary": f"file://{CANARY}",
    "absolute path": CANARY,
    "dots": "../../etc/passwd",
    "dots to the canary": f"{'../' * 30}{CANARY}",
    "encoded dots": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "twice encoded dots": "%252e%252e%252f%252e%252e%252fetc%252fpasswd",
    "overlong dots": "%c0%ae%c0%ae%c0%afetc",
    "backslashes": "..\\..\\etc\\passwd",
    "chained URL": f"simplecache::file://{CANARY}",
    "zip in a file": f"zip://x::file://{CANARY}",
    "command": ";id",
    "substitution": "$(cat {canary})",
    "template": "{{7*7}}${7*7}",
    "SQL": "' OR '1'='1",
    "NUL": "ds_\0",
    "newline": "a\nb",
    "header": "a\r\nX-Injected: yes",
    "metadata service": "http://169.254.169.254/latest/meta-data/",
    "metadata service in IPv6": "http://[::ffff:169.254.169.254]/",
    "bucket": "s3://other/bucket",
    "long": "a" * 5000,
    "unicode dots": "․․／․․／etc",
    "right to left": "\u202egpj.x\u202c",
    "emoji": "🦠" * 50,
    "half of a character": "\ud800",
}

BODY_PLACES = (
    ("model",),
    ("dataset",),
    ("dataset", "id"),
    ("dataset", "uri"),
    ("dataset", "path"),
    ("validation",),
    ("validation", "id"),
    ("validation", "uri"),
    ("init_from",),
    ("init_from", "job"),
    ("init_from", "checkpoint"),
    ("webhook_url",),
    ("output_dir",),
    ("resources", "partition"),
    ("training", "chat_template"),
    ("training", "method"),
    ("training", "output_dir"),
    ("training", "resume_from_checkpoint"),
    ("training", "lora", "target_modules"),
    ("training", "deepspeed", "config"),
    ("training", "deepspeed", "config", "zero_optimization"),
    ("training", "deepspeed", "config", "tensorboard"),
    ("training", "deepspeed", "config", "flops_profiler"),
)
"""Where a request names something, or where a client might hope that it does."""

PATHS = (
    ("GET", "/jobs/{}"),
    ("POST", "/jobs/{}/cancel"),
    ("POST", "/jobs/{}/retry"),
    ("GET", "/jobs/{}/logs"),
    ("GET", "/jobs/{}/checkpoints"),
    ("GET", "/jobs/{}/adapter"),
    ("GET", "/jobs/job_none/checkpoints/{}"),
    ("GET", "/jobs/job_none/adapter/{}"),
    ("GET", "/datasets/{}"),
    ("GET", "/datasets/{}/report"),
    ("DELETE", "/datasets/{}"),
    ("GET", "/models/{}"),
    ("GET", "/dashboard/jobs/{}"),
    ("GET", "/dashboard/datasets/{}"),
    ("GET", "/dashboard/static/{}"),
    ("GET", "/dashboard/{}"),
    ("GET", "/{}"),
)


class OpenWatch:
    """Knows from the kernel whether anybody opened a file (inotify(7))."""

    _OPENED = 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue = libc.inotify_init1(os.O_NONBLOCK)
        assert self._queue >= 0
        assert libc.inotify_add_watch(self._queue, os.fsencode(path), self._OPENED) >= 0

    def was_opened(self) -> bool:
        try:
            return bool(os.read(self._queue, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._queue)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that everybody may read and nobody should: it lies outside the service's home."""
    path = tmp_path / "canary.jsonl"
    path.write_text(json.dumps({"instruction": SECRET, "response": SECRET}) + "\n")
    watch = OpenWatch(path)
    yield path
    assert not watch.was_opened()
    path.read_bytes()
    assert watch.was_opened()  # The watch itself works.
    watch.close()


@pytest.fixture(scope="module")
def dataset_id(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a job, so that there is something to be found by mistake."""
    with open_client(service.url, service.key) as client:
        job_id = submit_script(client, tmp_path_factory.mktemp("rows"))
        return str(wait_for_status(client, job_id, "succeeded")["dataset"]["id"])


@pytest.fixture
def connection(service: Service) -> Iterator[http.client.HTTPConnection]:
    """To send an address as it stands: HTTP libraries would resolve its dots and encode the rest."""
    connection = http.client.HTTPConnection(service.settings.host, service.settings.port, timeout=20)
    connection._validate_path = lambda _: None  # type: ignore[attr-defined]
    yield connection
    connection.close()


Answer = tuple[int, dict[str, str], bytes]


def send(
    connection: http.client.HTTPConnection, service: Service, method: str, target: str, body: object = None
) -> Answer:
    """Status, headers and content."""
    # JSON escapes all that is not ASCII, halves of characters too.
    content = b"" if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
    connection.request(method, target, content, headers)
    response = connection.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def check_refusal(what: object, answer: Answer) -> None:
    status, headers, content = answer
    assert 400 <= status < 500, (what, status, content[:300])
    assert SECRET.encode() not in content, what
    assert b"root:" not in content, what
    assert "x-injected" not in headers, what
    if "json" in headers.get("content-type", ""):
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code", "details"}, what
        assert error["code"] not in ("", None, "internal_error"), what


def build_body(dataset_id: str, place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A good request but for one value."""
    body: dict[str, Any] = {"model": "tiny", "dataset": {"id": dataset_id}}
    if place in (("dataset", "uri"), ("dataset", "path")):
        body["dataset"] = {}
    part = body
    for name in place[:-1]:
        part = part.setdefault(name, {})
    part[place[-1]] = [value] if place[-1] == "target_modules" else value
    return body


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
def test_a_reference_in_a_request_leads_nowhere(
    service: Service,
    client: Client,
    connection: http.client.HTTPConnection,
    dataset_id: str,
    canary: Path,
    reference: str,
) -> None:
    """As a value, and as the name of a field."""
    before = client.get("/jobs", limit=1)["data"]
    value = reference.replace(CANARY, str(canary))
    names = [(value,), ("training", value), ("training", "deepspeed", "config", value)]

    for place in (*BODY_PLACES, *names):
        body = build_body(dataset_id, place, value)
        answer = send(connection, service, "POST", "/jobs", body)
        check_refusal((place, value), answer)
        assert "json" in answer[1]["content-type"]

    assert client.get("/jobs", limit=1)["data"] == before


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
def test_a_reference_in_an_address_leads_nowhere(
    service: Service, connection: http.client.HTTPConnection, canary: Path, reference: str
) -> None:
    value = reference.replace(CANARY, str(canary)).encode("utf-8", "surrogatepass")
    spellings = {quote(value, safe=""), quote(value, safe="/:;[]$'(){}%\\")}

    for method, path in PATHS:
        for spelling in spellings:
            target = path.format(spelling)
            check_refusal((method, target), send(connection, service, method, target))


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
def test_a_reference_in_a_query_finds_nothing(
    service: Service, connection: http.client.HTTPConnection, canary: Path, dataset_id: str, reference: str
) -> None:
    """A list may be asked for anything; what is not there is not found."""
    value = quote(reference.replace(CANARY, str(canary)).encode("utf-8", "surrogatepass"), safe="")

    for query in (f"model={value}", f"metadata[{value}]=x", f"metadata[x]={value}", f"status={value}"):
        answer = send(connection, service, "GET", f"/jobs?{query}")
        if answer[0] == 200:
            assert json.loads(answer[2])["data"] == []
        else:
            check_refusal(query, answer)


FILE_NAMES = {
    "dots": b"../../escaped",
    "many dots": b"../" * 40 + b"tmp/escaped",
    "absolute": b"/tmp/escaped",
    "backslashes": b"..\\..\\escaped",
    "encoded dots": b"%2e%2e%2fescaped",
    "NUL": b"escaped\0.jsonl",
    "command": b"$(touch escaped);`touch escaped`",
    "option": b"--escaped",
    "markup": b"<img src=x onerror=alert(1)>escaped",
    "not UTF-8": b"escaped\xff\xfe",
    "half of a character": b"escaped\xed\xa0\x80",
    "unicode": "․․／escaped\u202e".encode(),
    "long": b"escaped" * 700 + b"x" * 100,
    "empty": b"",
    "one dot": b".",
    "device": b"/dev/escaped",
}


@pytest.mark.parametrize("name", FILE_NAMES.values(), ids=FILE_NAMES)
def test_a_file_is_stored_under_its_id_whatever_its_name(
    service: Service, client: Client, tmp_path: Path, name: bytes
) -> None:
    store = service.settings.home / "store"
    before = set(store.rglob("*"))
    row = b'{"instruction": "q", "response": "a"}\n'
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n' + row + b"\r\n--x--\r\n"
    )

    response = client.http.post("/datasets", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})

    new = {str(path.relative_to(store)) for path in set(store.rglob("*")) - before}
    if response.status_code == 201:
        dataset = response.json()
        assert new == {f"datasets/{dataset['id']}", f"datasets/{dataset['id']}/data"}
        assert (store / "datasets" / dataset["id"] / "data").read_bytes() == row
        assert len(dataset["filename"]) <= 200
        assert client.wait_for_dataset(dataset["id"])["status"] == "ready"
        assert client.http.delete(f"/datasets/{dataset['id']}").status_code == 200
    else:
        check_refusal(name, (response.status_code, dict(response.headers), response.content))
        assert new == set()
    for folder in (service.settings.home, service.settings.home.parent, Path("/tmp"), Path("/dev"), Path.cwd()):
        assert not [path for path in folder.iterdir() if "escaped" in path.name]
    assert not [path for path in service.settings.home.rglob("*escaped*") if "test_" not in str(path)]


def test_a_name_that_is_a_command_is_only_a_name(client: Client, service: Service, tmp_path: Path) -> None:
    """It goes the job's whole way, through the worker and past the trainer's command line."""
    ran = service.settings.home / "ran"
    name = f"$(touch {ran})`touch {ran}`; touch {ran}; '"
    assert len(name) <= 200
    dataset = {"id": upload_script(client, tmp_path)}
    body = {"model": "tiny", "dataset": dataset, "name": name, "metadata": {name[:64]: name}}

    job = client.wait_for_job(client.post("/jobs", body)["id"], lambda _: None, poll_seconds=0.1)

    assert (job["status"], job["name"], job["metadata"]) == ("succeeded", name, {name[:64]: name})
    assert not ran.exists()
