"""A row as a line of JSON, and stretches of its texts replaced in it: every other byte stays what it is."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from trainer_core.data.formats import RowError
from trainer_core.data.phi.fields import Pairs, is_plain_key

Token = TypeVar("Token")
_LEXEME = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)
_CHARACTER = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL
)
_NO_TEXTS = frozenset(("true", "false", "null"))


class Edit(NamedTuple, Generic[Token]):
    """What comes in the place of these characters of a text."""

    start: int
    end: int
    token: Token


def parse_row(line: str) -> Pairs:
    """Raises RowError."""
    try:
        record = json.loads(line, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        raise RowError("invalid_json", "The row is not valid JSON.") from None
    if not isinstance(record, Pairs):
        raise RowError("not_an_object", "The row is JSON, but not an object with keys: write one object a line.")
    return record


def edit_row(line: str, edits: Sequence[Sequence[Edit[Token]]]) -> list[str | Token]:
    """The line in pieces. `edits` has those of each text that `iter_texts` gives, in its order and theirs.

    A number becomes a text where anything of it is replaced.
    """
    pieces: list[str | Token] = []
    last = 0
    for (start, end), edits_here in zip(_iter_literals(line), edits, strict=True):
        if edits_here:
            pieces.append(line[last:start])
            edited = _edit_literal(line[start:end], edits_here)
            pieces += edited
            last = end
    return [*pieces, line[last:]]


def _edit_literal(literal: str, edits: Sequence[Edit[Token]]) -> list[str | Token]:
    inner = literal[1:-1] if literal.startswith('"') else str(json.loads(literal))
    characters = _CHARACTER.findall(inner)
    pieces: list[str | Token] = ['"']
    last = 0
    for start, end, token in edits:
        pieces += ["".join(characters[last:start]), token]
        last = end
    return [*pieces, "".join(characters[last:]) + '"']


def _iter_literals(line: str) -> Iterator[tuple[int, int]]:
    """Where the texts stand that `iter_texts` finds in the same line."""
    is_object: list[bool] = []
    expects_key = False
    for lexeme in _LEXEME.finditer(line):
        text = lexeme[0]
        if text in "{[":
            is_object.append(text == "{")
            expects_key = is_object[-1]
        elif text in "}]":
            is_object.pop()
            expects_key = False
        elif text in ":,":
            expects_key = text == "," and is_object[-1]
        elif (not is_plain_key(json.loads(text))) if expects_key else (text not in _NO_TEXTS):
            yield lexeme.span()
