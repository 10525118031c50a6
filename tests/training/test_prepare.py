"""`prepare` writes every row's tokens once, splits by the seed, and refuses what cannot be learned from."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import CreateRun, read_events
from trainer_core.data.batches import PreparedRows
from trainer_core.data.prepare import PreparedManifest, prepare
from trainer_core.errors import DataError
from trainer_core.reporting import NoticeEvent, Reporter
from trainer_core.run_dir import RunDir
from trainer_core.tokenizer import load_tokenizer

SHORT = {"instruction": "Q?", "response": "An answer."}
LONG = {"instruction": "Q?", "response": "word " * 500}
LONG_QUESTION = {"instruction": "word " * 500, "response": "A."}


def write_rows(tmp_path: Path, rows: list[dict[str, str]]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def run_prepare(run_dir: RunDir) -> PreparedManifest:
    with contextlib.closing(Reporter(run_dir.events)) as reporter:
        return prepare(run_dir, reporter)


def list_notices(run_dir: RunDir) -> list[str]:
    return [event.code for event in read_events(run_dir) if isinstance(event, NoticeEvent)]


def test_rows_come_back_as_they_were_tokenised(tmp_path: Path, create_run: CreateRun) -> None:
    run_dir = create_run(train_path=write_rows(tmp_path, [SHORT, SHORT]), validation={})
    manifest = run_prepare(run_dir)
    rows, tokenizer = PreparedRows(run_dir.prepared), load_tokenizer(run_dir.load_spec())
    tokens, mask = rows.get(1)
    assert tokenizer.decode(tokens.tolist()).startswith("<|im_start|>user\nQ?<|im_end|>")
    assert tokenizer.decode(tokens[mask.astype(bool)].tolist()) == "An answer.<|im_end|>"
    assert manifest.tokens == rows.lengths.sum()
    assert manifest.supervised_tokens == rows.supervised.sum() == 2 * mask.sum()


def test_a_fraction_is_held_out_by_the_seed(create_run: CreateRun) -> None:
    def split(seed: int) -> PreparedRows:
        run_dir = create_run(validation={"fraction": 0.2}, training={"seed": seed})
        run_prepare(run_dir)
        return PreparedRows(run_dir.prepared)

    first, again, other = split(1), split(1), split(2)
    assert np.array_equal(first.validation, again.validation)
    assert not np.array_equal(first.validation, other.validation)
    assert sorted([*first.train, *first.validation]) == list(range(len(first.lengths)))
    assert len(first.validation) == round(0.2 * len(first.lengths))


def test_rows_held_out_by_the_client_are_not_trained_on(tmp_path: Path, create_run: CreateRun) -> None:
    run_dir = create_run(validation={"path": write_rows(tmp_path, [SHORT] * 3)})
    manifest = run_prepare(run_dir)
    rows = PreparedRows(run_dir.prepared)
    assert manifest.validation_rows == len(rows.validation) == 3
    assert not set(rows.validation.tolist()) & set(rows.train.tolist())


def test_long_rows_are_dropped_and_counted(tmp_path: Path, create_run: CreateRun) -> None:
    run_dir = create_run(train_path=write_rows(tmp_path, [SHORT, LONG, SHORT]), validation={})
    manifest = run_prepare(run_dir)
    assert (manifest.train_rows, manifest.dropped_rows, manifest.truncated_rows) == (2, 1, 0)
    assert list_notices(run_dir) == ["rows_dropped"]


def test_long_rows_are_cut_unless_no_answer_would_be_left(tmp_path: Path, create_run: CreateRun) -> None:
    path = write_rows(tmp_path, [SHORT, LONG, LONG_QUESTION])
    run_dir = create_run(train_path=path, validation={}, training={"truncation": "truncate"})
    manifest = run_prepare(run_dir)
    assert (manifest.train_rows, manifest.dropped_rows, manifest.truncated_rows) == (2, 1, 1)
    assert PreparedRows(run_dir.prepared).lengths.max() == 256
    assert list_notices(run_dir) == ["rows_dropped", "rows_truncated"]


@pytest.mark.parametrize(
    ("rows", "training", "code"),
    [
        ([SHORT, LONG], {"truncation": "fail"}, "row_too_long"),
        ([LONG, LONG], {}, "all_rows_too_long"),
        ([], {}, "no_rows"),
        ([SHORT, {"instruction": "Q?"}], {}, "missing_response"),
    ],
)
def test_rows_that_cannot_be_used_end_the_run_with_their_line(
    tmp_path: Path, create_run: CreateRun, rows: list[dict[str, str]], training: dict[str, str], code: str
) -> None:
    run_dir = create_run(train_path=write_rows(tmp_path, rows), validation={}, training=training)
    with pytest.raises(DataError) as caught:
        run_prepare(run_dir)
    assert caught.value.code == code
    assert caught.value.details.get("line", 2) == 2
    assert not (run_dir.prepared / "manifest.json").exists()


def test_a_row_without_a_token_to_learn_is_refused_by_its_line(tmp_path: Path, create_run: CreateRun) -> None:
    run_dir = create_run(train_path=write_rows(tmp_path, [SHORT]), validation={})
    spec = run_dir.load_spec()
    spec.model.chat_template = "{{ messages[0]['content'] }}"  # renders no answer at all
    run_dir.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    with pytest.raises(DataError, match="Line 1") as caught:
        run_prepare(run_dir)
    assert caught.value.code == "no_supervised_token"


def test_prepared_rows_are_not_prepared_again(create_run: CreateRun) -> None:
    run_dir = create_run()
    first = run_prepare(run_dir)
    before = (run_dir.prepared / "tokens.bin").stat().st_mtime_ns
    assert run_prepare(run_dir) == first
    assert (run_dir.prepared / "tokens.bin").stat().st_mtime_ns == before
