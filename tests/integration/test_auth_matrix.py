"""Every route, every method, every kind of wrong key: nothing opens, and no tenant finds another one's things."""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from itsdangerous import TimestampSigner
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from api.dashboard import pages, sign_in
from api.dependencies import SESSION_COOKIE
from cli.serve import Service
from jobs.api_keys import create_key, revoke_key
from jobs.database import Role, build_engine, build_sessions, tenant_transaction
from jobs.models import TENANT_TABLES, Base, Export
from tests.factories import submit_script, upload_script, wait_for_status, wait_until
from tests.plain_client import Client, open_client

OPEN_ROUTES = {("GET", "/healthz"), ("GET", "/readyz")}
"""They say whether the service lives, to whoever asks. All others of the API want a key."""

OPEN_PAGES = {
    ("GET", "/dashboard/"),
    ("GET", "/dashboard/sign-in"),
    ("POST", "/dashboard/sign-in"),
    ("POST", "/dashboard/sign-out"),
    ("GET", "/dashboard/session"),
}
"""The way in, and out. None of them shows anything of a tenant."""

SHARED_ROUTES = {"/models", "/models/{model_id}", "/v1/models", "/v1/models/{model}", "/workers", "/openapi.json"}
"""The same for all tenants."""

CREATE_ROUTES = {
    ("POST", "/datasets"),
    ("POST", "/v1/files"),
    ("POST", "/v1/uploads"),
    ("POST", "/keys"),
    ("POST", "/webhooks"),
}
"""What they make is the caller's own, and names nothing of others."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")

ABSENT_PATHS = (
    "/nowhere",
    "/admin",
    "/redoc",
    "/openapi.yaml",
    "/.env",
    "/JOBS",
    "/jobs/none/none",
    "/dashboard/swagger-ui-0/swagger-ui.css",
    "/dashboard/redoc",
    "/dashboard/openapi.json",
    "/dashboard/static/",
    "/dashboard/nowhere",
)


@dataclass(frozen=True)
class Tenant:
    id: str
    key_id: str
    key: str


@dataclass(frozen=True)
class Things:
    """What the first tenant has."""

    job_id: str
    dataset_id: str
    review_id: str
    upload_id: str
    key_id: str
    webhook_id: str
    deletion_id: str

    def fill(self, path: str) -> str:
        names = {"job_id": self.job_id, "dataset_id": self.dataset_id, "review_id": self.review_id}
        names |= {"key_id": self.key_id, "model_id": "tiny"}
        names |= {"fine_tuning_job_id": f"ftjob-{self.job_id[-26:]}", "file_id": self.file_id}
        names |= {"result_id": f"file-{self.job_id[-26:]}"}
        names |= {"upload_id": self.upload_id, "model": "tiny", "webhook_id": self.webhook_id}
        names |= {"deletion_id": self.deletion_id}
        return re.sub(r"{(\w+)(?::path)?}", lambda match: names[match[1]], path)

    @property
    def file_id(self) -> str:
        return f"file-{self.dataset_id[-26:]}"

    @property
    def body(self) -> dict[str, Any]:
        """Of a job that its owner could submit."""
        return {"model": "tiny", "dataset": {"id": self.dataset_id}}


@pytest.fixture(scope="module")
def things(service: Service, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Things:
    """A job that has everything: events, logs, metrics, a checkpoint in the store, and an adapter."""
    with open_client(service.url, service.key) as client:
        folder = tmp_path_factory.mktemp("rows")
        script = {
            "steps": 2,
            "log": "a private line\n",
            "checks": True,
            "critical": ["chest-pain-01"],
            "shows_rows": True,
        }
        webhook_id = client.post("/webhooks", {"url": "http://127.0.0.1:9/"})["id"]  # Where nobody listens.
        job_id = submit_script(client, folder, {"name": "private"}, **script)
        job = wait_for_status(client, job_id, "succeeded")
        wait_until(lambda: client.get(f"/jobs/{job_id}/checkpoints")["data"])
        client.http.post(f"/jobs/{job_id}/retry", headers={"Idempotency-Key": "matrix"})
        review_id = client.post(f"/adapters/{job_id}/review")["id"]
        begun = {"bytes": 2, "filename": "rows.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
        upload_id = client.post("/v1/uploads", begun)["id"]
        client.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x"})
        key_id = client.post("/keys", {"name": "private"})["id"]
        deletion_id = client.delete(f"/datasets/{upload_script(client, folder)}")["id"]
        with tenant_transaction(build_sessions(engine), "default") as session:  # No adapter here is approved.
            session.add(Export(job_id=job_id, tenant_id="default", created_by=key_id))
        return Things(job_id, job["dataset"]["id"], review_id, upload_id, key_id, webhook_id, deletion_id)


@pytest.fixture(scope="module")
def engine(service: Service) -> Iterator[Engine]:
    """Connections as the API itself has them."""
    engine = build_engine(service.settings, Role.API, pool_size=1)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def create_tenant(service: Service, engine: Engine) -> Callable[..., Tenant]:
    def create(is_admin: bool = False) -> Tenant:
        tenant_id = f"tenant-{secrets.token_hex(4)}"
        with build_sessions(engine).begin() as session:
            key, value = create_key(
                session,
                service.settings.load_secret_key(),
                name="matrix",
                tenant_id=tenant_id,
                is_admin=is_admin,
            )
            return Tenant(tenant_id, key.id, value)

    return create


@pytest.fixture(scope="module")
def revoked(service: Service, engine: Engine, create_tenant: Callable[..., Tenant]) -> Tenant:
    """It worked until it was revoked."""
    tenant = create_tenant()
    with open_client(service.url, tenant.key) as client:
        client.get("/jobs")
    with build_sessions(engine).begin() as session:
        assert revoke_key(session, tenant.key_id)
    return tenant


@pytest.fixture
def anonymous(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def routes(service: Service) -> list[tuple[str, str]]:
    """Method and path of everything in the API's own description, and of the description."""
    with open_client(service.url, service.key) as client:
        paths = client.get("/openapi.json")["paths"]
    found = [("GET", "/openapi.json"), *((method.upper(), path) for path in paths for method in paths[path])]
    assert len(found) >= 20
    assert set(found) > OPEN_ROUTES
    return found


