"""What is refused, or made anew, before anything is loaded."""

import errno
import fcntl
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer_core.config import TrainingConfig
from trainer_core.errors import ConfigurationError, describe
from trainer_core.launch import Nodes, run_training
from trainer_core.reporting import Reporter
from trainer_core.run_dir import ModelSource, RunDir, RunSpec
from trainer_core.stopping import StopRequest

SPEC = RunSpec(job_id="job", model=ModelSource(id="m", source="/nowhere"), train_path="rows", num_processes=3)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_spec(SPEC)
    return run_dir


@pytest.mark.parametrize(
    "nodes", [Nodes(0), Nodes(2, 0, "h:1"), Nodes(3, 3, "h:1"), Nodes(3, -1, "h:1"), Nodes(3, 0, "")]
)
def test_hosts_that_do_not_fit_are_refused(run_dir: RunDir, nodes: Nodes) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_training(run_dir, Reporter(None), nodes, StopRequest())
    assert caught.value.code == "nodes_do_not_fit"


def test_a_folder_in_which_another_process_trains_is_refused(run_dir: RunDir) -> None:
    with (run_dir.path / "train.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a lock of its own: this file was opened by itself
        with pytest.raises(ConfigurationError) as caught:
            run_training(run_dir, Reporter(None), Nodes(), StopRequest())
    assert caught.value.code == "run_in_use"


@pytest.mark.parametrize(
    "content", ["", "{", '{"job_id": "job"}', SPEC.model_dump_json().replace('"version":1', '"version":2')]
)
def test_a_broken_spec_is_a_clear_error(run_dir: RunDir, content: str) -> None:
    run_dir.spec.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        run_dir.load_spec()
    assert caught.value.code == "spec_invalid"
    assert caught.value.remedy


@pytest.mark.parametrize("content", [None, "", '{"stage": 9}'])
def test_a_broken_plan_is_none(run_dir: RunDir, content: str | None) -> None:
    if content is not None:
        run_dir.plan.write_text(content)
    assert run_dir.find_plan() is None


def test_what_decides_the_rows_and_the_plan_is_told_apart() -> None:
    longer = SPEC.model_copy(update={"training": TrainingConfig(max_seq_len=64)})
    smaller = SPEC.model_copy(update={"training": TrainingConfig(micro_batch_size=1)})
    again = SPEC.model_copy(update={"job_id": "other", "attempt": 2})
    assert longer.digest_rows() != SPEC.digest_rows() == smaller.digest_rows() == again.digest_rows()
    assert len({longer.digest_plan(), smaller.digest_plan(), SPEC.digest_plan()}) == 3
    assert again.digest_plan() == SPEC.digest_plan()


def test_infinity_is_no_number() -> None:
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate_json('{"weight_decay": Infinity}')


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (Exception("No space left on device (os error 28)"), "disk_full"),
        (OSError(errno.EROFS, "Read-only file system"), "file_not_accessible"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "file_not_found"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (ValueError("x"), "internal_error"),
    ],
)
def test_the_systems_errors_have_codes(error: Exception, code: str) -> None:
    described = describe(error)
    assert described.code == code
    assert described.remedy or code == "internal_error"
