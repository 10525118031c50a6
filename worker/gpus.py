"""What this machine has to train on, without loading CUDA."""

from pathlib import Path

from jobs.settings import Settings
from trainer_core.planning.hardware import Hardware, read_hardware

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def count_gpus(settings: Settings) -> int:
    """As configured, else one per GPU that the NVIDIA driver shows."""
    if settings.worker_gpus is not None:
        return settings.worker_gpus
    return len(list(_NVIDIA_GPUS.iterdir())) if _NVIDIA_GPUS.is_dir() else 0


def describe_hardware(settings: Settings, num_gpus: int) -> Hardware:
    """Of this machine; GPUs that the worker may not use do not count."""
    hardware = read_hardware(settings.home)
    if num_gpus == 0:
        return hardware.model_copy(update={"gpu_name": None, "gpu_memory_bytes": None})
    return hardware
