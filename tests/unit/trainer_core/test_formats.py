"""Rows of every format become the same conversations, and bad rows say why without repeating themselves."""

import io
import json

import pytest

from trainer_core.data.formats import MAX_ROW_BYTES, RowError, iter_lines, parse_row

QUESTION_AND_ANSWER = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def as_line(record: object) -> bytes:
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Q", "response": "A", "topic": "ignored"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "output": "A"},
        {"prompt": "Q", "completion": "A"},
        {"messages": QUESTION_AND_ANSWER},
    ],
)
def test_every_format_of_one_question_gives_the_same_conversation(record: dict[str, object]) -> None:
    assert parse_row(as_line(record)) == QUESTION_AND_ANSWER


def test_alpaca_input_follows_the_instruction() -> None:
    row = parse_row(as_line({"instruction": "Summarise.", "input": "A text.", "output": "A"}))
    assert row[0]["content"] == "Summarise.\n\nA text."


def test_a_conversation_keeps_its_system_message_and_all_turns() -> None:
    messages = [{"role": "system", "content": "S"}, *QUESTION_AND_ANSWER, *QUESTION_AND_ANSWER]
    assert parse_row(as_line({"messages": messages})) == messages


@pytest.mark.parametrize(
    ("line", "code", "field"),
    [
        (b"{", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"instruction": "\xff", "response": "A"}', "not_utf8", None),
        (b'{"instruction": "Q", "response": "\\ud800"}', "not_utf8", "response"),
        (b"[1]", "not_an_object", None),
        (b'{"text": "T"}', "unknown_format", None),
        (b'{"response": "A"}', "missing_instruction", "instruction"),
        (b'{"instruction": " ", "response": "A"}', "missing_instruction", "instruction"),
        (b'{"instruction": "Q"}', "missing_response", "response"),
        (b'{"instruction": "Q", "response": null}', "missing_response", "response"),
        (b'{"instruction": "Q", "response": "  "}', "empty_response", "response"),
        (b'{"instruction": "Q", "response": 5}', "wrong_type", "response"),
        (b'{"instruction": "Q", "input": 5, "output": "A"}', "wrong_type", "input"),
        (b'{"prompt": "Q"}', "missing_response", "completion"),
        (b'{"messages": "M"}', "wrong_type", "messages"),
        (b'{"messages": ["M"]}', "wrong_type", "messages[0]"),
        (b'{"messages": [{"role": "user", "content": "Q"}]}', "no_assistant_turn", "messages"),
        (b'{"messages": [{"role": "tool", "content": "T"}]}', "unknown_role", "messages[0].role"),
        (b'{"messages": [{"role": "assistant", "content": ""}]}', "empty_response", "messages[0].content"),
        (None, "row_too_large", None),
    ],
)
def test_a_bad_row_is_named_by_code_and_field(line: bytes | None, code: str, field: str | None) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(line)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_lines_are_counted_as_an_editor_counts_them() -> None:
    file = io.BytesIO(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"b": 2}')
    assert list(iter_lines(file)) == [(1, b'{"a": 1}\n'), (4, b'{"b": 2}')]


def test_a_line_that_is_too_long_is_read_past() -> None:
    fits, too_long = b"x" * MAX_ROW_BYTES + b"\n", b"x" * (MAX_ROW_BYTES + 1) + b"\n"
    file = io.BytesIO(too_long + fits + too_long * 1 + b"end")
    assert [(number, line and len(line)) for number, line in iter_lines(file)] == [
        (1, None),
        (2, MAX_ROW_BYTES + 1),
        (3, None),
        (4, 3),
    ]
