"""Starting and ending a trainer's processes."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.processes import die_with_parent
from tests.factories import is_alive, wait_until
from worker.launcher import Exit, Trainer, build_environment, build_isolation, end_strays, find_strays

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
OBEDIENT = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); {SLEEPER}"
TERM_PROOF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
SUPERVISOR = """
import json, sys, time
from pathlib import Path
from worker.launcher import Trainer
run_dir, namespace = Path(sys.argv[1]), sys.argv[2] == "True"
trainer = Trainer([sys.executable, "-c", sys.argv[3]], run_dir, run_dir / "log", namespace=namespace)
for deadlines in sys.argv[4:]:
    trainer.allow_until(*json.loads(deadlines))
time.sleep(60)
"""
"""Arguments: run folder, whether there is a namespace, the trainer's program, deadlines."""

Start = Callable[..., Trainer]


@pytest.fixture(params=[True, False], ids=["namespace", "fallback"])
def namespace(request: pytest.FixtureRequest) -> bool:
    if request.param and not build_isolation():
        pytest.skip("this host denies namespaces")
    return bool(request.param)


@pytest.fixture
def start(namespace: bool, tmp_path: Path) -> Iterator[Start]:
    """Starts a Python program as a trainer in `tmp_path`, and ends what a test leaves behind."""
    with contextlib.ExitStack() as stack:

        def start(code: str, **options: object) -> Trainer:
            command = [sys.executable, "-c", code]
            trainer = Trainer(command, tmp_path, tmp_path / "log", namespace=namespace, **options)  # type: ignore[arg-type]
            stack.callback(trainer.end)
            return trainer

        yield start


