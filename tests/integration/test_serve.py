"""`medtune serve` as a user runs it: side by side, stopped in every way, started again."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cli.serve import find_free_port
from tests.conftest import FAKE_TRAINER, FAST
from tests.factories import create_model_folder, is_alive, submit_script, wait_for_status, wait_until
from tests.plain_client import Client


@dataclass
class Serve:
    process: subprocess.Popen[str]
    home: Path
    port: int

    @property
    def family(self) -> list[psutil.Process]:
        leader = psutil.Process(self.process.pid)
        return [leader, *leader.children(recursive=True)]

    def connect(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", (self.home / "api_key").read_text())

    def wait_until_ready(self) -> "Serve":
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Ctrl-C stops it" in line:
                return self
        raise AssertionError("".join(lines))


@contextmanager
def start_serve(home: Path, port: int | None = None) -> Iterator[Serve]:
    if not (home / "models").exists():
        create_model_folder(home / "models" / "tiny")
    port = port or find_free_port("127.0.0.1")
    settings = {"home": home, "port": port, "trainer_command": json.dumps(FAKE_TRAINER), **FAST}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve"],
        env={**os.environ, **{f"MEDTUNE_{name.upper()}": str(value) for name, value in settings.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Serve(process, home, port)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def expect_gone(family: list[psutil.Process]) -> None:
    def list_alive() -> list[psutil.Process]:
        return [process for process in family if is_alive(process)]

    wait_until(list_alive, lambda alive: not alive, seconds=20)


def test_two_services_live_side_by_side_and_both_signals_end_everything(tmp_path: Path) -> None:
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    with start_serve(parent / "one") as one, start_serve(tmp_path / "two") as two:
        families = [service.wait_until_ready().family for service in (one, two)]
        for service in (one, two):
            client = service.connect()
            job_id = submit_script(client, tmp_path)
            assert wait_for_status(client, job_id, "succeeded", "failed")["status"] == "succeeded"
            assert [job["id"] for job in client.get("/jobs")["data"]] == [job_id]
            client.close()

        one.process.send_signal(signal.SIGTERM)
        two.process.send_signal(signal.SIGINT)
        for service, family in zip((one, two), families, strict=True):
            service.process.wait(30)
            assert len(family) >= 7
            expect_gone(family)

    assert stat.S_IMODE(parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((parent / "one" / "api_key").stat().st_mode) == 0o600


def test_a_killed_service_takes_its_processes_with_it(tmp_path: Path) -> None:
    with start_serve(tmp_path / "home") as service:
        service.wait_until_ready()
        client = service.connect()
        job_id = submit_script(client, tmp_path, steps=1000, step_seconds=0.05)
        wait_for_status(client, job_id, "running")
        client.close()
        family = service.family

        service.process.kill()

        expect_gone(family)


def test_a_job_of_a_stopped_service_is_queued_again_and_ends_after_the_restart(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with start_serve(home) as service:
        service.wait_until_ready()
        client = service.connect()
        job_id = submit_script(client, tmp_path, steps=40, step_seconds=0.05)
        wait_for_status(client, job_id, "running")
        client.close()
        family = service.family
        service.process.terminate()
        service.process.wait(30)
        expect_gone(family)

    with start_serve(home) as service:
        service.wait_until_ready()
        client = service.connect()
        job = wait_for_status(client, job_id, "succeeded", "failed")
        reasons = [e["data"].get("reason") for e in client.get(f"/jobs/{job_id}/events")["data"]]
        client.close()

    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert any(reason and reason["code"] == "worker_stopped" for reason in reasons)


@pytest.mark.parametrize("what", ["port", "home"])
def test_a_start_that_fails_is_one_clear_line_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    with start_serve(tmp_path / "home") as running:
        running.wait_until_ready()
        home = tmp_path / "other" if what == "port" else running.home
        port = running.port if what == "port" else find_free_port("127.0.0.1")
        with start_serve(home, port) as second:
            output, _ = second.process.communicate(timeout=30)

        assert second.process.returncode == 1
        assert output.startswith("medtune: ")
        assert len(output.splitlines()) == 1
        assert ("PORT" if what == "port" else "MEDTUNE_HOME") in output
        assert [p for p in running.family if str(home) in " ".join(p.cmdline())] if what == "home" else True
        client = running.connect()
        assert client.get("/jobs")["data"] == []
        client.close()
