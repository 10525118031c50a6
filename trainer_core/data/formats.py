"""Row formats: one record in, a list of chat messages out. Torch-free.

| format              | keys                                                                                       |
|---------------------|--------------------------------------------------------------------------------------------|
| instruction         | `instruction`, `response`                                                                  |
| Alpaca              | `instruction`, `input` (may be absent or empty), `output`                                  |
| prompt / completion | `prompt`, `completion`                                                                     |
| OpenAI              | `messages`: [{`role`: system, user or assistant, `content`, `weight`: 0 or 1, or absent}]  |
| ShareGPT            | `conversations`: [{`from`: system, human or gpt, `value`}]; `system` beside it, or absent  |

Other keys are ignored, and a key with null is an absent one. No error text repeats what a row says: rows may be
private.
"""

from collections.abc import Collection, Mapping
from typing import Literal, NotRequired, TypedDict

MAX_ROW_BYTES = 1_000_000

TEXT_COLUMNS = ({"instruction", "response"}, {"instruction", "output"}, {"prompt", "completion"})
"""Keys that make a row of plain text fields."""
_LIST_COLUMNS = ({"messages"}, {"conversations"})
_OPTIONAL_COLUMNS = {"input", "system"}
COLUMNS = frozenset().union(*TEXT_COLUMNS, *_LIST_COLUMNS, _OPTIONAL_COLUMNS)
"""All keys that mean something."""

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES: dict[str, Role] = {**_ROLES, "human": "user", "gpt": "assistant"}


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str
    weight: NotRequired[Literal[0]]
    """Only there on an answer that is not trained."""


class RowError(Exception):
    """A row cannot be used; `code` is stable, `field` names the key at fault."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


def has_known_columns(names: Collection[str]) -> bool:
    """Whether rows with these keys can be of one of the formats."""
    return any(keys.issubset(names) for keys in (*TEXT_COLUMNS, *_LIST_COLUMNS))


def is_trained(message: Message) -> bool:
    """An answer to learn from."""
    return message["role"] == "assistant" and "weight" not in message


def parse_record(record: Mapping[str, object]) -> list[Message]:
    """The conversation in a row. Raises RowError."""
    present = {key for key, value in record.items() if value is not None}
    if "messages" in present:
        return _from_list(record["messages"], "messages")
    if "conversations" in present:
        return _from_sharegpt(record)
    if "prompt" in present or "completion" in present:
        return _from_pair(record, "prompt", "completion", context=None)
    if "output" in present and "response" not in present:
        return _from_pair(record, "instruction", "output", context="input")
    if "instruction" in present or "response" in present:
        return _from_pair(record, "instruction", "response", context=None)
    known = "instruction and response, instruction and output, prompt and completion, messages, conversations"
    raise RowError("unknown_format", f"The row has none of: {known}.")


def _from_pair(record: Mapping[str, object], question_key: str, answer_key: str, context: str | None) -> list[Message]:
    question = _get_text(record, question_key, missing="missing_instruction", empty="missing_instruction")
    answer = _get_text(record, answer_key, missing="missing_response", empty="empty_response")
    if context and record.get(context) not in (None, ""):
        question += "\n\n" + _check_text(record[context], context)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _from_sharegpt(record: Mapping[str, object]) -> list[Message]:
    turns = _from_list(record["conversations"], "conversations")
    if record.get("system") in (None, "") or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": _check_text(record["system"], "system")}, *turns]


def _from_list(messages: object, field: str) -> list[Message]:
    if not isinstance(messages, list):
        raise RowError("wrong_type", f"`{field}` is not a list.", field)
    turns = [_to_message(message, f"{field}[{index}]") for index, message in enumerate(messages)]
    if not any(is_trained(turn) for turn in turns):
        raise RowError("no_assistant_turn", f"`{field}` holds no answer to learn from.", field)
    return turns


def _to_message(message: object, field: str) -> Message:
    """A message of OpenAI's form, or of ShareGPT's."""
    if not isinstance(message, dict):
        raise RowError("wrong_type", f"`{field}` is not an object.", field)
    is_sharegpt = message.get("from") is not None
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    role = _get_role(message, role_key, _SHAREGPT_ROLES if is_sharegpt else _ROLES, field)
    if message.get("tool_calls") or message.get("function_call"):
        raise RowError("tool_calls_not_supported", f"`{field}` calls a tool, which cannot be trained yet.", field)
    content = _check_text(message.get(content_key), f"{field}.{content_key}")
    if role == "assistant" and not content.strip():
        raise RowError("empty_response", f"`{field}.{content_key}` is empty.", f"{field}.{content_key}")
    turn: Message = {"role": role, "content": content}
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise RowError("wrong_weight", f"`{field}.weight` is neither 0 nor 1.", f"{field}.weight")
    if weight == 0 and role == "assistant":
        turn["weight"] = 0
    return turn


def _get_role(message: Mapping[str, object], key: str, roles: dict[str, Role], field: str) -> Role:
    role = message.get(key)
    if not isinstance(role, str) or role not in roles:
        raise RowError("unknown_role", f"`{field}.{key}` is not one of {', '.join(roles)}.", f"{field}.{key}")
    return roles[role]


def _get_text(record: Mapping[str, object], key: str, *, missing: str, empty: str) -> str:
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
