"""Hardware: what one machine has to train on, read without loading CUDA. Torch-free."""

import shutil
import subprocess
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_NVIDIA_SMI_SECONDS = 20
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Hardware(BaseModel):
    """Of each host; None is unknown. A host's GPUs are taken to be alike, and the smallest of them counts."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    gpu_name: str | None = None
    gpu_memory_bytes: int | None = None
    """Of each GPU."""
    host_memory_bytes: int | None = None
    """Of the machine, or what a container may use of it."""
    disk_free_bytes: int | None = None
    """Where run folders are."""
    num_hosts: int = 1


def read_hardware(folder: Path) -> Hardware:
    """Of this machine; `folder` is where runs are kept."""
    gpus = read_gpus()
    name, memory = min(gpus, key=lambda gpu: gpu[1] or 0, default=(None, None))
    return Hardware(
        gpu_name=name,
        gpu_memory_bytes=memory,
        host_memory_bytes=min(psutil.virtual_memory().total, *_list_container_limits()),
        disk_free_bytes=shutil.disk_usage(folder).free,
    )


def read_gpus() -> list[tuple[str, int | None]]:
    """Name and memory in bytes of each NVIDIA GPU; none where the driver's tool is missing or fails."""
    try:
        result = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(result.stdout)


def parse_gpus(text: str) -> list[tuple[str, int | None]]:
    """Lines of "NAME, MEBIBYTES"; a GPU that shares the host's memory has "[N/A]"."""
    lines = [line.rpartition(",") for line in text.splitlines() if "," in line]
    return [(name.strip(), int(size) << 20 if size.strip().isdigit() else None) for name, _, size in lines]


def _list_container_limits() -> list[int]:
    """Of the cgroup that this process is in, as a container shows it; no limit reads "max" or a huge number."""
    texts = [path.read_text(encoding="ascii").strip() for path in _CGROUP_LIMITS if path.is_file()]
    return [int(text) for text in texts if text.isdigit()]
