"""Utilisation is told only where the device's peak is known."""

import pytest
import torch

from trainer_core.throughput import compute_mfu, find_peak_flops, get_peak_memory_bytes

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_card_is_known_by_its_name(name: str, teraflops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert find_peak_flops(CUDA) == teraflops * 1e12


def test_llama_8b_at_12_473_tokens_a_second_uses_41_percent_of_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100 80GB HBM3")
    assert compute_mfu(8_030_000_000, 12_473, CUDA) == pytest.approx(0.405, abs=0.001)


def test_cpus_and_unknown_cards_have_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA RTX A4000")
    assert compute_mfu(1000, 1.0, CUDA) is None
    assert compute_mfu(1000, 1.0, torch.device("cpu")) is None


def test_peak_memory_on_the_cpu_is_the_processes_own() -> None:
    assert get_peak_memory_bytes(torch.device("cpu")) > 100 * 2**20
