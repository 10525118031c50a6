"""What a worker says of its machine."""

from pathlib import Path

import pytest

from jobs.settings import Settings
from worker.gpus import count_gpus, describe_hardware


def test_gpus_that_a_worker_may_not_use_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    settings = Settings(home=tmp_path, worker_gpus=0)

    none, one = describe_hardware(settings, count_gpus(settings)), describe_hardware(settings, 1)

    assert (none.gpu_name, none.gpu_memory_bytes) == (None, None)
    assert (one.gpu_name, one.gpu_memory_bytes) == ("NVIDIA L4", 23034 << 20)
    assert none.host_memory_bytes == one.host_memory_bytes
