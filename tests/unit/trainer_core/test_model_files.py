"""A folder is refused before anything loads it."""

from pathlib import Path

import pytest

from trainer_core.model_files import check_model_folder

WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


def create_folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).write_text("{}")
    return path


def test_a_whole_folder_has_no_problems(tmp_path: Path) -> None:
    assert check_model_folder(create_folder(tmp_path, *WHOLE)) == []


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("config.json", "model_config_missing"),
        ("model.safetensors", "model_weights_missing"),
        ("tokenizer.json", "model_tokenizer_missing"),
    ],
)
def test_each_missing_file_has_its_own_code_and_remedy(tmp_path: Path, missing: str, code: str) -> None:
    [problem] = check_model_folder(create_folder(tmp_path, *(name for name in WHOLE if name != missing)))
    assert problem.code == code
    assert problem.remedy


def test_weights_in_pickles_only_are_refused_as_such(tmp_path: Path) -> None:
    [problem] = check_model_folder(create_folder(tmp_path, "config.json", "tokenizer.json", "pytorch_model.bin"))
    assert problem.code == "model_weights_pickle"


def test_an_absent_folder_lacks_everything(tmp_path: Path) -> None:
    codes = {problem.code for problem in check_model_folder(tmp_path / "absent")}
    assert codes == {"model_config_missing", "model_weights_missing", "model_tokenizer_missing"}
