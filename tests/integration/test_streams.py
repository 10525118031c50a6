"""Following jobs by server-sent events, from a real API process that may be killed."""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest

from jobs.api_keys import revoke_key
from tests.conftest import Servers
from tests.factories import wait_until
from tests.integration.api_process import STARTS_SECONDS, Api, run_api

LIMIT = 3
NUM_TAILS = 200


@dataclass(frozen=True)
class Message:
    event: str
    id: str
    data: Any


@pytest.fixture(scope="module")
def api_process(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from run_api(servers, tmp_path_factory.mktemp("streams"), max_streams_per_key=LIMIT)


def iter_messages(response: httpx.Response) -> Iterator[Message]:
    """By hand, as the specification says; comments are passed over."""
    assert response.status_code == 200, response.read()
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if (message := take_line(fields, line)) is not None:
            yield message


def take_line(fields: dict[str, str], line: str) -> Message | None:
    """The message that the line ends, if it ends one; `fields` has those of the message so far."""
    name, _, value = line.partition(": ")
    if line and not line.startswith(":"):
        fields[name] = value
    elif fields:
        message = Message(fields["event"], fields["id"], json.loads(fields["data"]))
        fields.clear()
        return message
    return None


def open_http(api: Api, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=api.url, headers=headers, timeout=STARTS_SECONDS, trust_env=False)


def read_numbers(messages: list[Message], kind: str) -> list[int]:
    """Those that Api.write gave."""
    read: dict[str, Callable[[Any], str]] = {
        "event": lambda data: data["message"].split()[-1],
        "metric": lambda data: str(data["step"]),
        "log": lambda data: data["text"].split()[-1],
    }
    texts = [read[kind](message.data) for message in messages if message.event == kind]
    return [int(text) for text in texts if text.isdigit()]


def test_a_stream_goes_on_without_gap_or_double_after_the_api_was_killed(api_process: Api) -> None:
    """By Last-Event-ID alone, as a browser does; what comes meanwhile is not lost."""
    identity, key = api_process.create_key()
    lease = api_process.start_job(identity)
    received: list[Message] = []
    with open_http(api_process, key) as http:
        for number in range(1, 4):
            api_process.write(lease, number)
        with http.stream("GET", f"/jobs/{lease.job_id}/stream") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            messages = iter_messages(response)
            while len(received) < 7:  # In the middle of what was written.
                received.append(next(messages))
            api_process.write(lease, 4)
            api_process.end(signal.SIGKILL)
        api_process.write(lease, 5)
        api_process.start()
        last = {"Last-Event-ID": received[-1].id}
        with http.stream("GET", f"/jobs/{lease.job_id}/stream?after=0", headers=last) as response:
            messages = iter_messages(response)
            received.append(next(messages))
            api_process.write(lease, 6)
            api_process.finish(lease)
            received.extend(messages)
        again = http.get(f"/jobs/{lease.job_id}/stream", params={"after": received[-1].id})

    for kind in ("event", "metric", "log"):
        assert read_numbers(received, kind) == [1, 2, 3, 4, 5, 6], kind
    assert len({message.id for message in received[:-1]}) == len(received) - 1
    assert (received[-1].event, received[-1].data) == ("end", {"status": "failed"})
    assert [message.event for message in iter_messages(again)] == ["end"]


def test_tails_that_come_and_go_miss_nothing_and_get_nothing_twice(api_process: Api) -> None:
    """Each cuts its connection after a random number of messages, again and again, while the job goes on."""
    identity, _ = api_process.create_key()
    lease = api_process.start_job(identity)
    keys = [api_process.create_key()[1] for _ in range(NUM_TAILS)]
    last = 60

    async def follow_all() -> list[list[Message]]:
        tails = [
            asyncio.create_task(follow_with_cuts(api_process, key, lease.job_id, random.Random(number)))
            for number, key in enumerate(keys)
        ]
        for number in range(1, last + 1):
            await asyncio.to_thread(api_process.write, lease, number)
        await asyncio.to_thread(api_process.finish, lease)
        return await asyncio.gather(*tails)

    with ThreadPoolExecutor(1) as thread:  # Where browser tests ran before, this thread has a loop that runs.
        received = thread.submit(lambda: asyncio.run(follow_all())).result()

    expected = list(range(1, last + 1))
    for kind in ("event", "metric", "log"):
        assert all(read_numbers(messages, kind) == expected for messages in received), kind
    assert {messages[-1].event for messages in received} == {"end"}


async def follow_with_cuts(api: Api, key: str, job_id: str, source: random.Random) -> list[Message]:
    received: list[Message] = []
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=api.url, headers=headers, timeout=STARTS_SECONDS, trust_env=False) as http:
        while not received or received[-1].event != "end":
            last = {"Last-Event-ID": received[-1].id} if received else {}
            async with http.stream("GET", f"/jobs/{job_id}/stream", headers=last) as response:
                if response.status_code == 429:  # The server has not yet noticed that the last connection was cut.
                    continue
                assert response.status_code == 200
                async for message in take_messages(response, source.randint(1, 60)):
                    received.append(message)
    return received


async def take_messages(response: httpx.Response, number: int) -> AsyncIterator[Message]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if (message := take_line(fields, line)) is not None:
            yield message
            number -= 1
            if number == 0:
                return


