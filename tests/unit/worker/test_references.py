"""What a reference names is fetched, and nothing that somebody put in its place."""

import os
from pathlib import Path

import pytest

from jobs.settings import Settings
from trainer_core.errors import DataError
from worker.references import fetch_reference


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "rows"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    return path


def fetch(root: Path, name: str, **changes: object) -> bytes:
    settings = Settings(home=root.parent / "home", data_roots=[str(root)], **changes)  # type: ignore[arg-type]
    target = root.parent / "fetched"
    fetch_reference(f"file://{root}/{name}", target, settings, lambda: None)
    return target.read_bytes()


def test_a_file_below_the_root_is_copied(root: Path) -> None:
    assert fetch(root, "inner/file") == b"content"


def test_a_root_may_be_a_link_of_the_operators(root: Path) -> None:
    (root.parent / "link").symlink_to(root)

    assert fetch(root.parent / "link", "inner/file") == b"content"


@pytest.mark.parametrize("target", ["../secret", "inner/file", "/etc/passwd"])
def test_a_link_is_not_followed_wherever_it_leads(root: Path, target: str) -> None:
    (root / "link").symlink_to(target)

    with pytest.raises(DataError) as caught:
        fetch(root, "link")

    assert caught.value.code == "reference_not_found"


def test_a_link_in_the_place_of_a_folder_is_not_followed(root: Path) -> None:
    (root / "link").symlink_to("../outside")

    with pytest.raises(DataError) as caught:
        fetch(root, "link/file")

    assert caught.value.code == "reference_not_found"


def test_what_is_no_ordinary_file_is_not_read(root: Path) -> None:
    """Also not waited for."""
    os.mkfifo(root / "pipe")

    for name in ("pipe", "inner", "missing", "inner/file/below"):
        with pytest.raises(DataError) as caught:
            fetch(root, name)
        assert caught.value.code == "reference_not_found"


def test_a_file_over_the_limit_is_not_copied_to_its_end(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch(root, "inner/file", max_upload_bytes=6)

    assert caught.value.code == "file_too_large"


def test_a_root_that_was_closed_meanwhile_opens_nothing(root: Path) -> None:
    settings = Settings(home=root.parent / "home", data_roots=[str(root / "inner")])

    with pytest.raises(DataError) as caught:
        fetch_reference(f"file://{root}/other", root.parent / "fetched", settings, lambda: None)

    assert caught.value.code == "reference_outside_roots"