def list_pages() -> list[tuple[str, str]]:
    """Method and path of the dashboard's pages, which are not in the description."""
    found = [*pages.router.routes, *sign_in.router.routes]
    return [(method, f"/dashboard{route.path}") for route in found for method in route.methods]  # type: ignore[attr-defined]


def send(http: httpx.Client, method: str, path: str, things: Things, headers: dict[str, str]) -> httpx.Response:
    """With a body that would be taken from somebody with a right to it."""
    body: dict[str, Any] = {}
    if (method, path) in (("POST", "/datasets"), ("POST", "/v1/files")):
        body = {"files": {"file": ("rows.jsonl", b'{"instruction": "q", "response": "a"}\n')}}
    elif method == "POST" and path.endswith("/parts"):
        body = {"files": {"data": b"x"}}
    elif method == "POST" and not path.startswith("/dashboard"):
        attestation = {"attested_by": "Ann Roe", "attestation": "These people are made up for teaching."}
        decision = {"reviewer": "Ann Roe", "reason": "It was looked at, and it is fine."}
        decisions = (
            ("/reviews/{review_id}/%s", ("approve", "reject")),
            (
                "/adapters/{job_id}/%s",
                ("approve", "release", "reject"),
            ),
        )
        bodies: dict[str, Any] = {path % act: decision for path, acts in decisions for act in acts}
        bodies |= {"/jobs": things.body, "/datasets/{dataset_id}/attest": attestation}
        bodies |= {"/lineage/rows": {"row": {}}, "/v1/uploads/{upload_id}/complete": {"part_ids": ["part_x"]}}
        bodies |= {"/v1/fine_tuning/jobs": {"model": "tiny", "training_file": things.file_id}}
        bodies |= {"/keys": {"name": "another"}}
        body = {"json": bodies.get(path, {})}
    return http.request(method, things.fill(path), headers=headers, **body)


