"""The runner by itself, spoken to through its pipe."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.factories import wait_until
from worker.launcher import build_isolation, end_strays

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
TERM_PROOF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(params=[True, False], ids=["namespace", "fallback"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts a runner with a Python program or a command as its trainer."""
    if request.param and not build_isolation():
        pytest.skip("this host denies namespaces")
    runners: list[subprocess.Popen[bytes]] = []

    def start(
        code: str = "",
        command: list[str] | None = None,
        log: Path = tmp_path / "log",
        prepare: Callable[[], None] | None = None,
    ) -> subprocess.Popen[bytes]:
        words = [*build_isolation(request.param), sys.executable, "-P", "-S", "-m", "worker.runner"]
        words += [str(tmp_path / "exit.json"), "--", *(command or [sys.executable, "-S", "-c", code])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRAINER_RUN_DIR": str(tmp_path)}
        with log.open("ab") as output:
            runner = subprocess.Popen(
                words,
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                bufsize=0,
                preexec_fn=prepare,
                start_new_session=True,
            )
        runners.append(runner)
        return runner

    yield start
    for runner in runners:
        if runner.stdin:
            runner.stdin.close()
        runner.kill()
        runner.wait()
    assert end_strays(tmp_path)


def order(runner: "subprocess.Popen[bytes]", text: str) -> None:
    assert runner.stdin
    runner.stdin.write(text.encode())


def wait_for_word(tmp_path: Path, word: str = "up") -> None:
    wait_until(lambda: word in (tmp_path / "log").read_text())


def read_exit(runner: "subprocess.Popen[bytes]", tmp_path: Path) -> dict[str, Any]:
    assert runner.wait(10) == 0
    exit: dict[str, Any] = json.loads((tmp_path / "exit.json").read_text())
    return exit


def test_it_writes_how_the_trainer_ended(start: Start, tmp_path: Path) -> None:
    exit = read_exit(start("import sys; sys.exit(3)"), tmp_path)

    assert exit == {"exit_code": 3, "oom_kills": 0, "ended_by": None}
    assert [file.name for file in tmp_path.glob("*exit*")] == ["exit.json"]


def test_an_order_may_come_in_pieces(start: Start, tmp_path: Path) -> None:
    runner = start(SLEEPER)
    wait_for_word(tmp_path)

    order(runner, '{"grace": 1')
    order(runner, 'oops}\n{"gra')
    wait_for_word(tmp_path, "not an order")
    order(runner, 'ce": 10}\n')

    assert read_exit(runner, tmp_path)["exit_code"] == -signal.SIGTERM


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "stop",
        "5",
        "{}",
        '{"grace": null}',
        '{"grace": NaN}',
        '{"grace": 1, "kill_at": 1}',
        '{"stop_at": 1}',
        '{"stop_at": 1, "kill_at": Infinity}',
        f'{{"grace": 1{"0" * 400}}}',
        "[" * 3000,
        '{"grace": ' + " " * 5000 + "1}",
        "x" * 200_000,
        "\udcff",
    ],
    ids=range(14),
)
def test_what_is_no_order_is_not_obeyed(garbage: str, start: Start, tmp_path: Path) -> None:
    runner = start(SLEEPER)
    wait_for_word(tmp_path)

    assert runner.stdin
    runner.stdin.write(garbage.encode(errors="surrogateescape") + b"\n")
    wait_for_word(tmp_path, "runner: not an order")
    order(runner, '{"grace": 10}\n')

    assert read_exit(runner, tmp_path) == {"exit_code": -signal.SIGTERM, "oom_kills": 0, "ended_by": "order"}


def test_without_a_supervisor_everything_is_killed_at_once(start: Start, tmp_path: Path) -> None:
    runner = start(TERM_PROOF)
    wait_for_word(tmp_path)

    assert runner.stdin
    runner.stdin.close()

    assert read_exit(runner, tmp_path) == {"exit_code": -signal.SIGKILL, "oom_kills": 0, "ended_by": "supervisor"}


def test_an_order_that_comes_with_the_end_of_all_orders_still_ends_it(start: Start, tmp_path: Path) -> None:
    runner = start(TERM_PROOF)
    wait_for_word(tmp_path)

    order(runner, '{"grace": 60}\n')
    assert runner.stdin
    runner.stdin.close()

    assert read_exit(runner, tmp_path) == {"exit_code": -signal.SIGKILL, "oom_kills": 0, "ended_by": "order"}


