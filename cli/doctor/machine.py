"""The store, the models, the GPUs, the namespaces and the disk of this machine."""

import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator

from cli.doctor.finding import ERROR, MANY, OK, WARNING, Finding, hide_url
from jobs.settings import Settings
from jobs.store import Store
from trainer_core.planning.hardware import read_gpus
from worker.gpus import count_gpus
from worker.launcher import build_isolation


def check_store(settings: Settings) -> Iterator[Finding]:
    key, data = f"doctor-{secrets.token_hex(8)}", b"medtune"
    try:
        store = Store(settings.store_location)
        with store.writing(key) as writer:
            writer.write(data)
        with store.open(key) as file:
            is_same = file.read() == data
        store.delete(key)
    except Exception as error:  # Each kind of store has errors of its own.
        message = f"cannot be written: {hide_url(f'{type(error).__name__}: {error}', settings)}"
        yield Finding("store", ERROR, message, "correct MEDTUNE_STORE_URL, its credentials or the folder's owner")
        return
    if is_same:
        yield Finding("store", OK, "an object was written, read and deleted")
    else:
        yield Finding("store", ERROR, "an object came back changed", "look after the disk or the object store")


def check_models(settings: Settings) -> Iterator[Finding]:
    assert settings.models_dir is not None
    if settings.models_file is not None and not settings.models_file.is_file():
        message = f"there is no file {settings.models_file}"
        yield Finding("models", WARNING, message, "correct MEDTUNE_MODELS_FILE; `medtune models add` makes the file")
    names = sorted(path.parent.name for path in settings.models_dir.glob("*/config.json"))
    if names:
        yield Finding("models", OK, f"{len(names)} in {settings.models_dir}: {', '.join(names[:MANY])}")
    else:
        remedy = "put base models there, one folder each; `medtune serve` builds a small one on an empty folder"
        yield Finding("models", WARNING, f"none in {settings.models_dir}", remedy)


def check_gpus(settings: Settings) -> Iterator[Finding]:
    num_shown = count_shown_gpus(settings)
    gpus = read_gpus()
    if not num_shown and not gpus:
        yield Finding("gpus", OK, "none: jobs train on the CPU")
        return
    names = "; ".join(f"{name}, {(memory or 0) / 2**30:.0f} GiB" for name, memory in gpus)
    driver, cuda = read_driver()
    if len(gpus) != num_shown:
        message = f"the driver shows {num_shown} under /proc and nvidia-smi {len(gpus)} ({names})"
        remedy = "run nvidia-smi and see what it says; in a container, let the NVIDIA toolkit mount the driver's tools"
        yield Finding("gpus", WARNING, message, remedy)
    else:
        yield Finding("gpus", OK, f"{names}; driver {driver}, for CUDA up to {cuda}")


def read_driver() -> tuple[str, str]:
    """The NVIDIA driver's version and the newest CUDA that it can serve, or "unknown"."""
    try:
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    found = [re.search(rf"{words}:\s*([\d.]+)", text) for words in ("Driver Version", r"CUDA (?:UMD )?Version")]
    return tuple(match[1] if match else "unknown" for match in found)  # type: ignore[return-value]


def check_namespaces(settings: Settings) -> Iterator[Finding]:
    del settings
    if build_isolation():
        yield Finding("namespaces", OK, "trainers get a PID namespace of their own")
        return
    message = "not allowed here: what a trainer leaves behind is found by its marker and ended instead"
    remedy = "allow user namespaces (kernel.unprivileged_userns_clone=1, or a container with CAP_SYS_ADMIN)"
    yield Finding("namespaces", WARNING, message, remedy)


def check_disk(settings: Settings) -> Iterator[Finding]:
    folder = next(path for path in (settings.home, *settings.home.parents) if path.is_dir())
    free, reserve = shutil.disk_usage(folder).free, settings.disk_reserve_bytes
    message = f"{free / 2**30:.1f} GiB are free in {folder}, {reserve / 2**30:.1f} GiB are the reserve"
    if free < reserve:
        remedy = "make room, or lower MEDTUNE_DISK_RESERVE_BYTES: workers take no job until then"
        yield Finding("disk", ERROR, message, remedy)
    else:
        yield Finding("disk", OK, message)


def count_shown_gpus(settings: Settings) -> int:
    """What the driver shows, whatever this worker may use of it."""
    return count_gpus(settings.model_copy(update={"worker_gpus": None}))
