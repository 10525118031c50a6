"""What a worker says of its machine."""

from pathlib import Path

import pytest

from jobs.settings import Settings
from worker.gpus import GpuSlots, count_gpus, describe_hardware


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


@pytest.mark.parametrize(
    ("visible", "configured", "names"),
    [
        (None, 2, ["0", "1"]),
        ("3,5", None, ["3", "5"]),
        ("3,5", 1, ["3"]),
        ("GPU-a, GPU-b", 8, ["GPU-a", "GPU-b"]),
        ("", None, []),
        ("", 2, []),
    ],
)
def test_a_worker_counts_the_gpus_that_it_may_see(
    visible: str | None, configured: int | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than it can ever hold would keep it waiting for a job that never fits."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = Settings(home=tmp_path, worker_gpus=configured)

    with GpuSlots(settings) as slots:
        slots.take_free()
        assert slots.environment == {"CUDA_VISIBLE_DEVICES": ",".join(names)}
        assert len(slots) == count_gpus(settings) == len(names)
        with GpuSlots(settings) as others:
            others.take_free()
            assert len(others) == 0
