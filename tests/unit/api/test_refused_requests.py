"""However many requests come without a valid key, the log says how many, in few lines."""

import pytest
from fastapi import Request

from api.refused_requests import RefusedRequests


def build_request(path: str) -> Request:
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"key=mt_secret", "headers": []}
    return Request({**scope, "client": ("10.0.0.3", 1), "server": ("here", 80), "scheme": "http"})


def test_the_first_is_told_at_once_and_the_next_line_has_the_number_of_all_since(
    caplog: pytest.LogCaptureFixture,
) -> None:
    patient, quick = RefusedRequests(seconds_between_lines=3600.0), RefusedRequests(seconds_between_lines=0.0)
    for _ in range(1000):
        patient.count(build_request("/jobs"))
    quick.count(build_request("/jobs"))
    quick.count(build_request("/jobs/\x1b[31m" + "c" * 1000))

    first, second, third = caplog.messages
    assert first == second
    assert "1 requests since the last such line, 1 in all; the last: POST '/jobs' from 10.0.0.3" in first
    assert "1 requests since the last such line, 2 in all; the last: POST '/jobs/\\x1b[31mcc" in third
    assert len(third) < 250
    assert "secret" not in caplog.text


def test_those_of_a_pause_are_counted_into_the_line_after_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = RefusedRequests(seconds_between_lines=60.0)
    for now in (100.0, 130.0, 159.0, 160.0):
        monkeypatch.setattr("api.refused_requests.time.monotonic", lambda now=now: now)
        refused.count(build_request("/jobs"))

    assert [message.partition(" requests")[0] for message in caplog.messages] == [
        "no valid API key: 1",
        "no valid API key: 3",
    ]
