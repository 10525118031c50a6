"""Records of every format become the same conversations, and bad ones say why without repeating themselves."""

from typing import Any

import pytest

from trainer_core.data.formats import RowError, is_trained, parse_record

QUESTION, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Q", "response": "A", "topic": "ignored"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "output": "A"},
        {"instruction": "Q", "output": "A", "response": None, "messages": None},
        {"prompt": "Q", "completion": "A"},
        {"messages": [QUESTION, ANSWER]},
        {"messages": [QUESTION, {**ANSWER, "weight": 1, "name": "N", "tool_calls": None, "refusal": None}]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}], "system": ""},
        {"conversations": [QUESTION, ANSWER]},
    ],
)
def test_every_format_of_one_question_gives_the_same_conversation(record: dict[str, object]) -> None:
    assert parse_record(record) == [QUESTION, ANSWER]


def test_alpaca_input_follows_the_instruction() -> None:
    [question, _] = parse_record({"instruction": "Summarise.", "input": "A text.", "output": "A"})
    assert question["content"] == "Summarise.\n\nA text."


def test_a_conversation_keeps_its_system_message_and_all_turns() -> None:
    messages = [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER]
    assert parse_record({"messages": messages}) == messages


def test_a_developers_message_is_the_systems() -> None:
    assert parse_record({"messages": [{"role": "developer", "content": "S"}, QUESTION, ANSWER]})[0] == SYSTEM


def test_sharegpts_system_prompt_stands_in_the_conversation_or_beside_it() -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    inside = {"conversations": [{"from": "system", "value": "S"}, *turns]}
    beside = {"conversations": turns, "system": "S"}
    assert parse_record(inside) == parse_record(beside) == [SYSTEM, QUESTION, ANSWER]
    assert parse_record({**inside, "system": "another"}) == [SYSTEM, QUESTION, ANSWER]


def test_an_answer_of_weight_zero_is_there_and_not_trained() -> None:
    messages = parse_record({"messages": [QUESTION, {**ANSWER, "weight": 0}, {**QUESTION, "weight": 0}, ANSWER]})
    assert [is_trained(message) for message in messages] == [False, False, False, True]
    assert messages[2] == QUESTION


@pytest.mark.parametrize(
    ("record", "code", "field"),
    [
        ({"text": "T"}, "unknown_format", None),
        ({"response": None}, "unknown_format", None),
        ({"response": "A"}, "missing_instruction", "instruction"),
        ({"instruction": " ", "response": "A"}, "missing_instruction", "instruction"),
        ({"instruction": "Q"}, "missing_response", "response"),
        ({"instruction": "Q", "response": None}, "missing_response", "response"),
        ({"instruction": "Q", "response": "  "}, "empty_response", "response"),
        ({"instruction": "Q", "response": 5}, "wrong_type", "response"),
        ({"instruction": "Q", "response": "\ud800"}, "not_utf8", "response"),
        ({"instruction": "Q", "input": 5, "output": "A"}, "wrong_type", "input"),
        ({"prompt": "Q"}, "missing_response", "completion"),
        ({"messages": "M"}, "wrong_type", "messages"),
        ({"messages": []}, "no_assistant_turn", "messages"),
        ({"messages": ["M"]}, "wrong_type", "messages[0]"),
        ({"messages": [QUESTION]}, "no_assistant_turn", "messages"),
        ({"messages": [QUESTION, {**ANSWER, "weight": 0}]}, "no_assistant_turn", "messages"),
        ({"messages": [QUESTION, {**ANSWER, "weight": 2}]}, "wrong_weight", "messages[1].weight"),
        ({"messages": [{"role": "tool", "content": "T"}]}, "unknown_role", "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "T"}]}, "unknown_role", "messages[0].role"),
        ({"messages": [{"role": "human", "content": "T"}]}, "unknown_role", "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "wrong_type", "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "empty_response", "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "tool_calls_not_supported",
            "messages[0]",
        ),
        ({"conversations": {"from": "gpt"}}, "wrong_type", "conversations"),
        ({"conversations": [], "system": "S"}, "no_assistant_turn", "conversations"),
        ({"conversations": [{"from": "bot", "value": "A"}]}, "unknown_role", "conversations[0].from"),
        ({"conversations": [{"from": "gpt", "value": " "}]}, "empty_response", "conversations[0].value"),
        ({"conversations": [{"from": "gpt", "value": "A"}], "system": 5}, "wrong_type", "system"),
    ],
)
def test_a_bad_row_is_named_by_code_and_field(record: dict[str, Any], code: str, field: str | None) -> None:
    with pytest.raises(RowError) as caught:
        parse_record(record)
    assert (caught.value.code, caught.value.field) == (code, field)