@pytest.fixture
def start_supervisor(namespace: bool, tmp_path: Path) -> Iterator[Callable[..., psutil.Popen]]:
    """Starts another process that makes a trainer."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    supervisors = []

    def start_supervisor(code: str, *deadlines: tuple[float, float]) -> psutil.Popen:
        words = [sys.executable, "-c", SUPERVISOR, str(tmp_path), str(namespace), code, *map(json.dumps, deadlines)]
        supervisors.append(psutil.Popen(words, env=environment))
        return supervisors[-1]

    yield start_supervisor
    for supervisor in supervisors:
        supervisor.kill()
        supervisor.wait()
    assert end_strays(tmp_path)


def start_daemon(token: object, environment: str = "None") -> str:
    """A program that leaves a process behind in a session of its own, deaf to SIGTERM, with a word to find it by."""
    options = f"start_new_session=True, stdout=subprocess.PIPE, env={environment}"
    daemon = f"subprocess.Popen([sys.executable, '-c', {TERM_PROOF!r}, 'daemon of {token}'], {options})"
    return f"import subprocess, sys; daemon = {daemon}; daemon.stdout.readline(); print('up', flush=True)"


def wait_for_word(tmp_path: Path, word: str = "up") -> None:
    wait_until(lambda: (tmp_path / "log").exists() and word in (tmp_path / "log").read_text())


def find_daemons(token: object) -> list[psutil.Process]:
    """Those that `start_daemon` started; a zombie has no words."""
    word = f"daemon of {token}"
    return [process for process in psutil.process_iter(["cmdline"]) if (process.info["cmdline"] or [])[-1:] == [word]]


def find_runner(tmp_path: Path) -> psutil.Process:
    """Not `unshare`, which has the same words among its own."""
    return next(stray for stray in find_strays(tmp_path) if stray.cmdline()[3:5] == ["-m", "worker.runner"])


def list_living(*processes: psutil.Process) -> list[psutil.Process]:
    return [process for process in processes if is_alive(process)]


def get_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_trainer_is_told_nothing_secret() -> None:
    environment = build_environment(
        {
            "PATH": "/bin",
            "HF_HOME": "/models",
            "CUDA_VISIBLE_DEVICES": "0",
            "HF_TOKEN": "x",
            "MEDTUNE_DATABASE_URL": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "TORCH_API_KEY": "x",
            "SSL_CERT_FILE": "/etc/ca.pem",
            "HTTPS_PROXY": "x",
        }
    )

    assert set(environment) == (
        {"PATH", "HF_HOME", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "PYTHONUNBUFFERED", "PYTHONPATH"}
    )


def test_what_the_caller_adds_is_added_and_the_marker_last(start: Start, tmp_path: Path) -> None:
    names = "CUDA_VISIBLE_DEVICES", "RANK", "TRAINER_RUN_DIR"
    start(
        f"import os; print([os.environ[name] for name in {names}])",
        environment={"CUDA_VISIBLE_DEVICES": "3", "RANK": "0", "TRAINER_RUN_DIR": "/elsewhere"},
    ).wait(10)

    assert (tmp_path / "log").read_text() == f"{['3', '0', str(tmp_path)]}\n"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -6),
    ],
)
def test_an_exit_is_told_as_it_was(code: str, exit_code: int, start: Start) -> None:
    trainer = start(code)
    trainer.wait(10)

    assert not trainer.is_running
    assert trainer.end() == trainer.end() == Exit(exit_code)


def test_the_exit_code_of_a_stopped_trainer_is_the_signals(start: Start, tmp_path: Path) -> None:
    trainer = start(TERM_PROOF)
    wait_for_word(tmp_path)

    trainer.stop(grace_seconds=0.2)

    assert trainer.is_running
    assert trainer.end() == Exit(-signal.SIGKILL, ended_by="order")


def test_a_trainer_that_obeys_is_not_killed(start: Start, tmp_path: Path) -> None:
    trainer = start(OBEDIENT)
    wait_for_word(tmp_path)

    trainer.stop(grace_seconds=20)

    assert trainer.end() == Exit(7, ended_by="order")


def test_a_trainer_is_stopped_as_soon_as_it_has_started(start: Start) -> None:
    trainer = start("import time; time.sleep(60)")
    trainer.stop(grace_seconds=20)

    assert trainer.end() == Exit(-signal.SIGTERM, ended_by="order")


def test_what_nobody_asked_to_stop_is_killed(start: Start, tmp_path: Path) -> None:
    trainer = start(TERM_PROOF)
    wait_for_word(tmp_path)

    assert trainer.end() == Exit(-signal.SIGKILL, ended_by="supervisor")


def test_other_children_of_the_worker_are_left_alone(start: Start, tmp_path: Path) -> None:
    stranger = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    trainer = start(SLEEPER)
    wait_for_word(tmp_path)
    trainer.stop(grace_seconds=20)

    assert trainer.end().exit_code == -signal.SIGTERM
    assert is_alive(stranger)
    stranger.kill()
    stranger.wait()


def test_a_trainer_that_does_not_exist_is_an_exit_too(namespace: bool, tmp_path: Path) -> None:
    trainer = Trainer(["no-such-trainer"], tmp_path, tmp_path / "log", namespace=namespace)
    trainer.wait(10)

    assert trainer.end() == Exit(127)
    assert (tmp_path / "log").read_text() == "runner: cannot start no-such-trainer: No such file or directory\n"


def test_no_file_of_the_run_folder_passes_for_a_module(start: Start, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(5)")
    (tmp_path / "worker").mkdir()
    trainer = start("pass")
    trainer.wait(10)

    assert trainer.end() == Exit(0)


def test_the_exit_of_an_earlier_attempt_is_not_taken_for_its_own(start: Start, tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text('{"exit_code": 0, "oom_kills": 0, "ended_by": null}')
    trainer = start(SLEEPER)
    wait_for_word(tmp_path)
    find_runner(tmp_path).kill()

    assert trainer.end() == Exit(None)


# --- Nothing is left ---


@pytest.mark.parametrize("environment", ["None", "{}"], ids=["marked", "unmarked"])
def test_what_a_trainer_leaves_behind_is_gone_also_when_it_ended_well(
    environment: str, start: Start, tmp_path: Path
) -> None:
    wait = "import time, pathlib\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    trainer = start(f"{start_daemon(tmp_path, environment)}; {wait}")
    wait_for_word(tmp_path)
    (daemon,) = find_daemons(tmp_path)

    (tmp_path / "go").touch()
    trainer.wait(10)

    assert trainer.end() == Exit(0)
    assert not list_living(daemon)


@pytest.mark.parametrize("environment", ["None", "{}"], ids=["marked", "unmarked"])
def test_what_does_not_obey_dies_with_the_trainer_that_does(environment: str, start: Start, tmp_path: Path) -> None:
    trainer = start(f"{start_daemon(tmp_path, environment)}; {SLEEPER}")
    wait_for_word(tmp_path)
    (daemon,) = find_daemons(tmp_path)

    trainer.stop(grace_seconds=20)

    assert trainer.end() == Exit(-signal.SIGTERM, ended_by="order")
    assert not list_living(daemon)


def test_fifty_children_that_do_not_obey_are_gone(start: Start, tmp_path: Path) -> None:
    trainer = start(
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for n in range(50):\n    if os.fork() == 0: os.setsid(); break\n"
        "else: print('up', flush=True)\n"
        "time.sleep(60)"
    )
    wait_for_word(tmp_path)
    family = find_strays(tmp_path)
    assert len(family) >= 52

    trainer.stop(grace_seconds=0.1)

    assert trainer.end().exit_code == -signal.SIGKILL
    assert not list_living(*family)


@pytest.mark.parametrize("namespace", [True], ids=["namespace"], indirect=True)
def test_what_goes_on_forking_is_gone(start: Start, tmp_path: Path) -> None:
    chain = "import os, signal\nprint('up', flush=True)\nwhile True:\n    if os.fork(): os._exit(0)\n    os.setsid()"
    trainer = start(f"import os, time\nif os.fork(): time.sleep(60)\n{chain}")
    wait_for_word(tmp_path)

    trainer.stop(grace_seconds=0.1)

    assert trainer.end() == Exit(-signal.SIGTERM, ended_by="order")
    assert not find_strays(tmp_path)


# --- Who may be killed, or hang ---


def test_a_killed_supervisor_takes_everything_with_it(
    start_supervisor: Callable[..., psutil.Popen], tmp_path: Path
) -> None:
    supervisor = start_supervisor(f"{start_daemon(tmp_path, '{}')}; {TERM_PROOF}")
    wait_for_word(tmp_path)
    family = [*find_strays(tmp_path), *find_daemons(tmp_path)]

    supervisor.kill()

    wait_until(lambda: list_living(*family) + find_strays(tmp_path), lambda living: not living, seconds=2)
    assert json.loads((tmp_path / "exit.json").read_text())["ended_by"] == "supervisor"


def test_a_killed_runner_takes_everything_with_it(namespace: bool, start: Start, tmp_path: Path) -> None:
    trainer = start(f"{start_daemon(tmp_path, '{}' if namespace else 'None')}; {TERM_PROOF}")
    wait_for_word(tmp_path)
    family = [*find_strays(tmp_path), *find_daemons(tmp_path)]

    find_runner(tmp_path).kill()

    assert trainer.end() == Exit(None)
    assert not list_living(*family)


@pytest.mark.parametrize("namespace", [True], ids=["namespace"], indirect=True)
def test_a_killed_unshare_takes_everything_with_it(start: Start, tmp_path: Path) -> None:
    trainer = start(f"{start_daemon(tmp_path, '{}')}; {TERM_PROOF}")
    wait_for_word(tmp_path)
    trainer.wait(0)
    family = [*find_strays(tmp_path), *find_daemons(tmp_path)]

    find_runner(tmp_path).parent().kill()  # type: ignore[union-attr]

    assert trainer.end() == Exit(None)
    assert not list_living(*family)


@pytest.mark.parametrize("namespace", [True], ids=["namespace"], indirect=True)
def test_supervisor_unshare_and_runner_killed_at_once_take_everything_with_them(
    start_supervisor: Callable[..., psutil.Popen], tmp_path: Path
) -> None:
    supervisor = start_supervisor(f"{start_daemon(tmp_path, '{}')}; {TERM_PROOF}")
    wait_for_word(tmp_path)
    family = [*find_strays(tmp_path), *find_daemons(tmp_path)]
    runner = find_runner(tmp_path)

    for process in (supervisor, *supervisor.children(), runner):
        process.kill()

    wait_until(lambda: list_living(*family), lambda living: not living, seconds=2)


@pytest.mark.parametrize("namespace", [False], ids=["fallback"], indirect=True)
def test_what_survives_supervisor_and_runner_is_found_later(
    start_supervisor: Callable[..., psutil.Popen], tmp_path: Path
) -> None:
    supervisor = start_supervisor(f"{start_daemon(tmp_path)}; {TERM_PROOF}")
    wait_for_word(tmp_path)
    runner, (daemon,) = find_runner(tmp_path), find_daemons(tmp_path)

    runner.kill()
    supervisor.kill()
    wait_until(lambda: find_strays(tmp_path), lambda living: living == [daemon])

    assert end_strays(tmp_path)
    assert not is_alive(daemon)


def test_strays_of_another_run_folder_are_left_alone(start: Start, tmp_path: Path) -> None:
    trainer = start(SLEEPER)
    wait_for_word(tmp_path)
    (tmp_path / "other").mkdir()

    assert end_strays(tmp_path / "other")
    assert end_strays(tmp_path.parent)
    assert trainer.is_running


def test_a_silent_supervisors_trainer_is_stopped_at_its_deadline(start: Start, tmp_path: Path) -> None:
    trainer = start(OBEDIENT)
    wait_for_word(tmp_path)
    stop_at = get_time() + 0.4

    trainer.allow_until(stop_at, stop_at + 60)
    trainer.wait(10)

    assert stop_at <= get_time() < stop_at + 5
    assert trainer.end() == Exit(7, ended_by="deadline")


def test_a_deadline_that_is_put_off_is_not_obeyed(start: Start, tmp_path: Path) -> None:
    trainer = start(OBEDIENT)
    wait_for_word(tmp_path)
    trainer.allow_until(get_time() + 0.3, get_time() + 0.4)
    trainer.allow_until(get_time() + 300, get_time() + 400)

    trainer.wait(0.6)

    assert trainer.is_running


def test_a_hanging_supervisors_trainer_is_killed_at_its_deadline(
    start_supervisor: Callable[..., psutil.Popen], tmp_path: Path
) -> None:
    kill_at = get_time() + 2
    supervisor = start_supervisor(f"{start_daemon(tmp_path, '{}')}; {TERM_PROOF}", (kill_at - 0.5, kill_at))
    wait_for_word(tmp_path)
    supervisor.suspend()
    family = [*find_strays(tmp_path), *find_daemons(tmp_path)]
    assert len(family) >= 3

    wait_until(lambda: list_living(*family), lambda living: not living)

    assert kill_at <= get_time() < kill_at + 2
    exit = json.loads((tmp_path / "exit.json").read_text())
    assert exit == {"exit_code": -signal.SIGKILL, "oom_kills": 0, "ended_by": "deadline"}


def test_orders_to_a_runner_that_is_gone_go_nowhere(start: Start) -> None:
    trainer = start("pass")
    trainer.wait(10)

    trainer.allow_until(0, 0)
    trainer.stop(grace_seconds=0)
    trainer.end()
    trainer.allow_until(0, 0)
    trainer.stop(grace_seconds=0)


def test_a_stuck_runner_blocks_nobody_and_is_killed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.launcher._PATIENCE_SECONDS", 0.5)
    trainer = start(f"{start_daemon(tmp_path)}; {TERM_PROOF}")
    wait_for_word(tmp_path)
    family = find_strays(tmp_path)
    find_runner(tmp_path).suspend()

    for _ in range(2000):  # Many times what a pipe takes.
        trainer.allow_until(get_time() + 60, get_time() + 70)
    trainer.stop(grace_seconds=0.1)

    assert trainer.end() == Exit(None)
    assert not list_living(*family)


# --- Locks ---


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_held_lock_lasts_as_long_as_the_runner(start: Start, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        trainer = start(SLEEPER, held=[file.fileno()])
    wait_for_word(tmp_path)

    assert is_locked(lock)
    trainer.stop(grace_seconds=20)
    trainer.end()
    assert not is_locked(lock)


def test_a_held_lock_is_not_handed_on_to_the_trainer(start: Start, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        start("import os; print(sorted(os.listdir('/proc/self/fd')))", held=[file.fileno()]).wait(10)

    assert (tmp_path / "log").read_text() == f"{['0', '1', '2', '3']}\n"  # The last is what reads the folder.


# --- Namespaces ---


@pytest.mark.parametrize("namespace", [True], ids=["namespace"], indirect=True)
def test_a_trainer_sees_nothing_but_its_own_processes(start: Start, tmp_path: Path) -> None:
    start("import os; print([name for name in os.listdir('/proc') if name.isdigit()])").wait(10)

    assert (tmp_path / "log").read_text() == f"{['1', '2']}\n"


def test_a_host_without_unshare_runs_trainers_without_namespaces(tmp_path: Path) -> None:
    code = "from worker.launcher import build_isolation; print(build_isolation())"
    environment = {"PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)

    assert answer.stdout == b"[]\n"
    assert b"no namespaces for trainers" in answer.stderr


# --- Failures and parents ---


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    child = die_with_parent([sys.executable, "-c", "import time; time.sleep(60)"])
    code = f"import subprocess, time; print(subprocess.Popen({child!r}).pid, flush=True); time.sleep(60)"
    with (tmp_path / "pid").open("wb") as output:
        parent = psutil.Popen([sys.executable, "-c", code], stdout=output)
    orphan = psutil.Process(int(wait_until((tmp_path / "pid").read_text)))
    wait_until(lambda: orphan.cmdline()[0] == sys.executable)  # From here on the kernel knows whose child it is.

    parent.kill()
    parent.wait()

    wait_until(lambda: not is_alive(orphan))
