"""Sends what `jobs.lifecycle.deliveries` wrote: at least once, each try recorded, from any number of processes.

A delivery is claimed, sent and recorded, with no transaction open meanwhile. Who dies in between leaves it claimed; it
is due again a minute later, with the same id and the same bytes.
"""

import asyncio
import datetime
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import Row

from jobs import lifecycle
from jobs.database import LOST_DATABASE, Role, Sessions, build_engine, build_sessions
from jobs.errors import InvalidRequest
from jobs.settings import Settings
from jobs.webhooks.messages import build_body, derive_secret, hash_secret, sign
from jobs.webhooks.targets import Target, find_address, parse_target

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_SENDING = 50
"""At once; one of each endpoint."""
SEND_SECONDS = 15.0
"""For all of one try: the name service, the connection, the answer's first line and headers. Nobody reads its body."""
LAST_SECONDS = 5.0
"""What is being sent when the process is told to end has so long."""
USER_AGENT = "medtune-webhooks/1"


@dataclass(frozen=True)
class Outcome:
    """`error` is None for a 2xx, and never what the target wrote."""

    status_code: int | None = None
    error: str | None = None


def run_sender(settings: Settings, stopping: threading.Event) -> None:
    """Until stopped. Should it end by itself, the process is to end, too, and be started again."""
    engine = build_engine(settings, Role.WORKER, pool_size=2)
    try:
        asyncio.run(Sender(settings, build_sessions(engine)).run(stopping))
    finally:
        stopping.set()
        engine.dispose()


class Sender:
    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._secret_key = settings.load_secret_key()
        self._tls = httpx.create_ssl_context()
        self._resolvers = ThreadPoolExecutor(MAX_SENDING, thread_name_prefix="resolver")
        """Threads of their own: a name service that hangs must not hold up the database."""
        self._sending: dict[str, asyncio.Task[None]] = {}
        """By endpoint."""

    async def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            claimed = await asyncio.to_thread(self._claim)
            for delivery in claimed:
                self._sending[delivery.endpoint_id] = asyncio.create_task(self._handle(delivery))
            if not claimed:
                await asyncio.sleep(POLL_SECONDS)
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=LAST_SECONDS)
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def _claim(self) -> list[Row[Any]]:
        free = MAX_SENDING - len(self._sending)
        if free == 0:
            return []
        try:
            with self._sessions.begin() as session:
                return list(lifecycle.claim_deliveries(session, busy=list(self._sending), limit=free))
        except LOST_DATABASE as error:
            logger.warning("the database does not answer: %s", error)
            return []

    async def _handle(self, delivery: Row[Any]) -> None:
        try:
            outcome = await self._send(delivery)
            if outcome.error is not None:
                logger.warning(
                    "%s to %s, try %d: %s", delivery.event_id, delivery.endpoint_id, delivery.num_tries, outcome
                )
            await asyncio.to_thread(self._record, delivery, outcome)
        except Exception:  # It is due again when its claim ends; the others go on.
            logger.exception("%s to %s", delivery.event_id, delivery.endpoint_id)
        finally:
            del self._sending[delivery.endpoint_id]

    def _record(self, delivery: Row[Any], outcome: Outcome) -> None:
        with self._sessions.begin() as session:
            lifecycle.record_delivery(
                session,
                delivery,
                status_code=outcome.status_code,
                error=outcome.error,
                backoff_seconds=self._settings.webhook_backoff_seconds,
            )

    async def _send(self, delivery: Row[Any]) -> Outcome:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                target = parse_target(delivery.url, allow_http=self._settings.webhook_allow_http)
                networks = self._settings.webhook_allowed_networks
                ask = asyncio.get_running_loop().run_in_executor
                address = await ask(self._resolvers, find_address, target, networks)
                return await self._post(target, address, delivery)
        except InvalidRequest as refusal:
            return Outcome(error=refusal.code)
        except TimeoutError:
            return Outcome(error="timeout")
        except httpx.HTTPError as error:
            return Outcome(error=_NAMES.get(type(error), "no_answer"))

    async def _post(self, target: Target, address: str, delivery: Row[Any]) -> Outcome:
        """To this address and no other; the certificate must be the name's all the same."""
        body = build_body(delivery.event_id, delivery.type, delivery.created_at, delivery.subject_id)
        secrets = self._derive_secrets(delivery)
        if hash_secret(secrets[0]) != delivery.secret_hash:
            return Outcome(error="another_secret_key")
        host = f"[{address}]" if ":" in address else address
        headers = {
            "Host": target.host_header,
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            **sign(body, delivery.event_id, secrets, datetime.datetime.now(datetime.UTC)),
        }
        # A client of its own: no cookie or connection is another message's. No proxy: it would ask for names itself.
        async with (
            httpx.AsyncClient(
                verify=self._tls, trust_env=False, follow_redirects=False, timeout=SEND_SECONDS
            ) as client,
            client.stream(
                "POST",
                f"{target.scheme}://{host}:{target.port}{target.path}",
                content=body,
                headers=headers,
                extensions={"sni_hostname": target.host},
            ) as response,
        ):
            return Outcome(response.status_code, _judge(response))

    def _derive_secrets(self, delivery: Row[Any]) -> list[str]:
        """The newest first."""
        num_valid = 2 if delivery.has_previous_secret else 1
        versions = range(delivery.secret_version, delivery.secret_version - num_valid, -1)
        return [derive_secret(self._secret_key, delivery.endpoint_id, version) for version in versions]


def _judge(response: httpx.Response) -> str | None:
    if response.is_success:
        return None
    return "redirect" if response.is_redirect else "http_status"


_NAMES: dict[type[httpx.HTTPError], str] = {
    httpx.ConnectError: "connection_failed",
    httpx.ConnectTimeout: "timeout",
    httpx.ReadTimeout: "timeout",
    httpx.WriteTimeout: "timeout",
    httpx.RemoteProtocolError: "not_http",
}
"""What a client may know of it. A refused certificate is a failed connection."""
