"""References are refused by their letters, before anything is opened."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.errors import InvalidRequest
from jobs.references import Reference, parse_reference
from jobs.settings import Settings

ROOTS = ["/srv/data", "s3://lake/train"]

HOSTILE = (
    "file:///etc/passwd",
    "file:///srv/data/../../etc/passwd",
    "file:///srv/data/..",
    "file:///srv/data/./a",
    "file:///srv/data//etc/passwd",
    "file:///srv/data/",
    "file:///srv/data",
    "file:///srv/database/rows.jsonl",
    "file:///srv/data/%2e%2e/%2e%2e/etc/passwd",
    "file:///srv/data/%252e%252e/etc/passwd",
    "file:///srv/data/%c0%ae%c0%ae/etc/passwd",
    "file:///srv/data/..\\..\\etc\\passwd",
    "file:///srv/data/a;id",
    "file:///srv/data/a\0",
    "file:///srv/data/a\nb",
    "file:///srv/data/\u202ea",
    "file:///srv/data/*",
    "file://localhost/srv/data/a",
    "file://other/srv/data/a",
    "file://169.254.169.254/srv/data/a",
    "file:/srv/data/a",
    "FILE:///srv/data/a",
    "/srv/data/a",
    "simplecache::file:///srv/data/a",
    "file://s3://lake/train/a",
    "http://169.254.169.254/latest/meta-data/",
    "https://lake.s3.amazonaws.com/train/a",
    "http://[::ffff:169.254.169.254]/",
    "s3://169.254.169.254/latest",
    "s3://other/train/a",
    "s3://lake/a",
    "s3://lake/training/a",
    "s3://lake/train/../secret",
    "s3://lake/train/",
    "s3://lake/train/a?versionId=1",
    "s3://user@lake/train/a",
    "s3://lake:9000/train/a",
    "s3:///lake/train/a",
    "s3a://lake/train/a",
    "file:///srv/data/" + "a" * 1024,
    "",
)


@pytest.mark.parametrize("uri", HOSTILE)
def test_a_reference_that_leads_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_reference(uri, ROOTS, "dataset.uri")

    assert caught.value.code in ("invalid_reference", "reference_outside_roots")
    assert caught.value.param == "dataset.uri"


def test_a_reference_is_a_root_and_the_names_below_it() -> None:
    assert parse_reference("file:///srv/data/a b/é.jsonl", ROOTS, "uri") == Reference("/srv/data", ("a b", "é.jsonl"))
    assert parse_reference("s3://lake/train/a/b", ROOTS, "uri") == Reference("s3://lake/train", ("a", "b"))


def test_without_roots_every_reference_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_reference("file:///srv/data/a", [], "uri")

    assert caught.value.code == "references_are_off"
    assert "MEDTUNE_DATA_ROOTS" in caught.value.details["remedy"]


def test_roots_are_folders_and_buckets_that_hold_nothing_of_medtune(tmp_path: Path) -> None:
    home, store = tmp_path / "data" / "home", "s3://lake/store"
    (tmp_path / "link").symlink_to(tmp_path / "data")

    settings = Settings(home=home, store_url=store, data_roots=[f"{tmp_path}/rows/", "s3://lake/train", "s3://b"])
    assert settings.data_roots == [f"{tmp_path}/rows", "s3://lake/train", "s3://b"]
    kept = ["/", str(tmp_path), str(tmp_path / "data"), str(tmp_path / "link"), str(home), str(home / "runs")]
    for root in (
        *kept,
        "s3://lake",
        store,
        f"{store}/datasets",
        "rows",
        "../rows",
        "/a/../b",
        "http://lake/a",
        "s3://",
    ):
        with pytest.raises(ValidationError):
            Settings(home=home, store_url=store, data_roots=[root])
