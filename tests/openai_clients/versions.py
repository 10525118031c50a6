"""The newest `openai` package of each major version, each installed in a folder of its own."""

import fcntl
import subprocess
import sys
from pathlib import Path

_COMMON = ("jiter==0.19.0", "sniffio==1.3.1")
_OLD = ("distro==1.9.0", "tqdm==4.70.1", *_COMMON)
PINS = {
    "1": ("openai==1.109.1", *_OLD),
    "2": ("openai==2.54.0", *_OLD),
    "3": ("openai==3.54.0", "httpx2==2.16.2", "httpcore2==2.16.2", "truststore==0.10.5", *_COMMON),
}
"""What a client needs besides what medtune needs itself (pydantic, httpx, anyio)."""

_FOLDER = Path(sys.prefix) / "openai-clients"
"""Beside the packages of the environment, so that it is kept as long as they are."""


def install_client(major: str) -> Path:
    """A folder for PYTHONPATH, made when it is not there yet."""
    pins = PINS[major]
    target = _FOLDER / pins[0].replace("==", "-")
    _FOLDER.mkdir(exist_ok=True)
    with (_FOLDER / f"{major}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Tests may run side by side.
        done = target / "installed.txt"
        if not done.exists() or done.read_text(encoding="utf-8") != "\n".join(pins):
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(target)]
            subprocess.run([*pip, *pins], check=True)
            done.write_text("\n".join(pins), encoding="utf-8")
    return target
