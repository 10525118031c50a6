"""`prepare` writes every row's tokens once, splits by the seed, and refuses what cannot be learned from."""

import contextlib
import gzip
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import CreateRun, read_events
from trainer_core.data.batches import PreparedRows, Sequences
from trainer_core.data.prepare import prepare
from trainer_core.data.row_report import REPORT_FILE, RowReport
from trainer_core.data.row_writer import PreparedManifest
from trainer_core.errors import DataError
from trainer_core.reporting import NoticeEvent, Reporter
from trainer_core.run_dir import RunDir
from trainer_core.tokenizer import load_tokenizer

SHORT = {"instruction": "Q?", "response": "An answer."}
LONG = {"instruction": "Q?", "response": "word " * 500}
LONG_QUESTION = {"instruction": "word " * 500, "response": "A."}


def write_rows(tmp_path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def run_prepare(run_dir: RunDir) -> PreparedManifest:
    with contextlib.closing(Reporter(run_dir.events)) as reporter:
        return prepare(run_dir, reporter)


def use_template(run_dir: RunDir, template: str) -> None:
    spec = run_dir.load_spec()
    model = spec.model.model_copy(update={"chat_template": template})
    run_dir.spec.write_text(spec.model_copy(update={"model": model}).model_dump_json(), encoding="utf-8")


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


def test_the_report_shows_the_first_rows_as_they_are_trained_on(tmp_path: Path, create_run: CreateRun) -> None:
    chat = [{"role": role, "content": f"{role} {n}"} for n in (1, 2) for role in ("user", "assistant")]
    path = write_rows(tmp_path, [SHORT, LONG, {"messages": chat}, SHORT, SHORT])
    run_dir = create_run(train_path=path, validation={}, training={"max_seq_len": 64})

    run_prepare(run_dir)

    report = RowReport.model_validate_json((run_dir.prepared / REPORT_FILE).read_bytes())
    rows, tokenizer = PreparedRows(run_dir.prepared), load_tokenizer(run_dir.load_spec())
    assert [row.line for row in report.sample] == [1, 3, 4]
    for number, row in enumerate(report.sample):
        tokens, mask = rows.get(number)
        assert "".join(run.text for run in row.runs) == tokenizer.decode(tokens.tolist())
        assert (row.tokens, row.trained_tokens) == (len(tokens), mask.sum())
    assert [run.text for run in report.sample[0].runs if run.trained] == ["An answer.<|im_end|>"]
    assert [run.text for run in report.sample[1].runs if run.trained] == [
        "assistant 1<|im_end|>",
        "assistant 2<|im_end|>",
    ]
    assert (report.train_rows, report.too_long_rows, report.dropped_rows) == (4, 1, 1)
    assert sum(report.lengths.values()) == 5
    assert max(report.lengths) >= report.longest_row_tokens > 500


@pytest.mark.parametrize(("truncation", "num_rows"), [("truncate", 1), ("split", 3)])
def test_the_report_shows_what_is_left_of_long_rows(
    tmp_path: Path, create_run: CreateRun, truncation: str, num_rows: int
) -> None:
    training = {"max_seq_len": 64, "truncation": truncation, "train_on": "all"}
    run_dir = create_run(train_path=write_rows(tmp_path, [LONG]), validation={}, training=training)

    run_prepare(run_dir)

    report = RowReport.model_validate_json((run_dir.prepared / REPORT_FILE).read_bytes())
    assert [(row.line, row.tokens, row.trained_tokens) for row in report.sample] == [(1, 64, 63)] * num_rows
    assert [run.trained for run in report.sample[0].runs] == [False, True]  # Nothing predicts the first token.


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


def test_rows_that_are_trained_on_and_validate_are_named(tmp_path: Path, create_run: CreateRun) -> None:
    rows = [{"instruction": f"{word}?", "response": "An answer."} for word in ("One", "Two", "Three", "Four")]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(rows[2]) + "\n" + json.dumps({**rows[1], "instruction": "TWO?"}), encoding="utf-8")
    run_dir = create_run(train_path=write_rows(tmp_path, rows), validation={"path": str(held_out)})

    run_prepare(run_dir)

    [notice] = [event for event in read_events(run_dir) if isinstance(event, NoticeEvent)]
    assert notice.code == "validation_overlap"
    assert notice.message.startswith("2 of 4 rows")
    assert notice.details["counts"] == {"validation_overlap": 2}
    places = [(f["rows"], f["source"], f["source_row"]) for f in notice.details["findings"]]
    assert places == [([2], "held_out.jsonl", 2), ([3], "held_out.jsonl", 1)]


