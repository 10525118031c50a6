"""What this machine has to train on, without loading CUDA."""

from pathlib import Path

from jobs.settings import Settings

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def count_gpus(settings: Settings) -> int:
    """As configured, else one per GPU that the NVIDIA driver shows."""
    if settings.worker_gpus is not None:
        return settings.worker_gpus
    return len(list(_NVIDIA_GPUS.iterdir())) if _NVIDIA_GPUS.is_dir() else 0