def test_the_cursor_of_a_stream_is_made_of_those_of_the_polled_routes(api_process: Api) -> None:
    identity, key = api_process.create_key()
    lease = api_process.start_job(identity)
    api_process.write(lease, 1)
    api_process.finish(lease)

    with open_http(api_process, key) as http:
        polled = {name: http.get(f"/jobs/{lease.job_id}/{name}").json() for name in ("events", "metrics", "logs")}
        messages = list(iter_messages(http.get(f"/jobs/{lease.job_id}/stream")))

    assert messages[-1].id == "-".join(str(page["cursor"]) for page in polled.values())
    for name, kind in (("events", "event"), ("metrics", "metric"), ("logs", "log")):
        assert [message.data for message in messages if message.event == kind] == polled[name]["data"]


def test_what_can_be_refused_is_refused_before_the_stream_begins(api_process: Api) -> None:
    identity, key = api_process.create_key()
    _, foreign_key = api_process.create_key("b")
    lease = api_process.start_job(identity)
    path = f"/jobs/{lease.job_id}/stream"
    found = {}
    for name, sent_key, sent_path, last in (
        ("no key", "mt_wrong", path, ""),
        ("no job", key, "/jobs/job_none/stream", ""),
        ("another tenant's", foreign_key, path, ""),
        ("no cursor", key, f"{path}?after=3", ""),
        ("no last id", key, path, "1-2"),
    ):
        with open_http(api_process, sent_key) as http:
            response = http.get(sent_path, headers={"Last-Event-ID": last} if last else {})
            found[name] = (response.status_code, response.json()["error"]["code"])

    assert found == {
        "no key": (401, "invalid_api_key"),
        "no job": (404, "job_not_found"),
        "another tenant's": (404, "job_not_found"),
        "no cursor": (422, "invalid_cursor"),
        "no last id": (422, "invalid_cursor"),
    }


def test_a_key_has_so_many_streams_and_clients_that_leave_make_room(api_process: Api) -> None:
    identity, key = api_process.create_key()
    _, other_key = api_process.create_key()
    path = f"/jobs/{api_process.start_job(identity).job_id}/stream"
    clients = [open_http(api_process, key) for _ in range(LIMIT)]
    streams = [http.send(http.build_request("GET", path), stream=True) for http in clients]

    with open_http(api_process, key) as http, open_http(api_process, other_key) as other:
        refused = http.get(path)
        with other.stream("GET", path) as allowed:
            assert allowed.status_code == 200
        streams[0].close()  # Cuts the connection.

        def try_again() -> int:
            with http.stream("GET", path) as response:
                return response.status_code

        wait_until(try_again, lambda code: code == 200, seconds=STARTS_SECONDS, every=0.2)
    for client in clients:
        client.close()

    assert [stream.status_code for stream in streams] == [200] * LIMIT
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "stream_limit_reached")
    assert int(refused.headers["Retry-After"]) > 0


def test_open_streams_hold_no_connection(api_process: Api) -> None:
    """Each look takes one for a moment; nobody sits in a transaction, and more streams take no more connections."""
    identity, key = api_process.create_key()
    path = f"/jobs/{api_process.start_job(identity).job_id}/stream"
    url = api_process.settings.database_url
    assert url is not None
    ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'medtune-medtune_api'"
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection, open_http(api_process, key) as http:

        def count(condition: str) -> int:
            row = connection.execute(f"SELECT count(*) {ours} AND {condition}").fetchone()
            assert row is not None
            return int(row[0])

        before = count("true")
        streams = [http.send(http.build_request("GET", path), stream=True) for _ in range(LIMIT)]
        for stream in streams:
            assert next(iter_messages(stream)).event == "event"
        held = [count("state LIKE 'idle in transaction%' AND state_change < now() - interval '2 s'") for _ in range(20)]
        after = count("true")
        for stream in streams:
            stream.close()

    assert max(held) == 0
    assert after <= before + 2  # One for the looks, one for a request; the pool keeps them.


def test_a_revoked_key_ends_its_streams(api_process: Api) -> None:
    identity, key = api_process.create_key()
    _, other_key = api_process.create_key()
    lease = api_process.start_job(identity)
    path = f"/jobs/{lease.job_id}/stream"
    with (
        open_http(api_process, key) as http,
        open_http(api_process, other_key) as other,
        http.stream("GET", path) as revoked,
        other.stream("GET", path) as valid,
    ):
        messages, others = iter_messages(revoked), iter_messages(valid)
        first = [next(messages), next(messages)]
        with api_process.sessions.begin() as session:
            assert revoke_key(session, identity.key_id)
        rest = list(messages)
        api_process.finish(lease)
        seen = list(others)

    assert [message.event for message in first + rest] == ["event", "event"]
    assert seen[-1].event == "end"


def test_a_server_that_is_told_to_end_ends_its_streams(api_process: Api) -> None:
    """Without the message `end`: the client goes on elsewhere."""
    identity, key = api_process.create_key()
    path = f"/jobs/{api_process.start_job(identity).job_id}/stream"
    with open_http(api_process, key) as http, http.stream("GET", path) as response:
        messages = iter_messages(response)
        received = [next(messages), next(messages)]
        assert api_process.process is not None
        api_process.process.terminate()
        received.extend(messages)  # In good order: a connection that is cut raises.
    assert api_process.process.wait(STARTS_SECONDS) == -signal.SIGTERM
    api_process.start()

    assert [message.event for message in received] == ["event", "event"]
