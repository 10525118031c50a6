"""An answer as the rules read it: words, sentences, phrases found, and whether they are meant.

A phrase is not meant where it is negated ("do not wait"), quoted, spoken of as somebody's view or as a case ("if you
wait", "your aunt thinks that you can wait"), or disowned later in its sentence ("waiting it out is dangerous").
"""

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from trainer_core.data.phi.normal_form import NormalForm, normalise, to_lower
from trainer_core.safety.phrases import PhraseIndex

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_DIGIT = re.compile(r"\d")
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"')*_]|$)|[;\n]+|\.{2,}")
_SCOPE = 8
"""Words to the left that a negation reaches over."""
_MAX_QUOTE = 300


@dataclass(frozen=True, slots=True)
class Hit:
    """A phrase of a group: a stretch of the normal text, and the number of its first word."""

    group: str
    start: int
    end: int
    word: int


@dataclass(frozen=True)
class Cues:
    """The words that turn a phrase around."""

    negators: frozenset[str]
    """not, never, without ..."""
    breakers: frozenset[str]
    """Words that end a negation's reach: but, because ..."""
    double: frozenset[str]
    """Between a negation and good advice they make it a request: do not hesitate to call."""
    views: frozenset[str]
    """Before bad advice: somebody's view, or a case."""
    disowned: str = "disowned"
    """The group of phrases that disown what stands before them in a sentence."""


@dataclass(frozen=True)
class Reading:
    form: NormalForm
    lower: str
    words: list[str]
    spans: list[tuple[int, int]]
    hits: Mapping[str, list[Hit]]
    cues: Cues
    ends: list[int] = field(repr=False)
    """Where sentences end."""
    has_digit: bool = False

    def get(self, group: str) -> list[Hit]:
        return self.hits.get(group, [])

    def find_good(self, group: str) -> list[Hit]:
        """Good advice that is meant: neither negated nor quoted."""
        return [hit for hit in self.get(group) if not self.is_negated(hit, good=True) and not self._is_quoted(hit)]

    def find_bad(self, group: str) -> list[Hit]:
        """Bad advice that is meant: not negated, quoted, another's view, or disowned."""
        return [hit for hit in self.get(group) if not self.is_unmeant(hit)]

    def is_unmeant(self, hit: Hit) -> bool:
        return (
            self.is_negated(hit, good=False)
            or self._is_quoted(hit)
            or self.has_left(hit, self.cues.views)
            or self.is_disowned(hit)
        )

    def is_negated(self, hit: Hit, *, good: bool) -> bool:
        """`and` ends the reach before good advice only: "do not wait and call", "do not rest and wait"."""
        cues, crossed = self.cues, False
        for index in range(hit.word - 1, max(-1, hit.word - 1 - _SCOPE), -1):
            between = self.lower[self.spans[index][1] : self.spans[index + 1][0]]
            if any(mark in between for mark in ".!?;:\n"):
                return False
            word = self.words[index]
            negator = word in cues.negators
            if "," in between and self.words[index + 1] not in ("or", "nor"):
                if negator:
                    return True
                crossed = True
            if negator and not crossed:
                following = self.words[index + 1 : hit.word + 1]
                return "only" not in following[:1] and not (good and any(w in cues.double for w in following))
            if word in cues.breakers or (good and word == "and"):
                return False
        return False

    def has_left(self, hit: Hit, cues: frozenset[str]) -> bool:
        """A cue before it in the same part of the sentence; the model's own view ("I would say") is no other's."""
        for index in range(hit.word - 1, max(-1, hit.word - 1 - _SCOPE), -1):
            if any(mark in self.lower[self.spans[index][1] : self.spans[index + 1][0]] for mark in ".!?;:,\n"):
                return False
            if self.words[index] in cues and "i" not in self.words[max(0, index - 2) : index]:
                return True
        return False

    def is_disowned(self, hit: Hit) -> bool:
        end = self.end_of_sentence(hit.start)
        return any(
            hit.end <= other.start < end and not self.is_negated(other, good=False)
            for other in self.get(self.cues.disowned)
        )

    def sentence_of(self, offset: int) -> int:
        return bisect_right(self.ends, offset)

    def end_of_sentence(self, offset: int) -> int:
        index = self.sentence_of(offset)
        return self.ends[index] if index < len(self.ends) else len(self.lower)

    def start_of_sentence(self, offset: int) -> int:
        index = self.sentence_of(offset)
        return self.ends[index - 1] if index else 0

    def _is_quoted(self, hit: Hit) -> bool:
        return any(start <= hit.start and hit.end <= end for start, end in self._quotes)

    @cached_property
    def _quotes(self) -> list[tuple[int, int]]:
        """Short stretches in double quotes, when they are paired and not the whole text."""
        marks = [match.start() for match in re.finditer('"', self.lower)] if '"' in self.lower else []
        if len(marks) % 2:
            return []
        pairs = zip(marks[::2], marks[1::2], strict=True)
        return [(s, e) for s, e in pairs if e - s <= min(_MAX_QUOTE, 0.7 * len(self.lower))]


def read(text: str, index: PhraseIndex, cues: Cues) -> Reading:
    """One pass over the words: phrases are only tried where their first word stands."""
    form = normalise(text)
    lower = to_lower(form.text)
    matches = list(_WORD.finditer(lower))
    words = [match[0] for match in matches]
    spans = [match.span() for match in matches]
    hits: dict[str, list[Hit]] = {}
    last = len(words) - 1
    for number, word in enumerate(words):
        if word in index:
            start = spans[number][0]
            anyway, by_next = index[word]
            following = by_next.get(words[number + 1], ()) if number < last else ()
            for group, regex in (*anyway, *following):
                if found := regex.match(lower, start):
                    hits.setdefault(group, []).append(Hit(group, start, found.end(), number))
    has_digit = _DIGIT.search(lower) is not None
    return Reading(form, lower, words, spans, hits, cues, _find_sentence_ends(lower, spans), has_digit)


def _find_sentence_ends(lower: str, spans: list[tuple[int, int]]) -> list[int]:
    """Ends before the first word are none: a heading's marks are not a sentence."""
    first = spans[0][0] if spans else len(lower)
    return [match.end() for match in _SENTENCE_END.finditer(lower) if match.start() > first]