def build_wrong_credentials(service: Service, revoked: Tenant) -> dict[str, dict[str, str]]:
    key = service.key
    other_key = key[:-1] + ("A" if key[-1] != "A" else "B")
    secret_key = service.settings.load_secret_key()
    cookies = {
        "cookie that nobody signed": revoked.key_id,
        "cookie signed with another secret": sign(b"another", "medtune.session", revoked.key_id),
        "cookie signed for another purpose": sign(secret_key, "medtune.other", revoked.key_id),
        "cookie of a revoked key": sign(secret_key, "medtune.session", revoked.key_id),
    }
    values = {
        "nothing": "",
        "garbage": "Bearer mt_wrong",
        "no key": "Bearer",
        "one character off": f"Bearer {other_key}",
        "a longer key": f"Bearer {key}A",
        "no scheme": key,
        "basic": "Basic YTpi",
        "two keys": f"Bearer {revoked.key} {key}",
        "SQL": "Bearer ' OR true --",
        "the key's id": f"Bearer {revoked.key_id}",
        "revoked": f"Bearer {revoked.key}",
    }
    found = {name: {"Authorization": value} if value else {} for name, value in values.items()}
    for name, cookie in cookies.items():
        found[name] = {"Cookie": f"{SESSION_COOKIE}={cookie}", "Origin": service.url}
    return found


def sign(secret_key: bytes, salt: str, key_id: str) -> str:
    """As `Services.sign_session` does."""
    return TimestampSigner(secret_key, salt=salt).sign(key_id).decode()


def test_no_route_opens_to_a_wrong_key(
    service: Service, anonymous: httpx.Client, routes: list[tuple[str, str]], things: Things, revoked: Tenant
) -> None:
    guarded = [route for route in routes if route not in OPEN_ROUTES]

    for name, headers in build_wrong_credentials(service, revoked).items():
        for method, path in guarded:
            response = send(anonymous, method, path, things, headers)
            answer = (name, method, path, response.status_code, response.json()["error"]["type"])
            assert answer == (name, method, path, 401, "authentication_error")
            assert response.headers["www-authenticate"] == "Bearer"


def test_who_may_not_ask_is_not_told_what_is_wrong_with_the_question(
    anonymous: httpx.Client, things: Things, routes: list[tuple[str, str]]
) -> None:
    """Nor whether a thing exists."""
    for path in ("/jobs?limit=0", "/jobs/job_none", "/datasets/%00", f"/jobs/{things.job_id}/logs?after=x"):
        assert anonymous.get(path).status_code == 401
    assert anonymous.post("/jobs", json={"colour": "red"}).status_code == 401
    assert anonymous.post("/jobs", content=b"{").status_code == 401


def test_the_open_routes_answer_and_say_nothing_of_a_tenant(
    service: Service, anonymous: httpx.Client, things: Things
) -> None:
    for method, path in OPEN_ROUTES:
        response = anonymous.request(method, path)
        assert response.status_code == 200
        assert set(response.json()) <= {"status", "database", "broker"}
    for method, path in OPEN_PAGES:
        response = anonymous.request(method, path)
        assert response.status_code in (200, 303, 403)
        assert things.job_id not in response.text
        assert SESSION_COOKIE not in response.headers.get("set-cookie", "")


def test_no_page_opens_to_a_wrong_key(
    service: Service, anonymous: httpx.Client, things: Things, revoked: Tenant
) -> None:
    guarded = [page for page in list_pages() if page not in OPEN_PAGES]
    assert len(guarded) >= 4

    for name, headers in build_wrong_credentials(service, revoked).items():
        for method, path in guarded:
            response = send(anonymous, method, path, things, headers)
            answer = (name, method, path, response.status_code)
            assert answer == (name, method, path, 303)
            assert response.headers["location"].startswith("/dashboard/sign-in?")


def test_methods_and_paths_that_do_not_exist_do_nothing(
    anonymous: httpx.Client, client: Client, routes: list[tuple[str, str]], things: Things
) -> None:
    """Also for somebody with a key: there is no method that the description keeps quiet about."""
    known = {path for _, path in routes}
    absent = [(method, path) for path in known for method in METHODS if (method, path) not in routes]
    absent += [(method, path) for path in ABSENT_PATHS for method in ("GET", "POST")]

    for http, allowed in ((anonymous, {401}), (client.http, {404, 405})):
        for method, path in absent:
            expected = {404, 405} if path.startswith("/dashboard") else allowed
            status = http.request(method, things.fill(path)).status_code
            assert (method, path, status in expected) == (method, path, True), status
    assert client.get(f"/jobs/{things.job_id}")["status"] == "succeeded"


