"""Checkpoint folders are whole or absent, damage is found, and the newest and the best stay."""

from pathlib import Path

import pytest

from trainer_core.checkpoints import (
    find_best_checkpoint,
    find_damage,
    list_checkpoints,
    remove_old_checkpoints,
    write_folder,
    write_manifest,
)


def write_checkpoint(folder: Path, step: int, **metrics: float) -> Path:
    path = folder / f"step-{step}"
    with write_folder(path) as partial:
        (partial / "state").write_bytes(bytes(100))
        write_manifest(partial, run="run", step=step, metrics=metrics)
    return path


def test_the_newest_comes_first_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write_checkpoint(tmp_path, step)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [100, 10, 9]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 4.0), (5, 5.0)):
        write_checkpoint(tmp_path, step, eval_loss=loss)
    write_checkpoint(tmp_path, 6, loss=1.0)  # not validated
    remove_old_checkpoints(tmp_path, 2)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [6, 5, 2]
    best = find_best_checkpoint(tmp_path)
    assert best is not None
    assert best.step == 2


def test_without_validation_there_is_no_best(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    assert find_best_checkpoint(tmp_path) is None


def test_a_folder_that_was_not_finished_is_none(tmp_path: Path) -> None:
    def fill() -> None:
        with write_folder(tmp_path / "step-1") as partial:
            (partial / "state").write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-3").mkdir()
    (tmp_path / "step-3" / "manifest.json").write_text("{")
    assert list_checkpoints(tmp_path) == []


def test_a_folder_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1)
    with pytest.raises(OSError, match="disk full"), write_folder(path):
        raise OSError("disk full")
    assert find_damage(list_checkpoints(tmp_path)[0]) is None


def test_damage_is_found(tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path, 1) / "state"
    [checkpoint] = list_checkpoints(tmp_path)
    assert find_damage(checkpoint) is None
    for content in (bytes(99), bytes(99) + b"x", None):
        state.unlink()
        if content is not None:
            state.write_bytes(content)
        assert "state" in str(find_damage(checkpoint))
