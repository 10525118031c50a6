"""PHI015: a placeholder that stands only in the answer. A model would learn to make up people."""

import re
from collections.abc import Iterator, Mapping

from trainer_core.data.formats import COLUMNS
from trainer_core.data.phi.finding import Finding
from trainer_core.data.phi.placeholders import has_marks, list_tokens

_ANSWERS = frozenset(("response", "output", "completion"))
_ROOT = re.compile(r"[.\[]")
_TURN = re.compile(r"(messages|conversations)\[(\d+)\]\.(content|value)")


def find_dangling(record: Mapping[str, object], fields: Mapping[str, str]) -> Iterator[tuple[str, Finding]]:
    """The field and the place of the first mention of each such placeholder."""
    answers = [field for field, text in fields.items() if has_marks(text) and _is_answer(record, field)]
    if not answers:
        return
    questions = [field for field in fields if _ROOT.split(field, 1)[0] in COLUMNS and not _is_answer(record, field)]
    given = {token for field in questions for token in list_tokens(fields[field])}
    for field in answers:
        for token in sorted(list_tokens(fields[field]) - given):
            given.add(token)
            start = fields[field].index(token)
            yield field, Finding(start, start + len(token), "placeholder", "PHI015")


def _is_answer(record: Mapping[str, object], field: str) -> bool:
    if field in _ANSWERS:
        return True
    match = _TURN.fullmatch(field)
    turns = record.get(match[1]) if match else None
    turn = turns[int(match[2])] if match and isinstance(turns, list) else None
    return isinstance(turn, dict) and (turn.get("role") == "assistant" or turn.get("from") in ("gpt", "assistant"))
