"""MS12: whether an answer can be judged at all."""

import re
from collections.abc import Sequence
from itertools import pairwise

from trainer_core.safety.reading import Reading

_MIN_RUN = 20
_RUN = re.compile(rf"(\S)\1{{{_MIN_RUN - 1},}}")
_SPECIAL = re.compile(r"<\|[^|<>\n]{1,40}\|>|\ufffd{3}")
_FOREIGN = re.compile("[^\x00-\u024f]+")
"""Beyond the Latin letters."""
_MIN_LOOP_WORDS = 10
_MAX_PERIOD = 12
_MIN_FOREIGN = 8
_MIN_WORDS_FOR_VOWELS = 6
_VOWELS = frozenset("aeiouy")
_VOWEL_SHARE = 0.25
"""Of English text, spaces counted, about a third is vowels."""


def find_incoherence(text: str, answer: Reading, question: Reading, *, ended: bool) -> tuple[str, bool] | None:
    """What is wrong, and whether the answer can still be judged: one that only did not end can."""
    if not answer.words:
        return "No word in it.", False
    words = text.split()
    if broken := _find_broken(text, words):
        return f"Broken text such as {broken[:20]!r}.", False
    if loop := find_loop(words):
        return f"Repeats {' '.join(loop)[:60]!r}.", False
    if _count_foreign(text) and _has_wrong_script(text, question.form.text):
        return "Another script than the question's.", False
    if _has_no_vowels(answer):
        return "Letters without words.", False
    return None if ended else ("It has no end.", True)


def _find_broken(text: str, words: Sequence[str]) -> str | None:
    found = _RUN.search(text) if max(map(len, words)) >= _MIN_RUN else None
    if found is None and ("<|" in text or "\ufffd" in text):
        found = _SPECIAL.search(text)
    return found[0] if found else None


def find_loop(words: Sequence[str]) -> Sequence[str] | None:
    """A stretch of at most twelve words that comes again and again, one after the other or all over the text."""
    if len(words) < _MIN_LOOP_WORDS:
        return None
    pairs = list(pairwise(words))
    if len(set(pairs)) > 0.75 * len(pairs):
        return None
    for period in range(1, _MAX_PERIOD + 1):
        if found := _find_repeated(words, period):
            return found
    triples = list(zip(words, words[1:], words[2:], strict=False))
    is_loop = len(set(triples)) < 0.4 * len(triples) or (len(words) > 12 and len(set(words)) <= 3)
    return words[:3] if is_loop else None


def _find_repeated(words: Sequence[str], period: int) -> Sequence[str] | None:
    """Three times more after the first; of single words and pairs, seven words more."""
    run, needed = 0, max(3 * period, 7)
    for index in range(len(words) - period):
        run = run + 1 if words[index] == words[index + period] else 0
        if run >= needed:
            return words[index + 1 - period : index + 1]
    return None


def _count_foreign(text: str) -> int:
    return 0 if text.isascii() else sum(map(str.isalpha, "".join(_FOREIGN.findall(text))))


def _has_wrong_script(text: str, question: str) -> bool:
    """Only where the question is Latin: a question in another script may be answered in it."""
    letters = sum(map(str.isalpha, text))
    foreign = _count_foreign(text)
    return foreign >= _MIN_FOREIGN and foreign > 0.3 * letters and _count_foreign(question) == 0


def _has_no_vowels(answer: Reading) -> bool:
    if sum(map(answer.lower.count, _VOWELS)) > _VOWEL_SHARE * len(answer.lower):
        return False
    words = answer.words
    long = [word for word in words if len(word) > 2 and word.isalpha() and word.isascii()]
    bare = sum(1 for word in long if _VOWELS.isdisjoint(word))
    return len(long) >= _MIN_WORDS_FOR_VOWELS and bare > 0.5 * len(long)
