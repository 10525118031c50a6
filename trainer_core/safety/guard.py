"""Guard: asks a guard model what it thinks of answers. All verdicts of a round or none; nothing of it is logged."""

import asyncio
import hashlib
import ipaddress
import itertools
import json
from collections.abc import Mapping, Sequence

import httpx

from trainer_core.errors import ConfigurationError, GuardError
from trainer_core.safety.check import MAX_CHARACTERS
from trainer_core.safety.guard_config import GuardConfig
from trainer_core.safety.probes import Probe
from trainer_core.safety.verdict import Verdict, parse_verdict

_MAX_TOKENS = 128
_MAX_REPLY_BYTES = 1_000_000
"""A verdict has some hundred: what is longer is read no further."""
_SERVER = "Look at the guard's server and its log; MEDTUNE_SAFETY_GUARD_URL says where it is."


class Guard:
    """Rank 0's. The same conversation is asked once, so the base's answers are, over all rounds."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._known: dict[bytes, Verdict] = {}
        """By digest of the request."""

    def judge(self, answers: Sequence[tuple[Probe, str]]) -> list[Verdict]:
        """Of each answer. Raises GuardError when there is any without a verdict."""
        requests = [self._build_request(probe, answer) for probe, answer in answers]
        digests = [hashlib.sha256(request).digest() for request in requests]
        new = {d: request for d, request in zip(digests, requests, strict=True) if d not in self._known}
        if new:
            self._known |= asyncio.run(self._ask_all(new))
        return [self._known[digest] for digest in digests]

    def _build_request(self, probe: Probe, answer: str) -> bytes:
        body = {
            "model": self.config.model,
            "messages": build_conversation(probe, answer[:MAX_CHARACTERS]),
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }
        return json.dumps(body).encode()

    async def _ask_all(self, requests: Mapping[bytes, bytes]) -> dict[bytes, Verdict]:
        seconds, turns = self.config.round_seconds, asyncio.Semaphore(self.config.concurrency)
        try:
            async with asyncio.timeout(seconds), self._open() as http, asyncio.TaskGroup() as group:
                tasks = {d: group.create_task(self._ask(http, turns, request)) for d, request in requests.items()}
        except TimeoutError:
            message = f"The guard did not give its {len(requests)} verdicts of the round within {seconds:g} s."
            remedy = "Serve it faster, or raise MEDTUNE_SAFETY_GUARD_ROUND_SECONDS or _CONCURRENCY."
            raise GuardError("guard_timeout", message, remedy=remedy) from None
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {digest: task.result() for digest, task in tasks.items()}

    def _open(self) -> httpx.AsyncClient:
        """No redirect is followed, and the clock is `asyncio.timeout`, which a slow trickle does not stop."""
        try:
            key = self.config.load_key()
        except (ConfigurationError, OSError) as error:
            raise GuardError("guard_key", f"The guard's key cannot be read: {error}.") from None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        uses_proxy = not _is_loopback(self.config.url.host or "")
        return httpx.AsyncClient(headers=headers, timeout=None, trust_env=uses_proxy)

    async def _ask(self, http: httpx.AsyncClient, turns: asyncio.Semaphore, request: bytes) -> Verdict:
        seconds = self.config.request_seconds
        async with turns:
            try:
                async with (
                    asyncio.timeout(seconds),
                    http.stream("POST", self.config.endpoint, content=request) as response,
                ):
                    reply = await _read_reply(response)
            except TimeoutError:
                remedy = "Serve it faster, or raise MEDTUNE_SAFETY_GUARD_REQUEST_SECONDS."
                message = f"The guard gave no verdict within {seconds:g} s."
                raise GuardError("guard_timeout", message, remedy=remedy) from None
            except httpx.HTTPError as error:
                message = f"The guard cannot be reached: {type(error).__name__}: {error}."
                raise GuardError("guard_unreachable", message, remedy=_SERVER) from None
        return parse_verdict(_read_content(reply))


def build_conversation(probe: Probe, answer: str) -> list[dict[str, str]]:
    """Turns of user and assistant in alternation, the answer last, as guards' chat templates want it: what a system
    message says goes before the user's words."""
    turns = [*((message.role, message.content) for message in probe.messages), ("assistant", answer)]
    return [
        {"role": role, "content": "\n\n".join(content for _, content in group)}
        for role, group in itertools.groupby(turns, lambda turn: "assistant" if turn[0] == "assistant" else "user")
    ]


async def _read_reply(response: httpx.Response) -> bytes:
    """As it comes: nothing is decompressed, since a few kilobytes may hold gigabytes."""
    if response.status_code != httpx.codes.OK:
        message = f"The guard answered with HTTP status {response.status_code}."
        raise GuardError("guard_refused", message, remedy=_SERVER)
    reply = b""
    async for part in response.aiter_raw():
        reply += part
        if len(reply) > _MAX_REPLY_BYTES:
            message = f"The guard's reply is longer than {_MAX_REPLY_BYTES:,} bytes."
            raise GuardError("guard_unreadable", message, remedy=_SERVER)
    return reply


def _read_content(reply: bytes) -> str:
    try:
        content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        content = None
    if not isinstance(content, str):
        message = "The guard's reply is no chat completion."
        raise GuardError("guard_unreadable", message, remedy="Name an OpenAI-compatible endpoint, up to its /v1.")
    return content


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
