"""safety_failures.jsonl: one failure a line, each with the SHA-256 of the line before. Torch-free.

A line that was changed, taken out or put in breaks the chain for everyone who reads it.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trainer_core.data.phi.scanner import scan_text

MAX_TEXT = 2_000
"""Characters of a question or an answer that are kept."""


def append_failures(path: Path, failures: Iterable[Mapping[str, Any]]) -> None:
    """All of them, safe on the disk. The chain goes on from the file's last whole line; half a line is cut off."""
    with path.open("a+b") as file:
        last = _read_last_line(file)
        for failure in failures:
            last = json.dumps({**failure, "previous": _digest(last)}).encode()
            file.write(last + b"\n")
        file.flush()
        os.fsync(file.fileno())


def is_chain_whole(path: Path) -> bool:
    """Whether every line names the one before it."""
    last = b""
    for line in path.read_bytes().splitlines():
        if json.loads(line)["previous"] != _digest(last):
            return False
        last = line
    return True


def _read_last_line(file: BinaryIO) -> bytes:
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        file.truncate(end)
    file.seek(0, io.SEEK_END)
    return content[content.rfind(b"\n", 0, max(0, end - 1)) + 1 : max(0, end - 1)]


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest() if line else ""


def redact(text: str) -> str:
    """Without the identifiers that the rules for rows find, since an answer may repeat what was trained on; cut."""
    for finding in sorted(scan_text(text), key=lambda finding: -finding.start):
        text = f"{text[: finding.start]}[{finding.phi_class.upper()}]{text[finding.end :]}"
    return text[:MAX_TEXT]
