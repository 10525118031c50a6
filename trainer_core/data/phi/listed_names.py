"""Names by the lists: chains of capitals, rows of people, lower case, and other mentions of all these."""

import re
from collections.abc import Iterator, Set

from trainer_core.data.phi.finding import GUESSED, SHAPED, Finding
from trainer_core.data.phi.name_forms import (
    CAPITAL,
    LINK,
    PART,
    UPPER,
    WORD,
    can_be_name,
    get_ordinary_surnames,
    is_known,
    is_listed,
    is_strong,
    iter_places,
    names_a_disease,
)
from trainer_core.data.phi.name_lists import CONTEXT_OF_EPONYMS, EPONYMS, PLACES, STOP, load_names
from trainer_core.data.phi.normal_form import to_lower

_CHAIN = re.compile(rf"(?<![^\W_]){CAPITAL}(?:{LINK}{CAPITAL}){{0,4}}")
_MIN_LONE = 3
_MAX_FORMS = 30
_BETWEEN = re.compile(r"[ -]")
_FOLLOWING = re.compile(r"(?:'s|s')?((?:[ -][\w']+){1,3})")
_SURNAME_BEHIND = re.compile(r"(?!-\w|[./@]\w)(?:[ \n]+[a-z]\.?(?=[ \n]))?(?:[ \n]+([^\W\d_]+(?:['-][^\W\d_]+)*))?")
_NO_BREAK = frozenset("@./-")
_NO_PERSON = frozenset(
    "san santa los las puerto british saint new johns mount fort port cape el north south east west".split()
)
_LISTING = re.compile(rf"{CAPITAL}(?:, {CAPITAL})+,? and {CAPITAL}")
_LISTING_HINT = re.compile(rf" and (?=[{UPPER}])")
_LAST_FIRST = re.compile(rf"(?<![^\W_])({CAPITAL}), ({CAPITAL})(?: [{UPPER}]\b)?(?! and\b|,)")
_COMMA = re.compile(rf", (?=[{UPPER}])")
_LAST = re.compile(rf"(?<![^\W_]){CAPITAL}\Z")
_MAX_NAME = 40
_INITIAL_HINT = re.compile(rf" [{UPPER}]\.? [{UPPER}]")
_INITIALLED = re.compile(rf"(?<![^\W_])([{UPPER}][^\W\d_]{{2,}}) [{UPPER}]\.? (?:{CAPITAL})")


def find_initialled(text: str) -> Iterator[Finding]:
    """Such as `Faina D. Berisha`, whatever the lists know."""
    _, _, ordinary = load_names()
    for hint in _INITIAL_HINT.finditer(text):
        match = _INITIALLED.search(text, max(0, hint.start() - 24), hint.end() + 24)
        if match is None:
            continue
        words = [word.lower() for word in WORD.findall(match[0]) if len(word) > 1]
        if (
            all(map(can_be_name, words))
            and not any(w in ordinary for w in words)
            and not names_a_disease(text, match.end())
        ) and (is_listed(match[0]) or "." in match[0]):
            yield Finding(*match.span(), "name", "name.initialled", GUESSED)


def find_listed(text: str, lower: str, strong: Set[str]) -> Iterator[Finding]:
    eponyms = _find_eponyms(lower, strong)
    for match in _CHAIN.finditer(text):
        pieces = PART.findall(match[0].lower())
        if not strong.isdisjoint(pieces) or any(piece.startswith("mc") for piece in pieces):
            yield from _judge_chain(text, list(WORD.finditer(text, *match.span())), eponyms)
    yield from _find_enumerated(text)
    yield from _find_last_first(text)
    for word in strong:
        yield from _find_lower(lower, text, word, eponyms)


def find_mentions(text: str, names: set[str], sure_names: set[str]) -> Iterator[Finding]:
    """Every other mention of names of the record: their words, ordinary ones only as they were written.

    So also words that no list has, unless a label or title made them sure.
    """
    _, _, ordinary = load_names()
    sure = {part for name in sure_names for part in WORD.findall(name.lower())}
    words = {part for name in names for part in WORD.findall(name) if len(part) > 2 and part.lower() not in STOP}
    if not words:
        return
    for match in _iter_words(text, to_lower(text), {word.lower() for word in words}):
        form = match[0].lower()
        if match[0].isupper() and len(match[0]) < 5 and match[0] not in words:
            continue
        is_telling = form not in ordinary and form not in EPONYMS and (form in sure or is_known(form))
        if (is_telling or (match[0] in words and match[0][0].isupper())) and not names_a_disease(text, match.end()):
            yield Finding(*match.span(), "name", "name.mention", GUESSED)


def _iter_words(text: str, lower: str, forms: Set[str]) -> Iterator[re.Match[str]]:
    """Where these words stand, also as a part of one with a hyphen."""
    for word in _iter_wholes(text, lower, forms):
        whole = [word] if word[0].lower() in forms else list(PART.finditer(text, *word.span()))
        for match in whole:
            start, end = match.span()
            is_apart = not text[start - 1 : start].isdigit() and not text[end : end + 1].isdigit()
            if match[0].lower() in forms and is_apart:
                yield match


def _iter_wholes(text: str, lower: str, forms: Set[str]) -> Iterator[re.Match[str]]:
    """The words of the text that hold one of these: of few forms found by looking for each."""
    if len(forms) > _MAX_FORMS or "İ" in text:
        yield from WORD.finditer(text)
        return
    end = 0
    for place in sorted(match for form in forms for match in _iter_finds(lower, form)):
        if place >= end:
            start = place
            while start > end and (text[start - 1].isalnum() or text[start - 1] in "'-"):
                start -= 1
            word = next((word for word in WORD.finditer(text, start) if word.end() > place), None)
            if word is not None:
                yield word
                end = word.end()


