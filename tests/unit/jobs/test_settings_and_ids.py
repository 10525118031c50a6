"""Ids and settings."""

from pathlib import Path

import psycopg
import pytest

from cli.embedded import find_running_postgres, start_postgres
from cli.processes import Supervisor
from jobs.ids import new_id
from jobs.model_registry import list_models
from jobs.models_file import ModelsFileInvalid
from jobs.settings import Settings
from jobs.store import Store
from tests.factories import create_model_folder


def test_ids_sort_by_time_and_are_26_characters() -> None:
    ids = [new_id("job") for _ in range(100)]

    assert len(set(ids)) == 100
    assert {len(i) for i in ids} == {len("job_") + 26}
    assert ids[0][:14] <= ids[-1][:14]


def test_a_home_makes_one_secret_key_for_all(tmp_path: Path) -> None:
    first, second = Settings(home=tmp_path), Settings(home=tmp_path)

    assert first.load_secret_key() == second.load_secret_key()
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


def test_an_interrupted_cluster_is_made_anew(tmp_path: Path) -> None:
    """initdb writes PG_VERSION early, so only the whole folder's name says that it is done."""
    (tmp_path / "postgres" / "data.partial").mkdir(parents=True)
    (tmp_path / "postgres" / "data.partial" / "PG_VERSION").write_text("16")

    with Supervisor(tmp_path / "logs") as supervisor:
        url = start_postgres(supervisor, tmp_path / "postgres")
        psycopg.connect(url).close()
        assert find_running_postgres(tmp_path / "postgres") == url  # For the operator's commands beside it.

    assert find_running_postgres(tmp_path / "postgres") is None
    assert not (tmp_path / "postgres" / "data.partial").exists()


def test_settings_show_no_secret(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="postgresql://u:hush@h/d", bootstrap_key="hush-hush-hush-hush")

    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()


def test_a_models_file_names_folders_and_hub_ids(tmp_path: Path) -> None:
    create_model_folder(tmp_path / "models" / "tiny")
    (tmp_path / "models.toml").write_text('[[model]]\nid = "med-8b"\nsource = "org/med-8b"\nrevision = "abc"\n')
    settings = Settings(home=tmp_path, models_file=tmp_path / "models.toml")

    assert [model.id for model in list_models(settings)] == ["med-8b", "tiny"]


@pytest.mark.parametrize("content", ["[[model", '[[model]]\nname = "x"\n'])
def test_a_broken_models_file_says_where(tmp_path: Path, content: str) -> None:
    (tmp_path / "models.toml").write_text(content)

    with pytest.raises(ModelsFileInvalid, match=r"models\.toml"):
        list_models(Settings(home=tmp_path, models_file=tmp_path / "models.toml"))


def test_an_interrupted_write_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def write_half() -> None:
        with store.writing("a/b") as writer:
            writer.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert not (tmp_path / "a" / "b").exists()
    with store.writing("a/b") as writer:
        writer.write(b"whole")
    assert store.open("a/b").read() == b"whole"
    store.delete("a/b")
    store.delete("a/b")
