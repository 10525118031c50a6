"""Webhooks: real messages to a real server that counts, fails, hangs and leads elsewhere."""

import base64
import datetime
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from openai import InvalidWebhookSignatureError, OpenAI
from pydantic import SecretStr
from sqlalchemy import select, text, update

from cli.serve import MEDTUNE, Service, build_environment
from jobs import lifecycle, repository
from jobs.database import Sessions, tenant_transaction
from jobs.lifecycle.deliveries import MAX_TRIES
from jobs.models import WebhookDelivery, WebhookEndpoint
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.webhooks.endpoints import create_endpoint
from jobs.webhooks.messages import derive_secret
from tests.factories import read_all, upload_script, wait_for_status, wait_until
from tests.integration.rows import BROKEN, add_dataset, claim, submit
from tests.plain_client import ApiError, Client
from worker.webhooks import run_sender

SECONDS = 120
"""A busy machine may be slow; nothing here waits for so long by itself."""


@dataclass
class Receiver:
    """A server whose path says how it behaves."""

    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers in lower case, body."""
    failures: int = 0
    """So many requests to /fail are answered with 503."""
    release: threading.Event = field(default_factory=threading.Event)
    """Until then requests to /hang get no answer."""
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def list_ids(self, path: str | None = None) -> list[str]:
        return [headers["webhook-id"] for at, headers, _ in list(self.received) if path in (None, at)]

    def answer(self, path: str) -> tuple[int, dict[str, str]]:
        if path == "/hang":
            self.release.wait()
        if path == "/redirect":
            return 302, {"Location": self.url("/elsewhere")}
        if path == "/fail" and self.failures > 0:
            self.failures -= 1
            return 503, {}
        return 200, {}


@contextmanager
def run_receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append((self.path, headers, body))
            status, answer = receiver.answer(self.path)
            try:
                self.send_response(status)
                for name, value in answer.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "6")
                self.end_headers()
                self.wfile.write(b"answer")
            except OSError:  # The sender is gone.
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A handshake that the sender refuses."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield receiver
        receiver.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


@pytest.fixture
def allowing(settings: Settings) -> Settings:
    """Settings under which the receiver may be reached."""
    changes = {
        "webhook_allowed_networks": [IPv4Network("127.0.0.1/32")],
        "webhook_allow_http": True,
        "webhook_backoff_seconds": 0.01,
    }
    return settings.model_copy(update=changes)


@contextmanager
def sending(settings: Settings) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=run_sender, args=(settings, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def register(api: Sessions, identity: Identity, settings: Settings, url: str) -> WebhookEndpoint:
    own = {"tenant_id": identity.tenant_id, "key_id": identity.key_id}
    with tenant_transaction(api, identity.tenant_id) as session:
        return create_endpoint(session, settings.load_secret_key(), **own, url=url, all_jobs=True)[0]


def fail_job(api: Sessions, worker: Sessions, identity: Identity, settings: Settings, **fields: Any) -> str:
    job_id = str(submit(api, identity, settings, add_dataset(api, identity), **fields).id)
    with worker.begin() as session:
        lifecycle.fail(session, claim(worker)[1], lifecycle.Ending(BROKEN))
    return job_id


def list_rows(worker: Sessions) -> list[WebhookDelivery]:
    with worker() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.event_id)))


def wait_for_rows(worker: Sessions, is_done: Callable[[WebhookDelivery], object]) -> list[WebhookDelivery]:
    return wait_until(lambda: list_rows(worker), lambda rows: rows and all(map(is_done, rows)), seconds=SECONDS)


def unwrap(message: tuple[str, dict[str, str], bytes], secret: str) -> Any:
    """As a user of OpenAI's own package does."""
    _, headers, body = message
    with OpenAI(api_key="unused") as client:
        return client.webhooks.unwrap(body, headers, secret=secret)