def _iter_finds(lower: str, form: str) -> Iterator[int]:
    place = lower.find(form)
    while place >= 0:
        yield place
        place = lower.find(form, place + len(form))


def _find_enumerated(text: str) -> Iterator[Finding]:
    """People in a row, of whom the lists know most."""
    for match in _LISTING.finditer(text) if _LISTING_HINT.search(text) else ():
        words = list(WORD.finditer(text, *match.span()))
        names = [word for word in words if word[0][0].isupper() and can_be_name(word[0])]
        if 2 * sum(is_strong(word[0]) for word in names) >= len(names) > 1 and not names_a_disease(text, match.end()):
            yield from (Finding(*word.span(), "name", "name.enumerated", GUESSED) for word in names)


def _find_last_first(text: str) -> Iterator[Finding]:
    """Such as `SMITH, JOHN`."""
    given, surnames, _ = load_names()
    for match in _iter_last_first(text):
        last, first = match[1].lower(), match[2].lower()
        if last in surnames and first in given and is_strong(first) and first not in PLACES and last not in PLACES:
            yield Finding(*match.span(), "name", "name.last_first", SHAPED)


def _iter_last_first(text: str) -> Iterator[re.Match[str]]:
    """From each comma back: a search for words with a capital would take ten times as long."""
    end = 0
    for comma in _COMMA.finditer(text):
        last = _LAST.search(text, max(end, comma.start() - _MAX_NAME), comma.start())
        match = last and _LAST_FIRST.match(text, last.start())
        if match:
            end = match.end()
            yield match


def _find_eponyms(lower: str, strong: Set[str]) -> set[str]:
    """Names that this text gives to diseases, signs and instruments."""
    found = {word for word in strong if word in EPONYMS}
    for word in strong - found:
        for _, end in iter_places(lower, word):
            following = _FOLLOWING.match(lower, end)
            if following and not CONTEXT_OF_EPONYMS.isdisjoint(_BETWEEN.split(following[1])):
                found.add(word)
                break
    return found


def _judge_chain(text: str, parts: list[re.Match[str]], eponyms: set[str]) -> Iterator[Finding]:
    """The longest run of words that can be names, with one that can be nothing else."""
    run: list[re.Match[str]] = []
    for part in [*parts, None]:
        if part is not None and can_be_name(part[0]) and not (run and _is_apart(text, run, part)):
            run.append(part)
            continue
        if run:
            yield from _judge_run(text, run, eponyms)
        run = [part] if part is not None and can_be_name(part[0]) else []


def _is_apart(text: str, run: list[re.Match[str]], part: re.Match[str]) -> bool:
    """A line or a sentence ended in between."""
    between = text[run[-1].end() : part.start()]
    last_is_word = len(run[-1][0]) > 2
    return ("\n" in between and last_is_word and len(run) > 1) or ("." in between and last_is_word)


def _judge_run(text: str, run: list[re.Match[str]], eponyms: set[str]) -> Iterator[Finding]:
    given, surnames, ordinary = load_names()
    if names_a_disease(text, run[-1].end()):
        run = run[:-1]
    forms = [part[0].lower().removesuffix("'s") for part in run]
    full = [index for index, form in enumerate(forms) if len(form) > 1]
    known = [i for i in full if is_known(forms[i])]
    sure = [
        i
        for i in known
        if forms[i] not in ordinary
        and forms[i] not in eponyms
        and forms[i] not in PLACES
        and forms[i].split("-")[0] not in eponyms
    ]
    if not sure or forms[0] in _NO_PERSON:
        return
    end = run[-1].end() - (2 if run[-1][0].endswith("'s") else 0)
    if len(known) >= 2 or (len(full) >= 2 and any(forms[i] in given for i in sure)):
        first = (
            run[min(known)].start()
            if min(known) <= 1 and forms[0] in ordinary and forms[0] not in given and forms[0] not in surnames
            else run[0].start()
        )
        yield Finding(first, end, "name", "name.listed", SHAPED)
        return
    for index in sure:
        is_whole = "-" not in forms[index] or all(map(is_known, forms[index].split("-")))
        if is_whole and len(forms[index]) >= _MIN_LONE and (not run[index][0].isupper() or len(forms[index]) > 4):
            word = run[index]
            start = run[0].start() if _may_be_given(forms, index) else word.start()
            yield Finding(start, word.start() + len(forms[index]), "name", "name.lone", GUESSED)


def _may_be_given(forms: list[str], index: int) -> bool:
    """What stands before a surname alone is in no list, so that nothing speaks against its being a given name."""
    _, _, ordinary = load_names()
    return 0 < index == len(forms) - 1 <= 2 < len(forms[0]) and all(
        len(form) == 1 or (len(form) > 2 and form not in ordinary and form not in EPONYMS and form not in PLACES)
        for form in forms[:index]
    )


def _find_lower(lower: str, text: str, word: str, eponyms: set[str]) -> Iterator[Finding]:
    """A given name in lower case; with the surname behind it."""
    given, _, _ = load_names()
    if word not in given or len(word) < _MIN_LONE or word in eponyms or word in PLACES:
        return
    for start, end in iter_places(lower, word):
        match = _SURNAME_BEHIND.match(lower, end)
        if match is None or lower[start - 1 : start] in _NO_BREAK or not text[start].islower():
            continue
        if (
            match[1]
            and is_known(match[1])
            and match[1] not in STOP
            and (is_strong(match[1]) or match[1] in get_ordinary_surnames())
        ):
            end = match.end()
        elif len(word) == _MIN_LONE:
            continue
        yield Finding(start, end, "name", "name.lower", GUESSED)