def test_no_route_shows_another_tenant_anything(
    service: Service,
    client: Client,
    routes: list[tuple[str, str]],
    things: Things,
    create_tenant: Callable[..., Tenant],
) -> None:
    before = {path: client.get(things.fill(path)) for path in ("/jobs/{job_id}", "/datasets/{dataset_id}")}
    other = create_tenant(is_admin=True)  # Whom no scope keeps out.
    headers = {"Authorization": f"Bearer {other.key}"}

    with httpx.Client(base_url=service.url, trust_env=False) as http:
        for method, path in routes:
            if path in SHARED_ROUTES or (method, path) in OPEN_ROUTES | CREATE_ROUTES:
                continue
            response = send(http, method, path, things, headers)
            expected = 404 if "{" in path or (method != "GET" and path != "/lineage/rows") else 200
            assert (method, path, response.status_code) == (method, path, expected)
            if expected == 404:
                assert response.json()["error"]["type"] == "not_found_error"
            elif path == "/audit":  # Only what it was refused just now.
                assert all(entry["actor"] == other.key_id for entry in response.json()["data"])
                done = {entry["action"] for entry in response.json()["data"] if entry["result"] == "ok"}
                assert done <= {"find_row", "list_reviews"}  # Of its own, of which there is nothing.
            elif path == "/lineage/rows":
                assert (response.json()["datasets"], response.json()["jobs"]) == ([], [])
            elif path == "/adapters":  # Released ones, of other tests, are for everybody.
                assert {adapter["state"] for adapter in response.json()["data"]} <= {"released"}
                assert things.job_id not in {adapter["job"] for adapter in response.json()["data"]}
            elif path == "/keys":
                assert [key["id"] for key in response.json()["data"]] == [other.key_id]
            else:
                assert response.json()["data"] == []

    assert {path: client.get(things.fill(path)) for path in before} == before


def test_no_page_shows_another_tenant_anything(
    service: Service, things: Things, create_tenant: Callable[..., Tenant]
) -> None:
    """Signed in as a browser is."""
    with httpx.Client(base_url=service.url, trust_env=False, headers={"Origin": service.url}) as browser:
        signed_in = browser.post("/dashboard/sign-in", data={"key": create_tenant().key})
        assert SESSION_COOKIE in signed_in.headers["set-cookie"]
        for method, path in list_pages():
            if (method, path) in OPEN_PAGES:
                continue
            response = browser.request(method, things.fill(path))
            assert (path, response.status_code) == (path, 404 if "{" in path else 200)
            assert "private" not in response.text
            assert "{" in path or things.dataset_id not in response.text


def test_the_other_tenants_things_cannot_be_named_in_a_request(
    service: Service, things: Things, create_tenant: Callable[..., Tenant], tmp_path: Path
) -> None:
    with open_client(service.url, create_tenant().key) as other:
        own = submit_script(other, tmp_path)
        own_body = {"model": "tiny", "dataset": other.get(f"/jobs/{own}")["dataset"]}
        held_out = other.http.post("/jobs", json={**own_body, "validation": {"id": things.dataset_id}})
        wait_for_status(other, own, "succeeded")
        retried = other.http.post(f"/jobs/{own}/retry", json={"dataset": {"id": things.dataset_id}})
        dry = other.http.post("/jobs", params={"dry_run": True}, json=things.body)
        after = (
            other.get("/jobs", after=things.job_id)["data"] + other.get("/datasets", after=things.dataset_id)["data"]
        )

    for response in (held_out, retried, dry):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "dataset_not_found")
    assert things.job_id not in {item["id"] for item in after}
    assert things.dataset_id not in {item["id"] for item in after}


