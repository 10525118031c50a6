"""How well a run uses its device: model FLOPs utilisation and peak memory."""

import resource

import torch

# Peak dense 16-bit matrix products per second by vendors' datasheets, without sparsity: the first whose words are in a
# device's name. PCIe and lower-power cards of a family come before the family.
_PEAK_FLOPS = (
    ("B200", 2250e12),  # NVIDIA DGX B200 datasheet, half of the sparse figure
    ("H200 NVL", 835e12),  # NVIDIA H200 datasheet
    ("H200", 989e12),
    ("H100 NVL", 835e12),  # NVIDIA H100 datasheet
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),  # NVIDIA A100 datasheet
    ("A40", 149.7e12),  # NVIDIA A40 datasheet
    ("A10G", 70e12),  # AWS EC2 G5
    ("A10", 125e12),  # NVIDIA A10 datasheet
    ("L40S", 362e12),  # NVIDIA L40S datasheet
    ("L40", 181e12),  # NVIDIA L40 datasheet
    ("L4", 121e12),  # NVIDIA L4 datasheet
    ("RTX 6000 Ada", 364e12),  # NVIDIA RTX 6000 Ada datasheet
    ("RTX A6000", 154.8e12),  # NVIDIA RTX A6000 datasheet
    ("RTX 4090", 165.2e12),  # NVIDIA Ada whitepaper, float32 accumulation
    ("RTX 3090", 71e12),  # NVIDIA Ampere GA102 whitepaper, float32 accumulation
)


def compute_mfu(num_weights: int, tokens_per_second: float, device: torch.device) -> float | None:
    """Share of the device's peak that LoRA's own arithmetic takes; None where the peak is unknown.

    A frozen weight costs a token 4 operations: 2 forward, and 2 for the gradient of the layer's input. Its own gradient
    is never computed. Attention and recomputation are not counted. `num_weights` is of the base model; with several
    devices, `tokens_per_second` is of one.
    """
    peak = find_peak_flops(device)
    return None if peak is None else 4 * num_weights * tokens_per_second / peak


def find_peak_flops(device: torch.device) -> float | None:
    """Of 16-bit matrix products; None for CPUs and cards that the table does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace("-", " ")
    return next((peak for words, peak in _PEAK_FLOPS if f" {words} " in f" {name} "), None)


def get_peak_memory_bytes(device: torch.device) -> int:
    """The most that was ever in use: the allocator's on a GPU, else the process's resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
