"""Secrets do not reach the database by way of a log."""

import base64
import time
from pathlib import Path

import pytest

from jobs.models import Attempt
from jobs.settings import Settings
from jobs.signing_key import ensure_signing_key
from jobs.vault_key import get_vault_key_file, load_vault_keyring
from trainer_core.reporting import ErrorEvent, Reporter
from trainer_core.run_dir import RunDir
from worker.collector import CHUNK_BYTES, Collector
from worker.masking import Masker, build_masker

TAIL = "Zq3" * 14
KEYS = {
    "our own": f"mt_{TAIL}",
    "Hugging Face": f"hf_{TAIL}",
    "GitHub": f"ghp_{TAIL}",
    "GitHub, fine-grained": f"github_pat_11AA_{TAIL}",
    "AWS": "AKIA" + "ABCD1234" * 2,
    "OpenAI": f"sk-proj-{TAIL}",
    "JSON web token": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{TAIL}",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("around", ["{}", "token={}", '"{}"', "Bearer {},", "https://x.test/?t={}&a=1", "a\n{}\nb"])
def test_keys_of_well_known_kinds_are_masked(key: str, around: str) -> None:
    assert Masker().mask(around.format(key).encode()).decode() == around.format("[secret]")


def test_of_a_url_only_the_password_is_masked() -> None:
    line = b"cannot connect to postgresql://medtune:pa%40ss@db.test:5432/medtune, redis://:word@r.test"

    assert Masker().mask(line) == (
        b"cannot connect to postgresql://medtune:[secret]@db.test:5432/medtune, redis://:[secret]@r.test"
    )


@pytest.mark.parametrize(
    "line",
    [
        b"task-17 risk-free desk-0123456789012345678901234567890",
        b"loading https://x.test:8080/a@b and file:///tmp/a",
        b"format_0123456789012345678901234567890123456789",
        b"mt_bench score 7.1, hf_hub 1.0, eyJ is how they begin, AKIA",
        "naïve café ×3".encode(),
    ],
)
def test_ordinary_text_stays(line: bytes) -> None:
    assert Masker(["a-real-secret"]).mask(line) == line


def test_the_services_own_secrets_are_known_letter_by_letter(tmp_path: Path) -> None:
    guard_key = tmp_path / "guard.txt"
    guard_key.write_text("key-of-the-guard\n")
    settings = Settings(
        home=tmp_path,
        database_url="postgresql://medtune:correct%20horse@db.test/medtune",
        redis_url="redis://:battery-staple@redis.test/0",
        bootstrap_key="a-bootstrap-key-of-ours",
        safety_guard_key_file=guard_key,
    )
    secret_key = settings.load_secret_key().decode()
    environment = {"AWS_SECRET_ACCESS_KEY": "wJalr/XUtn+FEMI", "HF_TOKEN": "not-even-like-one", "SHORT_TOKEN": "x"}
    environment |= {"KEYBOARD": "qwertyuiop", "TOKEN_FILE": "/run/secrets/token"}
    key_lines = ensure_signing_key(settings).read_text().splitlines()[1:-1]
    load_vault_keyring(settings)
    vault_key = get_vault_key_file(settings).read_text().split()[1]
    masker = build_masker(settings, environment)

    for secret in (
        *("correct horse", "correct%20horse", "battery-staple", "a-bootstrap-key-of-ours", "key-of-the-guard"),
        *(secret_key, "wJalr/XUtn+FEMI", "not-even-like-one"),
        *(*key_lines, vault_key),
    ):
        assert masker.mask(f"<{secret}>".encode()) == b"<[secret]>"
    for text in (b"x", b"qwertyuiop", b"/run/secrets/token", b"db.test"):
        assert masker.mask(text) == text


@pytest.mark.parametrize("before", [CHUNK_BYTES - 60, CHUNK_BYTES - 20, CHUNK_BYTES - 1, 2 * CHUNK_BYTES - 30])
@pytest.mark.parametrize("ended", [False, True])
def test_a_key_that_lies_across_two_chunks_is_masked(tmp_path: Path, before: int, ended: bool) -> None:
    run_dir = new_run_dir(tmp_path)
    run_dir.log.write_bytes(
        b"word " * (before // 5) + KEYS["OpenAI"].encode() + b" end" + b" more" * 40_000 + b"\n" * ended
    )
    collector = Collector(run_dir, Attempt(log_offset=0, events_offset=0), (0, 0))
    while collector.collect(to_the_end=True):
        pass

    text = "".join(chunk["text"] for chunk in collector.news.log_chunks)
    assert TAIL[:6] not in text
    assert "word [secret] end more" in text
    assert text.count("more") == 40_000


def test_a_key_in_an_error_is_masked(tmp_path: Path) -> None:
    run_dir = new_run_dir(tmp_path)
    reporter = Reporter(run_dir.events)
    reporter.report(
        ErrorEvent(code="x", message=f"401 for {KEYS['Hugging Face']}", remedy="", details={"url": "s3://a:bcd@e"})
    )
    reporter.close()
    collector = Collector(run_dir, Attempt(log_offset=0, events_offset=0), (0, 0))
    collector.collect()

    assert collector.error is not None
    assert collector.error.message == "401 for [secret]"
    assert collector.news.events[0]["data"]["url"] == "s3://a:[secret]@e"


def test_text_that_seems_to_hold_keys_everywhere_takes_no_time() -> None:
    masker = Masker()
    for piece in (b"sk-", b"eyJ", b"://", b"://a:", b"eyJaaaaaaaaa.", b"mt_mt_"):
        started = time.process_time()
        masker.mask(piece * (2**20 // len(piece)))
        assert time.process_time() - started < 5
    assert masker.mask(base64.b64encode(b"x" * 30)) == base64.b64encode(b"x" * 30)


def new_run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    return run_dir