def test_a_job_that_ends_is_told_to_its_tenants_webhook_and_openais_package_believes_it(
    client: Client, other_tenant: Client, receiver: Receiver, tmp_path: Path
) -> None:
    """Through the whole service."""
    webhook = client.post("/webhooks", {"url": receiver.url("/all")})
    named = client.post("/webhooks", {"url": receiver.url("/named"), "jobs": "named"})
    other_tenant.post("/webhooks", {"url": receiver.url("/other")})
    dataset = {"id": upload_script(client, tmp_path, steps=2)}
    job_id = client.post("/jobs", {"model": "tiny", "dataset": dataset, "webhook_url": named["url"]})["id"]
    wait_for_status(client, job_id, "succeeded", seconds=SECONDS)
    wait_until(lambda: {"/all", "/named"} <= {path for path, _, _ in list(receiver.received)}, seconds=SECONDS)
    client.post(f"/webhooks/{webhook['id']}/test")
    tests = wait_until(lambda: [m for m in list(receiver.received) if b"webhook.test" in m[2]], seconds=SECONDS)
    log = wait_until(
        lambda: client.get(f"/webhooks/{webhook['id']}/deliveries")["data"],
        lambda rows: all(row["status"] == "delivered" for row in rows),
        seconds=SECONDS,
    )

    message = next(message for message in receiver.received if message[0] == "/all")
    event = unwrap(message, webhook["secret"])
    assert (event.object, event.type, event.data.id) == (
        "event",
        "fine_tuning.job.succeeded",
        job_id.replace("job_", "ftjob-"),
    )
    assert event.data.medtune_id == job_id
    assert event.id in {entry["id"] for entry in read_all(client, f"/jobs/{job_id}/events")}
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(message, named["secret"])
    test = unwrap(tests[0], webhook["secret"])
    assert (test.type, test.data.id) == ("webhook.test", webhook["id"])
    assert [(row["type"], row["status_code"], row["error"]) for row in log] == [
        ("webhook.test", 200, None),
        ("fine_tuning.job.succeeded", 200, None),
    ]
    assert receiver.list_ids("/other") == []
    assert all("secret" not in row for row in client.get("/webhooks")["data"])
    for made in (webhook, named):
        assert client.http.delete(f"/webhooks/{made['id']}").status_code == 204
    assert not {webhook["id"], named["id"]} & {row["id"] for row in client.get("/webhooks")["data"]}


def test_a_rotated_secret_leaves_the_old_one_valid_for_a_day(client: Client, receiver: Receiver) -> None:
    old = client.post("/webhooks", {"url": receiver.url("/rotated")})
    new = client.post(f"/webhooks/{old['id']}/rotate")
    client.post(f"/webhooks/{old['id']}/test")
    message = wait_until(lambda: list(receiver.received), seconds=SECONDS)[0]
    until = datetime.datetime.fromisoformat(new["previous_secret_until"])
    client.http.delete(f"/webhooks/{old['id']}")

    assert old["secret"] != new["secret"]
    assert unwrap(message, old["secret"]).id == unwrap(message, new["secret"]).id
    assert datetime.timedelta(hours=23) < until - datetime.datetime.now(datetime.UTC) <= datetime.timedelta(hours=24)


def test_webhooks_that_cannot_be_are_refused_and_nothing_out_there_is_opened(
    client: Client, service: Service, tmp_path: Path
) -> None:
    """The service may reach 127.0.0.1 and nothing else that is private; a sink on a neighbour hears nothing."""
    with socket.create_server(("127.0.0.2", 0)) as sink:
        port = sink.getsockname()[1]
        sink.setblocking(False)
        codes = {}
        for url in (
            f"https://127.0.0.2:{port}/",
            f"http://2130706434:{port}/",
            f"http://[::ffff:127.0.0.2]:{port}/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[fd00:ec2::254]/",
            "file:///etc/passwd",
            "https://nowhere.invalid/",
        ):
            answer = client.http.post("/webhooks", json={"url": url})
            codes[url] = (answer.status_code, answer.json()["error"]["param"])
        with pytest.raises(BlockingIOError):
            sink.accept()
    body = {"model": "tiny", "dataset": {"id": upload_script(client, tmp_path)}, "webhook_url": "https://a.example/"}
    with pytest.raises(ApiError) as refused:
        client.post("/jobs", body)
    first = client.post("/webhooks", {"url": "http://127.0.0.1:9/twice"})
    with pytest.raises(ApiError) as twice:
        client.post("/webhooks", {"url": "http://127.0.0.1:9/twice"})
    client.http.delete(f"/webhooks/{first['id']}")

    assert set(codes.values()) == {(422, "url")}, codes
    assert refused.value.code == "webhook_not_registered"
    assert twice.value.code == "webhook_exists"
    assert client.http.get(f"/webhooks/{first['id']}").status_code == 404


