"""The demonstration model is whole, small, honest about itself, and the same every time."""

from pathlib import Path

from tests.training.conftest import DATA
from trainer_core.demo_model import build_demo_model
from trainer_core.model_files import check_model_folder


def test_the_folder_passes_the_check_of_base_models(demo_model: Path) -> None:
    assert check_model_folder(demo_model) == []


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(demo_model: Path, tmp_path: Path) -> None:
    build_demo_model(tmp_path / "again", data=DATA)
    build_demo_model(tmp_path / "other", data=DATA, seed=1)
    for file in demo_model.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    weights = "model.safetensors"
    assert (demo_model / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


def test_the_folder_says_that_the_model_knows_nothing(demo_model: Path) -> None:
    readme = (demo_model / "README.md").read_text()
    assert "random weights" in readme
    assert "knows nothing" in readme
