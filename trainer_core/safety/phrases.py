"""The small language that rules are written in, and its index by first word.

    call|phone ... <ambulance> right? now

Words stand as they are, in lower case. `a|b` is one of several, `_` a space inside one of them, `word*` any ending (of
the first word: a plural), `word?` may be left out, `...` up to four words, `<list>` one of a named list of words. A
phrase stays inside a sentence. No phrase can take for ever: every part is bounded.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

MAX_PHRASE_CHARACTERS = 2_000
_BETWEEN = r"(?:[^\w.?!;]|_){1,5}"
_GAP = r"(?:(?:[^\w.?!;]|_){1,5}[^\W_]+(?:'[^\W_]+)?){0,4}?"
_PART = re.compile(r"<[a-z_]+>\??|\.\.\.|[^\s<>?*|]+\*?(?:\|[^\s<>?*|]+\*?)*\??")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Entry(NamedTuple):
    """A phrase of a group."""

    group: str
    regex: re.Pattern[str]


class Follow(NamedTuple):
    """What may begin with a word: whatever comes next, or by the next word."""

    anyway: tuple[Entry, ...]
    by_next: Mapping[str, tuple[Entry, ...]]


PhraseIndex = Mapping[str, Follow]


def build_index(groups: Mapping[str, Iterable[str]], words: Mapping[str, str]) -> PhraseIndex:
    """First word, and where it is known the next, -> what may stand there. ValueError says which phrase is wrong."""
    anyway: dict[str, dict[Entry, None]] = {}
    by_next: dict[str, dict[str, dict[Entry, None]]] = {}
    for group, phrases in groups.items():
        for phrase in phrases:
            try:
                firsts, regex = _expand(phrase, words)
            except ValueError as error:
                raise ValueError(f"{group}: {phrase[:60]!r}: {error}") from None
            entry = Entry(group, re.compile(regex))
            for first, seconds in firsts:
                place = by_next.setdefault(first, {})
                for second in seconds or ():
                    place.setdefault(second, {})[entry] = None
                if not seconds:
                    anyway.setdefault(first, {})[entry] = None
    return {
        first: Follow(tuple(anyway.get(first, ())), {second: tuple(found) for second, found in seconds.items()})
        for first, seconds in by_next.items()
    }


def _expand(phrase: str, words: Mapping[str, str]) -> tuple[list[tuple[str, set[str]]], str]:
    """First words, each with those that may come next (none: any); the regular expression."""
    if len(phrase) > MAX_PHRASE_CHARACTERS:
        raise ValueError(f"longer than {MAX_PHRASE_CHARACTERS:,} characters")
    parts = phrase.lower().split()
    if wrong := [part for part in parts if not _PART.fullmatch(part)]:
        raise ValueError(f"cannot read {wrong[0]!r}")
    if not parts or parts[0] == "..." or parts[0].endswith("?") or parts[-1] == "...":
        raise ValueError("begins or ends with what may be left out")
    rest = "".join(_translate(part, words) for part in parts[1:])
    next_words = _list_next(parts[1:], words)
    alternatives = list(_list_firsts(parts[0], words))
    firsts = []
    for alternative in alternatives:
        tokens = _WORD.findall(alternative.replace("_", " "))
        if not tokens or not alternative.startswith(tokens[0]):
            raise ValueError(f"cannot begin with {alternative!r}")
        firsts.append((tokens[0], {tokens[1]} if len(tokens) > 1 else next_words))
    return firsts, f"(?:{'|'.join(map(_literal, alternatives))}){rest}"


def _list_next(parts: Sequence[str], words: Mapping[str, str]) -> set[str]:
    """Empty where it may be any word, or none."""
    found: set[str] = set()
    for part in parts:
        alternatives = [] if part == "..." else _list_alternatives(part.removesuffix("?"), words)
        if not alternatives or any("*" in alternative.split("_")[0] for alternative in alternatives):
            return set()
        found.update(_WORD.findall(alternative.replace("_", " "))[0] for alternative in alternatives)
        if not part.endswith("?"):
            return found
    return set()


def _list_firsts(part: str, words: Mapping[str, str]) -> Iterable[str]:
    """The index wants whole words: an ending left open is none or an s here."""
    for alternative in _list_alternatives(part, words):
        stem = alternative.removesuffix("*")
        yield from (stem, stem + "s") if stem != alternative else (stem,)


def _translate(part: str, words: Mapping[str, str]) -> str:
    if part == "...":
        return _GAP
    optional = part.endswith("?")
    alternatives = "|".join(map(_literal, _list_alternatives(part.removesuffix("?"), words)))
    return f"(?:{_BETWEEN}(?:{alternatives})){'?' if optional else ''}"


def _list_alternatives(part: str, words: Mapping[str, str]) -> list[str]:
    if not part.startswith("<"):
        return part.split("|")
    if part[1:-1] not in words:
        raise ValueError(f"no list of words is called {part[1:-1]!r}")
    return [word for item in words[part[1:-1]].lower().split() for word in item.split("|")]


def _literal(word: str) -> str:
    stem = word.removesuffix("*")
    text = _BETWEEN.join(map(re.escape, stem.split("_")))
    return text + (r"[^\W_]*" if word.endswith("*") else r"(?![^\W_])")