def test_a_message_is_written_with_the_change_or_not_at_all(
    api: Sessions, worker: Sessions, identity: Identity, allowing: Settings
) -> None:
    register(api, identity, allowing, "http://127.0.0.1:9/")
    job_id = submit(api, identity, allowing, add_dataset(api, identity)).id

    with tenant_transaction(api, identity.tenant_id) as session:
        lifecycle.request_pause(session, job_id)
        session.rollback()
    assert list_rows(worker) == []
    for act in (lifecycle.request_pause, lifecycle.resume, lifecycle.request_cancel):
        with tenant_transaction(api, identity.tenant_id) as session:
            act(session, job_id)

    assert [row.type for row in list_rows(worker)] == ["fine_tuning.job.paused", "fine_tuning.job.cancelled"]
    with tenant_transaction(api, identity.tenant_id) as session:
        events = {event.id for event in repository.list_events(session, job_id, after=0, limit=100)}
    assert {row.event_id for row in list_rows(worker)} < events


def test_failures_are_tried_again_with_the_same_message_until_one_arrives(
    api: Sessions, worker: Sessions, identity: Identity, allowing: Settings, receiver: Receiver
) -> None:
    register(api, identity, allowing, receiver.url("/fail"))
    receiver.failures = 2
    fail_job(api, worker, identity, allowing)

    with sending(allowing):
        rows = wait_for_rows(worker, lambda row: row.delivered_at)

    assert [(row.status_code, row.error, row.next_at) for row in rows] == [(200, None, None)]
    assert len({(headers["webhook-id"], body) for _, headers, body in receiver.received}) == 1
    assert rows[0].num_tries >= len(receiver.received) >= 3


def test_after_the_last_try_it_is_given_up_and_the_log_says_so(
    api: Sessions, worker: Sessions, identity: Identity, allowing: Settings, receiver: Receiver
) -> None:
    """No redirect is followed, and nothing of the answer is kept."""
    register(api, identity, allowing, receiver.url("/redirect"))
    fail_job(api, worker, identity, allowing)
    with sending(allowing.model_copy(update={"webhook_backoff_seconds": 1e-6})):
        wait_for_rows(worker, lambda row: (row.status_code, row.error) == (302, "redirect"))
        with worker.begin() as session:
            session.execute(update(WebhookDelivery).values(num_tries=MAX_TRIES - 2))
        rows = wait_for_rows(worker, lambda row: row.next_at is None)

    assert rows[0].num_tries >= MAX_TRIES
    assert rows[0].delivered_at is None
    assert {path for path, _, _ in receiver.received} == {"/redirect"}


def test_the_pauses_between_tries_grow_to_hours(
    api: Sessions, worker: Sessions, identity: Identity, allowing: Settings
) -> None:
    register(api, identity, allowing, "http://127.0.0.1:9/")
    fail_job(api, worker, identity, allowing)
    pauses = []
    for _ in range(MAX_TRIES):
        with worker.begin() as session:
            session.execute(update(WebhookDelivery).values(next_at=datetime.datetime.now(datetime.UTC)))
            claimed = lifecycle.claim_deliveries(session, busy=[], limit=10)
            lifecycle.record_delivery(session, claimed[0], status_code=None, error="timeout", backoff_seconds=5)
        row = list_rows(worker)[0]
        assert row.tried_at is not None
        pauses.append(None if row.next_at is None else (row.next_at - row.tried_at).total_seconds())

    assert pauses == [5, 15, 45, 135, 405, 1215, 3645, 10935, 28800, 28800, 28800, None]
    assert 24 * 3600 < sum(filter(None, pauses)) < 30 * 3600


def test_a_webhook_that_hangs_does_not_hold_up_another(
    api: Sessions, worker: Sessions, identity: Identity, allowing: Settings, receiver: Receiver
) -> None:
    hanging = register(api, identity, allowing, receiver.url("/hang"))
    register(api, identity, allowing, receiver.url("/ok"))
    job_ids = [fail_job(api, worker, identity, allowing) for _ in range(3)]

    with sending(allowing):
        wait_until(lambda: len(receiver.list_ids("/ok")) == len(job_ids), seconds=SECONDS)
        rows = [row for row in list_rows(worker) if row.endpoint_id == hanging.id]
        receiver.release.set()
        wait_for_rows(worker, lambda row: row.delivered_at)

    assert [row.delivered_at for row in rows] == [None] * 3


