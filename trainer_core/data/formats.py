"""Row formats: one JSONL line in, a list of chat messages out. Torch-free.

| format              | keys                                                          |
|---------------------|---------------------------------------------------------------|
| instruction         | `instruction`, `response`                                     |
| Alpaca              | `instruction`, `input` (may be absent or empty), `output`     |
| prompt / completion | `prompt`, `completion`                                        |
| OpenAI              | `messages`: [{`role`: system, user or assistant, `content`}]  |

Other keys are ignored. No error text repeats what a row says: rows may be private.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO, Literal, TypedDict

MAX_ROW_BYTES = 1_000_000

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class RowError(Exception):
    """A row cannot be used; `code` is stable, `field` names the key at fault."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


def iter_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Every line that is not blank with its 1-based number; None stands for one over MAX_ROW_BYTES.

    Memory stays flat whatever the file holds: an endless line is read past in pieces.
    """
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            yield number, line


def parse_row(line: bytes | None) -> list[Message]:
    """The conversation in one line of JSONL. Raises RowError."""
    if line is None:
        raise RowError("row_too_large", f"The row is longer than {MAX_ROW_BYTES:,} bytes.")
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise RowError("not_utf8", "The row is not UTF-8 text.") from None
    except (ValueError, RecursionError):
        raise RowError("invalid_json", "The row is not valid JSON.") from None
    if not isinstance(record, dict):
        raise RowError("not_an_object", "The row is JSON, but not an object with keys.")
    return _to_messages(record)


def _to_messages(record: dict[str, object]) -> list[Message]:
    if "messages" in record:
        return _from_openai(record["messages"])
    if "prompt" in record or "completion" in record:
        return _from_pair(record, "prompt", "completion", context=None)
    if "output" in record and "response" not in record:
        return _from_pair(record, "instruction", "output", context="input")
    if "instruction" in record or "response" in record:
        return _from_pair(record, "instruction", "response", context=None)
    raise RowError("unknown_format", "The row has none of: instruction and response, prompt and completion, messages.")


def _from_pair(record: dict[str, object], question_key: str, answer_key: str, context: str | None) -> list[Message]:
    question = _get_text(record, question_key, missing="missing_instruction", empty="missing_instruction")
    answer = _get_text(record, answer_key, missing="missing_response", empty="empty_response")
    if context and record.get(context) not in (None, ""):
        question += "\n\n" + _check_text(record[context], context)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _from_openai(messages: object) -> list[Message]:
    if not isinstance(messages, list):
        raise RowError("wrong_type", "`messages` is not a list.", "messages")
    turns = [_to_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not any(turn["role"] == "assistant" for turn in turns):
        raise RowError("no_assistant_turn", "No message has the role assistant: there is nothing to learn.", "messages")
    return turns


def _to_message(message: object, field: str) -> Message:
    if not isinstance(message, dict):
        raise RowError("wrong_type", f"`{field}` is not an object.", field)
    role = message.get("role")
    if role not in _ROLES:
        raise RowError("unknown_role", f"`{field}.role` is not one of {', '.join(_ROLES)}.", f"{field}.role")
    content = _check_text(message.get("content"), f"{field}.content")
    if role == "assistant" and not content.strip():
        raise RowError("empty_response", f"`{field}.content` is empty.", f"{field}.content")
    return {"role": role, "content": content}


def _get_text(record: dict[str, object], key: str, *, missing: str, empty: str) -> str:
    if record.get(key) is None:
        raise RowError(missing, f"`{key}` is missing.", key)
    text = _check_text(record[key], key)
    if not text.strip():
        raise RowError(empty, f"`{key}` is empty.", key)
    return text


def _check_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong_type", f"`{field}` is not a string.", field)
    try:
        value.encode()  # JSON can escape half a surrogate pair, on which a tokenizer would fail much later
    except UnicodeEncodeError:
        raise RowError("not_utf8", f"`{field}` holds half of a surrogate pair.", field) from None
    return value