def test_a_later_deadline_replaces_the_earlier(start: Start, tmp_path: Path) -> None:
    runner = start(TERM_PROOF)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    order(runner, json.dumps({"stop_at": now + 0.5, "kill_at": now + 1}) + "\n")
    order(runner, json.dumps({"stop_at": now + 500, "kill_at": now + 600}) + "\n")
    wait_for_word(tmp_path)

    with pytest.raises(subprocess.TimeoutExpired):
        runner.wait(now + 1.3 - time.clock_gettime(time.CLOCK_BOOTTIME))
    order(runner, json.dumps({"stop_at": 0, "kill_at": now + 1.5}) + "\n")

    assert read_exit(runner, tmp_path) == {"exit_code": -signal.SIGKILL, "oom_kills": 0, "ended_by": "deadline"}
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= now + 1.5


def test_a_deadline_that_was_put_off_while_the_runner_was_stopped_is_not_obeyed(start: Start, tmp_path: Path) -> None:
    started = start(SLEEPER)
    wait_for_word(tmp_path)
    outermost = psutil.Process(started.pid)
    (child,) = outermost.children()
    runner = child if "worker.runner" in child.cmdline() else outermost  # There may be `unshare` around it.
    stop_at = time.clock_gettime(time.CLOCK_BOOTTIME) + 1
    order(started, json.dumps({"stop_at": stop_at, "kill_at": stop_at}) + "\ngarbage\n")
    wait_for_word(tmp_path, "not an order")

    runner.suspend()
    wait_until(runner.status, lambda status: status == psutil.STATUS_STOPPED)
    order(started, json.dumps({"stop_at": stop_at + 60, "kill_at": stop_at + 60}) + "\n")
    wait_until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME), lambda now: now > stop_at)
    runner.resume()
    order(started, '{"grace": 10}\n')

    assert read_exit(started, tmp_path)["ended_by"] == "order"


def test_a_second_order_may_shorten_the_grace(start: Start, tmp_path: Path) -> None:
    runner = start(TERM_PROOF)
    wait_for_word(tmp_path)

    order(runner, '{"grace": 60}\n{"grace": 0.1}\n{"grace": 60}\n')

    assert read_exit(runner, tmp_path)["exit_code"] == -signal.SIGKILL


def test_a_second_order_does_not_ask_twice(start: Start, tmp_path: Path) -> None:
    count = "import signal, time; n = []; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))"
    runner = start(f"{count}; print('up', flush=True)\nwhile True: time.sleep(60)")
    wait_for_word(tmp_path)

    order(runner, '{"grace": 60}\n')
    wait_for_word(tmp_path, "asked")
    order(runner, '{"grace": 0.3}\n')

    assert read_exit(runner, tmp_path)["exit_code"] == -signal.SIGKILL
    assert (tmp_path / "log").read_text().count("asked") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_runner_is_not_an_order(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    runner = start(f"import os; os.kill(os.getppid(), {int(number)})")

    assert read_exit(runner, tmp_path)["exit_code"] == 0


def test_the_trainer_gets_the_signals_that_the_runner_ignores(start: Start, tmp_path: Path) -> None:
    codes = "signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)"
    runner = start(f"import signal; assert {{{codes}}} == {{signal.SIG_DFL}}; assert not signal.pthread_sigmask(0, ())")

    assert read_exit(runner, tmp_path)["exit_code"] == 0


def test_a_command_that_does_not_exist_is_named(start: Start, tmp_path: Path) -> None:
    exit = read_exit(start(command=["no-such-trainer", "x"]), tmp_path)

    assert exit["exit_code"] == 127
    assert (tmp_path / "log").read_text() == "runner: cannot start no-such-trainer: No such file or directory\n"


def test_a_log_that_takes_nothing_does_no_harm(start: Start, tmp_path: Path) -> None:
    runner = start(command=["sleep", "60"], log=Path("/dev/full"))
    order(runner, 'garbage\n{"grace": 10}\n')

    assert read_exit(runner, tmp_path)["exit_code"] == -signal.SIGTERM


def test_streams_that_are_closed_are_open_for_the_trainer(start: Start, tmp_path: Path) -> None:
    runner = start("import os; os.fstat(1); os.fstat(2)", prepare=lambda: os.closerange(1, 3))

    assert read_exit(runner, tmp_path)["exit_code"] == 0


def test_an_exit_that_cannot_be_written_is_said(start: Start, tmp_path: Path) -> None:
    (tmp_path / "exit.json").mkdir()

    assert start("").wait(10) == 0
    wait_for_word(tmp_path, "runner: cannot write")


def test_a_trainer_that_kills_its_whole_group_leaves_the_runner(start: Start, tmp_path: Path) -> None:
    assert read_exit(start("import os; os.killpg(0, 9)"), tmp_path)["exit_code"] == -signal.SIGKILL