def test_a_sender_that_is_killed_loses_nothing_and_what_it_did_not_record_is_sent_again(
    api: Sessions, worker: Sessions, identity: Identity, allowing: Settings, receiver: Receiver
) -> None:
    """Killed between sending and recording: the second message has the same id."""
    register(api, identity, allowing, receiver.url("/hang"))
    for number in range(4):
        register(api, identity, allowing, receiver.url(f"/ok/{number}"))
    for _ in range(5):
        fail_job(api, worker, identity, allowing)
    environment = {"PATH": "/usr/bin:/bin", **build_environment(allowing)}
    with subprocess.Popen([*MEDTUNE, "reconciler"], env=environment) as process:
        wait_until(lambda: receiver.list_ids("/hang"), seconds=SECONDS)
        process.kill()
    unrecorded = receiver.list_ids("/hang")
    receiver.release.set()
    with worker.begin() as session:  # A minute later.
        due = update(WebhookDelivery).where(WebhookDelivery.next_at.is_not(None))
        session.execute(due.values(next_at=datetime.datetime.now(datetime.UTC)))

    with sending(allowing):
        rows = wait_for_rows(worker, lambda row: row.delivered_at)

    assert len(set(unrecorded)) == 1
    assert receiver.list_ids("/hang").count(unrecorded[0]) > len(unrecorded)
    assert len(rows) == 25
    assert {row.event_id for row in rows} == set(receiver.list_ids())


def test_the_connection_goes_to_the_address_that_was_judged(
    api: Sessions,
    worker: Sessions,
    identity: Identity,
    allowing: Settings,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that has another address with each question: who asked again for the connection would be led astray."""
    asked = []
    ask = socket.getaddrinfo

    def rebind(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != "rebinding.test":
            return ask(host, port, *arguments, **options)
        asked.append(host)
        return ask("127.0.0.1" if len(asked) % 2 else "127.0.0.2", port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    register(api, identity, allowing, receiver.url("/ok", "rebinding.test"))
    for _ in range(2):
        fail_job(api, worker, identity, allowing)

    with sending(allowing):
        rows = wait_for_rows(worker, lambda row: row.delivered_at)

    assert len(asked) == sum(row.num_tries for row in rows) > len(rows)
    assert {headers["host"] for _, headers, _ in receiver.received} == {f"rebinding.test:{receiver.port}"}


def test_over_https_the_certificate_must_be_the_names(
    api: Sessions,
    worker: Sessions,
    identity: Identity,
    allowing: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the connection goes to an address. `SSL_CERT_FILE` names an authority of the house."""
    ask = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **options: ask("127.0.0.1" if host.endswith(".test") else host, *rest, **options),
    )
    certificate = create_certificate(tmp_path, "hooks.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with run_receiver(tls) as receiver:
        right = register(api, identity, allowing, receiver.url("/right", "hooks.test", "https"))
        register(api, identity, allowing, receiver.url("/wrong", "another.test", "https"))
        fail_job(api, worker, identity, allowing)
        with sending(allowing):
            wait_for_rows(
                worker,
                lambda row: row.delivered_at if row.endpoint_id == right.id else row.error == "connection_failed",
            )

    assert {path for path, _, _ in receiver.received} == {"/right"}


def test_no_secret_is_in_the_database_and_a_sender_with_another_key_signs_nothing(
    api: Sessions, worker: Sessions, identity: Identity, allowing: Settings, receiver: Receiver
) -> None:
    """A message that its receiver cannot believe would be worse than none: it stays, and the log says why."""
    endpoint = register(api, identity, allowing, receiver.url("/ok"))
    fail_job(api, worker, identity, allowing)
    secret = derive_secret(allowing.load_secret_key(), endpoint.id, 1)
    with sending(allowing.model_copy(update={"secret_key": SecretStr("x" * 32), "webhook_backoff_seconds": 1e-6})):
        wait_for_rows(worker, lambda row: row.error == "another_secret_key")
    assert receiver.received == []
    with sending(allowing):
        wait_for_rows(worker, lambda row: row.delivered_at)
    with worker() as session:
        row = session.execute(text("SELECT to_jsonb(e)::text FROM webhook_endpoints e")).scalar_one()

    assert unwrap(receiver.received[0], secret).type == "fine_tuning.job.failed"
    assert secret.removeprefix("whsec_") not in row
    assert base64.b64decode(secret.removeprefix("whsec_")).hex() not in row


def create_certificate(folder: Path, name: str) -> Path:
    """A certificate and its key in one file; it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(pem) + private)
    return path
