"""What the machine has is read from the driver's tool, and its absence or failure is no error."""

from pathlib import Path

import pytest

from trainer_core.planning.hardware import parse_gpus, read_gpus, read_hardware


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_tools_lines_are_names_and_mebibytes() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559\nNVIDIA GB10, [N/A]\n"

    assert parse_gpus(text) == [("NVIDIA H100 80GB HBM3", 81559 << 20), ("NVIDIA GB10", None)]


def test_the_smallest_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA A100, 40960'; echo 'NVIDIA L4, 23034'")

    hardware = read_hardware(tmp_path)

    assert (hardware.gpu_name, hardware.gpu_memory_bytes) == ("NVIDIA L4", 23034 << 20)


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'"])
def test_a_tool_that_fails_shows_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, script)

    assert read_gpus() == []


def test_a_machine_without_the_tool_has_its_memory_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    hardware = read_hardware(tmp_path)

    assert (hardware.gpu_name, hardware.gpu_memory_bytes) == (None, None)
    assert hardware.host_memory_bytes
    assert hardware.disk_free_bytes
