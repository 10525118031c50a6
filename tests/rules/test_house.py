"""Rules of the house that no linter knows."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("api", "cli", "jobs", "medtune", "migrations", "trainer_core", "worker")


def list_sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from (ROOT / package).rglob("*.py")


def find_lines(pattern: str, *packages: str, allowed: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in list_sources(*packages)
        if str(path.relative_to(ROOT)) not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def test_the_import_rule_holds() -> None:
    lint = Path(sys.executable).parent / "lint-imports"

    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("api.app", ("torch", "transformers", "peft", "numpy", "model_signing", "cryptography.hazmat")),
        ("worker.release", ("torch", "transformers", "peft", "numpy", "model_signing")),
    ],
)
def test_a_server_starts_without_heavy_libraries(module: str, heavy: tuple[str, ...]) -> None:
    """Also not by way of a third package."""
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("pattern", "packages", "allowed"),
    [
        (
            r"\bstatus=(JobStatus|to\b)|\.status = (JobStatus|to\b)",
            ("api", "cli", "worker", "jobs"),
            {"jobs/lifecycle/changes.py"},
        ),
        (r"\bsend_task\(|\.apply_async\(|\.delay\(", ("api", "cli", "worker", "jobs"), {"jobs/task_queue.py"}),
        (r"\bHTTPException\(", ("api", "cli", "worker", "jobs"), {"api/body_limit.py", "api/dashboard/sign_in.py"}),
        (r"shell=True|os\.system\(", PACKAGES, set()),
        (r"trust_remote_code=True", PACKAGES, set()),
    ],
    ids=["status changes", "messages", "HTTP errors", "shells", "remote code"],
)
def test_each_thing_is_done_in_its_one_place(pattern: str, packages: tuple[str, ...], allowed: set[str]) -> None:
    assert find_lines(pattern, *packages, allowed=allowed) == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        path for path in list_sources(*PACKAGES) if not path.read_text(encoding="utf-8").startswith(('"""', 'r"""'))
    ]

    assert silent == []


def test_constraints_are_exact_and_name_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in pins)
    assert "://" not in "".join(lines)
