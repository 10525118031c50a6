"""Takes away one guard after the other and shows that a test then fails: `make guards [GUARDS=name ...]`.

Each `*.patch` beside this file removes one guard. Above its diff stand a sentence and `Test: ` with the test that must
fail without it. The patch is applied to a copy of the tree; a guard whose test still passes guards nothing.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(__file__).parent
TESTS_FAILED = 1
"""Of pytest's exit codes the one that means that tests ran and failed."""


@dataclass(frozen=True)
class Guard:
    name: str
    patch: Path
    sentence: str
    test: str


def list_guards() -> list[Guard]:
    return [read_guard(path) for path in sorted(FOLDER.glob("*.patch"))]


def read_guard(path: Path) -> Guard:
    header = path.read_text(encoding="utf-8").partition("\n--- ")[0]
    match = re.fullmatch(r"(?P<sentence>.+)\nTest: (?P<test>\S.*)\n*", header)
    assert match, f"{path.name} does not begin with a sentence and a test"
    return Guard(path.stem, path, match["sentence"], match["test"])


def copy_tree(target: Path) -> None:
    """All files that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def apply(guard: Guard, tree: Path, *options: str) -> None:
    subprocess.run(["git", "apply", *options, str(guard.patch)], cwd=tree, check=True)


def find_failure(guard: Guard) -> bool:
    """Whether the guard's test fails without it."""
    with tempfile.TemporaryDirectory(prefix="guards-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        apply(guard, tree)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", guard.test]
        result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if result.returncode not in (0, TESTS_FAILED):
        raise RuntimeError(f"{guard.test} did not run:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.returncode == TESTS_FAILED


def main(names: Sequence[str]) -> int:
    guards = [guard for guard in list_guards() if not names or guard.name in names]
    useless = []
    for guard in guards:
        started = time.monotonic()
        fails = find_failure(guard)
        useless += [] if fails else [guard.name]
        verdict = "fails without it" if fails else "PASSES WITHOUT IT"
        print(f"{guard.name:40} {verdict} ({time.monotonic() - started:.0f} s)  {guard.test}", flush=True)  # noqa: T201
    print(f"{len(guards) - len(useless)} of {len(guards)} guards are seen by a test")  # noqa: T201
    return 1 if useless else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
