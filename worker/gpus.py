"""What this machine has to train on, without loading CUDA; and which of it an attempt holds."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs.settings import Settings
from trainer_core.planning.hardware import Hardware, read_hardware
from worker.machine import get_gpus_dir, try_to_lock, waiting_for_lock

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def count_gpus(settings: Settings) -> int:
    """As configured, else one per GPU that the NVIDIA driver shows; what CUDA_VISIBLE_DEVICES hides does not count."""
    return len(list_devices(settings))


def describe_hardware(settings: Settings, num_gpus: int) -> Hardware:
    """Of this machine; GPUs that the worker may not use do not count."""
    hardware = read_hardware(settings.home)
    if num_gpus == 0:
        return hardware.model_copy(update={"gpu_name": None, "gpu_memory_bytes": None})
    return hardware


class GpuSlots:
    """A context: GPUs that nobody else on this machine uses until it ends."""

    def __init__(self, settings: Settings) -> None:
        self._folder = get_gpus_dir(settings)
        self._devices = list_devices(settings)
        self._held: dict[str, int] = {}
        """Lock by the device's name in CUDA_VISIBLE_DEVICES."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.keep(0)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def locks(self) -> list[int]:
        return list(self._held.values())

    @property
    def environment(self) -> Mapping[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self._held)}

    def take_free(self) -> None:
        """All that are free now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in self._devices:
            lock = try_to_lock(self._folder / name.replace("/", "_"))
            if lock is not None:
                self._held[name] = lock

    def keep(self, count: int) -> None:
        """Let go of all but the first `count`."""
        for name in list(self._held)[count:]:
            os.close(self._held.pop(name))


@contextlib.contextmanager
def claiming(settings: Settings) -> Iterator[None]:
    """One process of this machine at a time looks for free GPUs and takes a job for them."""
    with waiting_for_lock(get_gpus_dir(settings) / "claim"):
        yield


def list_devices(settings: Settings) -> list[str]:
    """The GPUs that this worker may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        return names[: settings.worker_gpus]
    count = settings.worker_gpus
    if count is None:
        count = len(list(_NVIDIA_GPUS.iterdir())) if _NVIDIA_GPUS.is_dir() else 0
    return [str(number) for number in range(count)]
