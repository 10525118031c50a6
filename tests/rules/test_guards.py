"""The patches that take away guards are in order; `make guards` applies them and runs their tests."""

import subprocess

import pytest

from tests.guards.remove_guards import ROOT, Guard, list_guards


@pytest.mark.parametrize("guard", list_guards(), ids=lambda guard: guard.name)
def test_a_guards_patch_applies_and_its_test_exists(guard: Guard) -> None:
    subprocess.run(["git", "apply", "--check", str(guard.patch)], cwd=ROOT, check=True)
    path, _, name = guard.test.partition("::")

    assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


def test_there_are_guards() -> None:
    assert len(list_guards()) >= 15
