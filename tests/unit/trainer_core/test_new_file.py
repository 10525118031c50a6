"""A new file is there whole or not at all, and never in the place of another."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.data.new_file import write_new_file


@pytest.fixture(params=["nameless files", "none"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Also on a file system that knows no files without a name."""
    real_open = os.open

    def refuse_nameless(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, *arguments, **options)

    if request.param == "none":
        monkeypatch.setattr(os, "open", refuse_nameless)
    return tmp_path


def test_it_appears_whole_at_the_end(folder: Path) -> None:
    with write_new_file(folder / "new", 0o600) as file:
        file.write(b"all")
        assert not (folder / "new").exists()

    assert (folder / "new").read_bytes() == b"all"
    assert (folder / "new").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["new"]


def write(path: Path, content: bytes, *, then: Callable[[], object]) -> None:
    with write_new_file(path) as file:
        file.write(content)
        then()


def test_after_an_error_nothing_is_there(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write(folder / "new", b"half", then=lambda: 1 / 0)

    assert list(folder.iterdir()) == []


def test_a_file_that_is_there_or_comes_meanwhile_stays(folder: Path) -> None:
    path = folder / "new"

    with pytest.raises(FileExistsError):
        write(path, b"mine", then=lambda: path.write_bytes(b"theirs"))
    with pytest.raises(FileExistsError):
        write(path, b"mine", then=lambda: None)

    assert path.read_bytes() == b"theirs"
    assert list(folder.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(FileNotFoundError), write_new_file(folder / "none" / "new"):
        pass