def test_rows_that_a_split_puts_on_both_sides_are_named(tmp_path: Path, create_run: CreateRun) -> None:
    different = [{"instruction": f"Number {number}?", "response": "An answer."} for number in range(10)]
    run_dir = create_run(train_path=write_rows(tmp_path, different), validation={"fraction": 0.5})
    run_prepare(run_dir)
    assert list_notices(run_dir) == []

    run_dir = create_run(train_path=write_rows(tmp_path, [SHORT] * 10), validation={"fraction": 0.5})
    run_prepare(run_dir)
    assert list_notices(run_dir) == ["validation_overlap"]


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


def test_long_rows_are_split_and_each_part_keeps_its_own_answers(tmp_path: Path, create_run: CreateRun) -> None:
    path = write_rows(tmp_path, [SHORT, LONG, LONG_QUESTION])
    whole = create_run(train_path=path, validation={}, training={"max_seq_len": 8192})
    split = create_run(train_path=path, validation={}, training={"truncation": "split"})
    run_prepare(whole)
    manifest = run_prepare(split)
    rows, parts = PreparedRows(whole.prepared), PreparedRows(split.prepared)
    num_parts = [-(-int(length) // 256) for length in rows.lengths]
    assert num_parts[0] == 1
    assert min(num_parts[1:]) > 1
    assert (manifest.split_rows, manifest.dropped_rows, manifest.truncated_rows) == (2, 0, 0)
    assert manifest.dropped_pieces == num_parts[2] - 1  # of the long question only the end holds an answer
    assert manifest.train_rows == sum(num_parts) - manifest.dropped_pieces
    (tokens, mask), first = rows.get(1), 1
    for part in range(num_parts[1]):
        bounds = slice(256 * part, 256 * (part + 1))
        part_tokens, part_mask = parts.get(first + part)
        assert np.array_equal(part_tokens, tokens[bounds])
        assert np.array_equal(part_mask[1:], mask[bounds][1:])
        assert part_mask[0] == 0  # nothing in the part predicts it
    assert list_notices(split) == ["rows_split"]


def test_parts_of_one_row_are_never_on_both_sides(tmp_path: Path, create_run: CreateRun) -> None:
    path = write_rows(tmp_path, [{"instruction": f"Q{index}", "response": LONG["response"]} for index in range(20)])
    run_dir = create_run(train_path=path, validation={"fraction": 0.3}, training={"truncation": "split"})
    manifest = run_prepare(run_dir)
    rows = PreparedRows(run_dir.prepared)
    num_parts = (manifest.train_rows + manifest.validation_rows) // 20
    assert num_parts > 1
    assert manifest.validation_rows == 6 * num_parts
    assert not set(rows.train // num_parts) & set(rows.validation // num_parts)


@pytest.mark.parametrize("packing", [True, False])
def test_the_rows_are_arranged_once_and_loaded_as_they_were(create_run: CreateRun, packing: bool) -> None:
    run_dir = create_run(validation={"fraction": 0.2}, training={"packing": packing})
    manifest = run_prepare(run_dir)
    rows = PreparedRows(run_dir.prepared)
    for name, selected, count in (
        ("train", rows.train, manifest.train_sequences),
        ("validation", rows.validation, manifest.validation_sequences),
    ):
        loaded = Sequences.load(rows, name)  # type: ignore[arg-type]
        arranged = Sequences(rows, selected, max_seq_len=256, packing=packing)
        assert len(loaded) == len(arranged) == count
        assert [loaded.get_rows(index) for index in range(count)] == [
            arranged.get_rows(index) for index in range(count)
        ]
        assert np.array_equal(loaded.lengths, arranged.lengths)
        assert np.array_equal(loaded.supervised, arranged.supervised)
        assert loaded.supervised.sum() == rows.supervised[selected].sum()


def test_a_conversation_whose_earlier_turns_are_rewritten_becomes_a_row_for_each_answer(
    tmp_path: Path, create_run: CreateRun
) -> None:
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    path = write_rows(tmp_path, [{"messages": turns * 3}, {"messages": turns}])
    run_dir = create_run(train_path=path, validation={})
    rewriting = "{{ m.role }}: {{ 'Hm. ' if m.role == 'assistant' and loop.last }}{{ m.content }}<|im_end|>"
    prompt = "{% if add_generation_prompt %}assistant: {% endif %}"
    use_template(run_dir, "{% for m in messages %}" + rewriting + "{% endfor %}" + prompt)
    manifest = run_prepare(run_dir)
    assert (manifest.train_rows, manifest.unrolled_rows) == (4, 1)
    assert list_notices(run_dir) == ["conversations_unrolled"]


def test_a_template_that_does_not_end_answers_is_told_once(tmp_path: Path, create_run: CreateRun) -> None:
    run_dir = create_run(train_path=write_rows(tmp_path, [SHORT] * 600), validation={})
    prompt = "{% if add_generation_prompt %}assistant: {% endif %}"
    use_template(run_dir, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + prompt)
    run_prepare(run_dir)
    assert list_notices(run_dir) == ["stop_token_not_trained"]


def test_a_compressed_table_is_prepared_like_lines_of_json(tmp_path: Path, create_run: CreateRun) -> None:
    table = tmp_path / "rows.jsonl"  # whatever its name says
    table.write_bytes(gzip.compress(b"instruction,response\nQ?,An answer.\n"))
    run_dir = create_run(train_path=str(table), validation={})
    run_prepare(run_dir)
    tokens, _ = PreparedRows(run_dir.prepared).get(0)
    text = load_tokenizer(run_dir.load_spec()).decode(tokens)
    assert text == "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\nAn answer.<|im_end|>\n"


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


def test_a_damaged_file_ends_the_run(tmp_path: Path, create_run: CreateRun) -> None:
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(json.dumps(SHORT).encode())[:-1])
    with pytest.raises(DataError, match=r"^The compressed file is damaged") as caught:
        run_prepare(create_run(train_path=str(path), validation={}))
    assert caught.value.code == "file_damaged"


def test_a_row_without_a_token_to_learn_is_refused_by_its_line(tmp_path: Path, create_run: CreateRun) -> None:
    run_dir = create_run(train_path=write_rows(tmp_path, [SHORT]), validation={})
    use_template(run_dir, "{{ messages[0]['content'] }}")  # renders no answer at all
    with pytest.raises(DataError, match="Line 1") as caught:
        run_prepare(run_dir)
    assert caught.value.code == "no_supervised_token"


def test_prepared_rows_are_not_prepared_again(create_run: CreateRun) -> None:
    run_dir = create_run()
    first = run_prepare(run_dir)
    before = (run_dir.prepared / "tokens.bin").stat().st_mtime_ns
    assert run_prepare(run_dir) == first
    assert (run_dir.prepared / "tokens.bin").stat().st_mtime_ns == before


def test_memory_does_not_grow_with_the_file(tmp_path: Path, create_run: CreateRun) -> None:
    """4 MB of words and 60 MB that are read past, against a little of it; a process tells its own peak."""
    row = {"instruction": "Q?", "response": "fever " * 7000, "notes": "x" * 600_000}
    whole = {"max_seq_len": 100_000}

    def get_peak(num_rows: int) -> int:
        run_dir = create_run(train_path=write_rows(tmp_path, [row] * num_rows), validation={}, training=whole)
        # Not getrusage, which counts the parent's memory before `exec` too.
        code = "from trainer_core.__main__ import main; main(); print(open('/proc/self/status').read())"
        command = [sys.executable, "-c", code, "prepare", str(run_dir.path)]
        status = subprocess.check_output(command, text=True)
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    small, large = get_peak(2), get_peak(100)
    assert large - small < 40_000_000
