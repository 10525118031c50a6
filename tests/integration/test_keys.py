"""API keys: what each may do, until when, and with which value."""

import datetime
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import update
from starlette.routing import Mount

from api.app import create_app
from api.dashboard import pages
from api.scopes import OPEN, SCOPES
from cli.serve import Service
from jobs.api_keys import create_key
from jobs.database import Role, build_engine, build_sessions
from jobs.models import ApiKey
from jobs.scopes import DEFAULT_SCOPES, Scope
from jobs.settings import Settings
from tests.factories import wait_until
from tests.plain_client import Client

ROOT = Path(__file__).parents[2]
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(client: Client) -> Make:
    """A key of the default tenant, as the answer to whoever made it."""

    def make(**body: Any) -> dict[str, Any]:
        made: dict[str, Any] = client.post("/keys", {"name": "test", **body})
        return made

    return make


@pytest.fixture
def ask(service: Service) -> Iterator[Callable[..., httpx.Response]]:
    """Method and path with the value of a key."""
    with httpx.Client(base_url=service.url, trust_env=False) as http:

        def ask(value: str, method: str, path: str, body: Any = None) -> httpx.Response:
            return http.request(method, path, json=body, headers={"Authorization": f"Bearer {value}"})

        yield ask


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_every_route_declares_its_scope(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    routes = [route for route in iter_route_contexts(app.routes) if not isinstance(route.route, Mount)]
    undeclared = [
        f"{route.path} ({route.name})"
        for route in (*routes, *iter_route_contexts(pages.router.routes))
        if route.name not in SCOPES.keys() | OPEN
    ]

    assert undeclared == [], "add a line to SCOPES in api/scopes.py for each, which says the scope that it wants"
    assert len(routes) > 30


def test_a_route_opens_to_its_scope_and_to_no_other(make: Make, ask: Callable[..., httpx.Response]) -> None:
    paths = {
        Scope.JOBS_READ: ("GET", "/jobs"),
        Scope.DATASETS_READ: ("GET", "/datasets"),
        Scope.ADAPTERS_READ: ("GET", "/adapters"),
        Scope.AUDIT_READ: ("GET", "/audit"),
        Scope.KEYS_MANAGE: ("GET", "/keys"),
        Scope.ADMIN: ("GET", "/workers"),
        Scope.JOBS_WRITE: ("POST", "/jobs/job_none/cancel"),
        Scope.DATASETS_WRITE: ("DELETE", "/datasets/ds_none"),
        Scope.ADAPTERS_RELEASE: ("POST", "/adapters/job_none/release"),
        Scope.REVIEWS_DECIDE: ("POST", "/adapters/job_none/review"),
    }
    assert paths.keys() == set(Scope)
    keys = {scope: make(scopes=[scope])["value"] for scope in Scope}

    for scope, value in keys.items():
        for wanted, (method, path) in paths.items():
            response = ask(value, method, path, {} if method == "POST" else None)
            if scope in (wanted, Scope.ADMIN):
                assert response.status_code in (200, 404, 422), (scope, path, response.text)
            else:
                assert error_of(response) == (403, "missing_scope"), (scope, path)
                assert response.json()["error"]["details"]["scope"] == wanted
        assert ask(value, "GET", "/models").status_code == 200


def test_who_may_not_do_a_thing_is_not_told_what_is_wrong_with_it(
    make: Make, ask: Callable[..., httpx.Response]
) -> None:
    reader = make(scopes=["jobs:read"])

    assert error_of(ask(reader["value"], "POST", "/jobs", {"colour": "red"})) == (403, "missing_scope")
    assert error_of(ask(reader["value"], "POST", "/jobs/job_none/retry", [])) == (403, "missing_scope")


def test_a_refused_act_is_in_the_audit_log(client: Client, make: Make, ask: Callable[..., httpx.Response]) -> None:
    reader = make(scopes=["jobs:read"])
    ask(reader["value"], "POST", "/jobs/job_wanted/cancel")

    entries = [entry for page in client.follow("/audit") for entry in page if entry["actor"] == reader["id"]]
    assert [(e["action"], e["object_id"], e["result"]) for e in entries] == [
        ("cancel_job", "job_wanted", "missing_scope")
    ]


def test_a_key_that_was_made_without_a_word_works_within_its_tenant(
    make: Make, ask: Callable[..., httpx.Response]
) -> None:
    made = make()

    assert set(made["scopes"]) == DEFAULT_SCOPES
    assert ask(made["value"], "GET", "/jobs").status_code == 200
    assert error_of(ask(made["value"], "POST", "/keys", {"name": "x"})) == (403, "missing_scope")
    job = {"model": "tiny", "dataset": {"id": "ds_" + "0" * 26}, "priority": 1}
    for path in ("/jobs", "/jobs?dry_run=true"):
        assert error_of(ask(made["value"], "POST", path, job)) == (403, "priority_needs_admin")
    assert ask(made["value"], "POST", "/jobs", job | {"priority": -1}).status_code == 404


def test_nobody_makes_a_key_that_may_more_than_his_own(make: Make, ask: Callable[..., httpx.Response]) -> None:
    manager = make(scopes=["keys:manage", "jobs:read"], max_queued=3, expires_at="2100-01-01T00:00:00Z")

    def try_to_make(**body: Any) -> httpx.Response:
        return ask(manager["value"], "POST", "/keys", {"name": "child", "scopes": ["jobs:read"], **body})

    child = try_to_make()
    assert child.status_code == 201
    assert (child.json()["max_queued"], child.json()["expires_at"]) == (3, manager["expires_at"])
    assert error_of(try_to_make(scopes=["jobs:write"])) == (403, "scope_not_held")
    assert error_of(try_to_make(scopes=["admin"])) == (403, "scope_not_held")
    assert error_of(try_to_make(max_queued=4)) == (403, "limit_exceeded")
    assert error_of(try_to_make(expires_at="2100-01-02T00:00:00Z")) == (403, "limit_exceeded")
    assert try_to_make(expires_at="2001-01-02T00:00:00Z").json()["error"]["param"] == "expires_at"
    assert try_to_make(expires_at="2030-01-02T00:00:00").json()["error"]["param"] == "expires_at"
    assert try_to_make(scopes=["everything"]).status_code == 422
    names = [key["name"] for key in ask(manager["value"], "GET", "/keys").json()["data"]]
    assert names.count("child") >= 1


def test_nobody_takes_over_a_key_that_may_more_than_his_own(
    client: Client, make: Make, ask: Callable[..., httpx.Response]
) -> None:
    """A new value would open everything that the old one did."""
    manager, stronger = make(scopes=["keys:manage"]), make()

    assert error_of(ask(manager["value"], "POST", f"/keys/{stronger['id']}/rotate", {})) == (403, "scope_not_held")
    assert error_of(ask(manager["value"], "DELETE", f"/keys/{stronger['id']}")) == (403, "scope_not_held")
    assert ask(stronger["value"], "GET", "/jobs").status_code == 200
    weaker = make(scopes=["keys:manage"])
    assert ask(manager["value"], "DELETE", f"/keys/{weaker['id']}").status_code == 200


def test_another_tenants_keys_do_not_exist(
    service: Service, client: Client, ask: Callable[..., httpx.Response]
) -> None:
    engine = build_engine(service.settings, Role.API, pool_size=1)
    with build_sessions(engine).begin() as session:
        secret_key = service.settings.load_secret_key()
        theirs, value = create_key(session, secret_key, name="theirs", tenant_id="another", is_admin=True)
    engine.dispose()

    assert [key["id"] for key in ask(value, "GET", "/keys").json()["data"]] == [theirs.id]
    assert theirs.id not in {key["id"] for key in client.get("/keys")["data"]}
    assert error_of(client.http.delete(f"/keys/{theirs.id}")) == (404, "key_not_found")
    assert error_of(client.http.post(f"/keys/{theirs.id}/rotate", json={})) == (404, "key_not_found")
    assert ask(value, "GET", "/jobs").status_code == 200


def test_a_key_opens_nothing_after_its_end(service: Service, make: Make, ask: Callable[..., httpx.Response]) -> None:
    made = make(expires_at="2100-01-01T00:00:00Z")
    assert ask(made["value"], "GET", "/jobs").status_code == 200

    change(service, made["id"], expires_at=datetime.datetime.now(datetime.UTC))

    assert error_of(ask(made["value"], "GET", "/jobs")) == (401, "api_key_expired")


def test_a_revoked_key_opens_nothing_at_once(client: Client, make: Make, ask: Callable[..., httpx.Response]) -> None:
    made = make()
    rotated = client.post(f"/keys/{made['id']}/rotate", {})

    revoked = client.http.delete(f"/keys/{made['id']}")

    assert (revoked.status_code, revoked.json()["revoked_at"] is None) == (200, False)
    for value in (made["value"], rotated["value"]):
        assert error_of(ask(value, "GET", "/jobs")) == (401, "api_key_revoked")
    assert error_of(client.http.delete(f"/keys/{made['id']}")) == (409, "key_revoked")
    assert error_of(client.http.post(f"/keys/{made['id']}/rotate", json={})) == (409, "key_revoked")


def test_both_values_open_during_a_rotation(
    service: Service, client: Client, make: Make, ask: Callable[..., httpx.Response]
) -> None:
    first = make()
    second = client.post(f"/keys/{first['id']}/rotate", {"overlap_seconds": 3600})

    assert (second["id"], second["scopes"]) == (first["id"], first["scopes"])
    assert [ask(key["value"], "GET", "/jobs").status_code for key in (first, second)] == [200, 200]
    change(service, first["id"], previous_valid_until=datetime.datetime.now(datetime.UTC))
    assert error_of(ask(first["value"], "GET", "/jobs")) == (401, "api_key_rotated")
    assert ask(second["value"], "GET", "/jobs").status_code == 200


def test_a_rotation_without_overlap_ends_the_old_value_and_its_sessions(
    service: Service, client: Client, make: Make, ask: Callable[..., httpx.Response]
) -> None:
    """Somebody else has it, and may have signed in with it."""
    made = make()
    with httpx.Client(base_url=service.url, trust_env=False, headers={"Origin": service.url}) as browser:
        browser.post("/dashboard/sign-in", data={"key": made["value"]})
        assert browser.get("/jobs").status_code == 200
        client.post(f"/keys/{made['id']}/rotate", {"overlap_seconds": 0})
        assert error_of(ask(made["value"], "GET", "/jobs")) == (401, "api_key_rotated")
        assert browser.get("/jobs").status_code == 401


def test_a_key_says_when_it_was_last_used(client: Client, make: Make, ask: Callable[..., httpx.Response]) -> None:
    made = make()
    assert made["last_used_at"] is None
    ask(made["value"], "GET", "/jobs")

    def find() -> str | None:
        [found] = [key for key in client.get("/keys")["data"] if key["id"] == made["id"]]
        used: str | None = found["last_used_at"]
        return used

    used = wait_until(find)
    ask(made["value"], "GET", "/jobs")
    assert find() == used  # Once a minute is enough.


def test_no_list_shows_a_value(client: Client, make: Make) -> None:
    made = make(name="quiet")

    [listed] = [key for key in client.get("/keys")["data"] if key["id"] == made["id"]]

    assert made["value"].startswith("mt_")
    assert listed.keys() == made.keys() - {"value"}
    audit = [entry for page in client.follow("/audit") for entry in page]
    assert made["value"] not in str(audit)
    assert ("create_key", made["id"]) in {(entry["action"], entry["object_id"]) for entry in audit}


def test_the_operator_makes_lists_rotates_and_revokes_keys(
    service: Service, ask: Callable[..., httpx.Response]
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "MEDTUNE_HOME": str(service.settings.home),
        "MEDTUNE_DATABASE_URL": service.settings.database_url.get_secret_value(),  # type: ignore[union-attr]
    }

    def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli.main", "keys", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    made = keys("create", "reader", "--scope", "jobs:read", "--expires-days", "1").stdout
    key_id, value = made.split()[0], made.split()[-1]
    assert ask(value, "GET", "/jobs").status_code == 200
    assert error_of(ask(value, "GET", "/datasets")) == (403, "missing_scope")
    new_value = keys("rotate", key_id, "--overlap-hours", "0").stdout.split()[-1]
    assert error_of(ask(value, "GET", "/jobs")) == (401, "api_key_rotated")
    assert ask(new_value, "GET", "/jobs").status_code == 200
    assert keys("revoke", key_id).returncode == 0
    assert error_of(ask(new_value, "GET", "/jobs")) == (401, "api_key_revoked")
    [line] = [line for line in keys("list").stdout.splitlines() if key_id in line]
    assert "revoked" in line
    refused = keys("rotate", key_id)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"medtune: key {key_id} was revoked; make a new one\n"


def change(service: Service, key_id: str, **values: Any) -> None:
    """What only time would do."""
    engine = build_engine(service.settings, role=None, pool_size=1)
    with build_sessions(engine).begin() as session:
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(**values))
    engine.dispose()