def test_no_route_answers_under_another_hosts_name(
    service: Service, client: Client, routes: list[tuple[str, str]], things: Things
) -> None:
    """As a page does that gave its own name this machine's address."""
    port = service.settings.port
    hosts = ["evil.test", f"evil.test:{port}", f"127.0.0.1.evil.test:{port}", "", f"127.0.0.1@evil.test:{port}"]
    for host in hosts:
        for method, path in [
            *routes,
            *list_pages(),
            ("GET", "/nowhere"),
            ("DELETE", "/"),
            ("GET", "/dashboard/static/"),
        ]:
            response = send(client.http, method, path, things, {"Host": host})
            answer = (host, method, path, response.status_code, response.json()["error"]["code"])
            assert answer == (host, method, path, 400, "unknown_host")
    for host in ("localhost", "LOCALHOST:1", f"127.0.0.1:{port}", "[::1]:80", "192.168.0.7:8000", "[fd00::7]"):
        assert client.http.get("/jobs", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_may_not_read_with_their_scripts(client: Client, things: Things) -> None:
    """No answer and no preflight gives another origin leave; a key in a header is no browser's own."""
    foreign = {"Origin": "https://evil.test", "Access-Control-Request-Method": "POST"}

    answers = [
        client.http.get(f"/jobs/{things.job_id}", headers=foreign),
        client.http.options("/jobs", headers=foreign),
    ]

    assert [answer.status_code for answer in answers] == [200, 405]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("table", sorted({*TENANT_TABLES} - {"vault_entries"}))  # That, the API may not read at all.
def test_row_level_security_alone_hides_every_row(
    engine: Engine, things: Things, create_tenant: Callable[..., Tenant], table: str
) -> None:
    """No WHERE names a tenant here: what hides the rows is the database."""
    columns = {"jobs": "id", "datasets": "id", "audit_entries": "object_id", "audit_heads": "tenant_id"}
    columns["row_shards"] = "dataset_id"
    columns |= {"idempotency_keys": "tenant_id", "uploads": "id", "upload_parts": "upload_id"}
    columns |= {"webhook_endpoints": "id", "webhook_deliveries": "subject_id", "deletions": "id"}
    column = columns.get(table, "job_id")
    wanted = {
        "audit_heads": "default",
        "idempotency_keys": "default",
        "webhook_endpoints": things.webhook_id,
        "deletions": things.deletion_id,
        **dict.fromkeys(("uploads", "upload_parts"), things.upload_id),
        **dict.fromkeys(("datasets", "row_shards"), things.dataset_id),
    }.get(table, things.job_id)

    def count(session: Session) -> tuple[int | None, int | None]:
        one = text(f"SELECT count(*) FROM {table} WHERE {column} = :id")
        hidden = "WHERE state <> 'released'" if table == "adapters" else ""  # Everybody may use the others.
        return session.scalar(one, {"id": wanted}), session.scalar(text(f"SELECT count(*) FROM {table} {hidden}"))

    sessions = build_sessions(engine)
    with tenant_transaction(sessions, "default") as session:
        assert min(filter(None, count(session)), default=0) > 0
    for tenant_id in (create_tenant().id, "", "%", "DEFAULT", "default "):
        with tenant_transaction(sessions, tenant_id) as session:
            assert count(session) == (0, 0)
    # On a connection that served a tenant just now, and on a new one.
    with sessions.begin() as session:
        assert count(session) == (0, 0)
    engine.dispose()
    with sessions.begin() as session:
        assert count(session) == (0, 0)


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_row_level_security_alone_keeps_every_row(
    engine: Engine, things: Things, create_tenant: Callable[..., Tenant], table: str
) -> None:
    """Another tenant can neither change, take, delete nor plant a row, whatever SQL the API were made to run."""
    other = create_tenant().id
    sessions = build_sessions(engine)
    for statement in (f"UPDATE {table} SET tenant_id = '{other}'", f"DELETE FROM {table}"):
        with allowed_or_forbidden(), tenant_transaction(sessions, other) as session:
            assert session.execute(text(statement)).rowcount == 0  # type: ignore[attr-defined]
    row = f'jsonb_populate_record(NULL::{table}, \'{{"tenant_id": "default"}}\')'
    columns = ", ".join(column.name for column in Base.metadata.tables[table].columns if column.computed is None)
    plant = f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {row}"
    with (
        pytest.raises(ProgrammingError, match=r"row-level security|permission denied"),
        tenant_transaction(sessions, other) as session,
    ):
        session.execute(text(plant))


@contextmanager
def allowed_or_forbidden() -> Iterator[None]:
    """To have no right to the statement at all is as good."""
    try:
        yield
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
