"""Whether torch, bitsandbytes and DeepSpeed can be loaded here, and fit this machine's GPUs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from cli.doctor.finding import ERROR, OK, WARNING, Finding
from cli.doctor.machine import count_shown_gpus, read_driver
from jobs.settings import Settings

LIBRARIES_SECONDS = 180

# In a process of its own: a library that crashes takes only that along, and this package imports none of them.
_PROBE = """
import json
found = {}
def probe(name, look):
    try:
        found[name] = look()
    except BaseException as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == name
        found[name] = {"missing": True} if is_missing else {"error": f"{type(error).__name__}: {error}"[:500]}
def torch():
    import torch
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
def bitsandbytes():
    import bitsandbytes
    from bitsandbytes.cextension import lib
    loaded = getattr(getattr(lib, "_lib", None), "_name", None)
    return {"version": bitsandbytes.__version__, "library": loaded and loaded.rpartition("/")[2]}
def deepspeed():
    import deepspeed
    from deepspeed.ops import op_builder
    names = ("CPUAdamBuilder", "FusedAdamBuilder")
    builders = [getattr(op_builder, name)() for name in names]
    return {"version": deepspeed.__version__, "ops": {b.NAME: bool(b.is_compatible(verbose=False)) for b in builders}}
for look in (torch, bitsandbytes, deepspeed):
    probe(look.__name__, look)
print("\\nFOUND " + json.dumps(found))
"""
_TRAIN_EXTRA = "pip install -c constraints.txt 'medtune[train]'"


def check_libraries(settings: Settings) -> Iterator[Finding]:
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIBRARIES_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"loading torch, bitsandbytes and deepspeed took more than {LIBRARIES_SECONDS} s"
        yield Finding("libraries", ERROR, message, "look at the disk and at nvidia-smi: one of the two hangs")
        return
    found = re.search(r"^FOUND (.*)$", result.stdout, re.MULTILINE)
    if found is None:
        message = f"the process that loads them ended with {result.returncode}: {result.stderr.strip()[-300:]}"
        yield Finding("libraries", ERROR, message, f"install them anew: {_TRAIN_EXTRA}")
        return
    libraries = json.loads(found[1])
    has_gpus = count_shown_gpus(settings) > 0
    yield _judge_torch(libraries["torch"], has_gpus)
    for name in ("bitsandbytes", "deepspeed"):
        yield _judge_library(name, libraries[name], libraries["torch"], has_gpus)


def _judge_torch(torch: dict[str, Any], has_gpus: bool) -> Finding:
    if "version" not in torch:
        return _judge_broken("torch", torch, has_gpus)
    message = f"{torch['version']}, built for CUDA {torch['cuda'] or '(none)'}, sees {torch['gpus']} GPUs"
    if not has_gpus or torch["gpus"]:
        return Finding("torch", OK, message)
    if torch["cuda"] is None:
        return Finding("torch", ERROR, message, "install a build of torch for CUDA: this machine has GPUs")
    _, newest = read_driver()
    remedy = f"the driver serves CUDA up to {newest}: update it, install a torch for that CUDA, or see nvidia-smi"
    return Finding("torch", ERROR, message, remedy)


def _judge_library(name: str, library: dict[str, Any], torch: dict[str, Any], has_gpus: bool) -> Finding:
    if "version" not in library:
        return _judge_broken(name, library, has_gpus)
    if name == "bitsandbytes":
        loaded = library["library"] or "none"
        message = f"{library['version']}, library {loaded}"
        wanted = str(torch.get("cuda") or "").replace(".", "")
        if has_gpus and f"cuda{wanted}" not in loaded:
            remedy = f"it has none for torch's CUDA {torch.get('cuda')}: install a newer bitsandbytes, or another torch"
            return Finding(name, ERROR, message, remedy)
        return Finding(name, OK, message)
    unfit = [op for op, is_compatible in library["ops"].items() if not is_compatible]
    message = f"{library['version']}, operators: {', '.join(library['ops'])}"
    if unfit:
        remedy = "for offload install a C++ compiler, Python's headers and, for GPUs, CUDA's nvcc of torch's version"
        return Finding(name, WARNING, f"{message}; cannot be built here: {', '.join(unfit)}", remedy)
    return Finding(name, OK, message)


def _judge_broken(name: str, library: dict[str, Any], has_gpus: bool) -> Finding:
    if library.get("missing"):
        return Finding(name, ERROR if has_gpus else WARNING, "not installed: nothing trains here", _TRAIN_EXTRA)
    return Finding(name, ERROR, f"cannot be loaded: {library['error']}", f"install it anew: {_TRAIN_EXTRA}")
