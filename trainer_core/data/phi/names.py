"""Names of people: behind titles and labels, before credentials, under letters; the rest in `listed_names`."""

import re
from collections.abc import Iterator, Set

from trainer_core.data.phi.finding import LABELLED, SHAPED, Finding
from trainer_core.data.phi.listed_names import find_initialled, find_listed
from trainer_core.data.phi.name_forms import (
    _MEDICAL,
    CAPITAL,
    LINK,
    PART,
    WORD,
    can_be_name,
    get_ordinary_surnames,
    get_strong,
    is_strong,
    iter_places,
    names_a_disease,
)
from trainer_core.data.phi.name_lists import CONTEXT_OF_EPONYMS, PARTICLES, STOP, TITLES, load_names

_BEHIND_TITLE = re.compile(r"\.[ \t]*\n?|[ \t]+|[ \t]?\n")
_VALUE = re.compile(
    r"[ \t]*\n?[ \t]*([^\W\d_]\.?(?:[^\W\d_'.-]*(?:['-][^\W\d_]+)*)\.?(?:,?["
    r" \t]+(?:[^\W\d_]+(?:['-][^\W\d_]+)*\.?)){0,4})"
)
_FIRST_WORD = re.compile(rf"[ \t]*\n?[ \t]*({WORD.pattern})")
_NAME_LABEL = re.compile(
    r"(?i)(?<![\w-])(?:(?:patient|pt|client|member|subscriber|guarantor|insured|spouse|husband|wife|mother|father|son"
    r"|daughter|brother|sister|parent|guardian|caregiver|next[ ]of[ ]kin|nok"
    r"|emergency[ ]contact|contact|physician|provider|attending|resident|surgeon|anesthesiologist|radiologist"
    r"|pathologist|cardiologist|consultant|referr(?:ed|ing)(?:[ ]by|[ ]physician|[ ]provider)?|pcp"
    r"|doctor|clinician|primary[ ]care(?:[ ]\w+)?|nurse|rn|author|dictated[ ]by|transcribed[ ]by|signed(?:[ ]by)?"
    r"|electronically[ ]signed(?:[ ]by)?|reviewed[ ]by|verified[ ]by|witness|interpreter|employer|recipient"
    r"|account[ ]holder|(?:first|last|full|given|family|middle|maiden)[ ]name|surname|attn|sender|employee|assistant"
    r"|therapist|counselor|social[ ]worker)(?:'s)?(?:[ ](?:full[ ])?name)?|name|from|cc)\s?[:=-]\s?\Z"
)
_MARKS = (":", "=", " - ")
_WEAK_LABELS = ("from", "cc", "contact", "patient", "pt", "nurse", "resident", "employer")
_RELATIONS = (
    "daughter son wife husband mother father brother sister friend neighbor neighbour kid nephew niece aunt uncle"
    " cousin grandmother grandfather grandson granddaughter girlfriend boyfriend partner roommate"
)
_SPEECH = "dear hi hello regards sincerely says said asked told named called"
_TELLING = {
    **dict.fromkeys(f"{_RELATIONS} {_SPEECH}".split(), ""),
    **dict.fromkeys("goes signed dictated seen referred accompanied".split(), r"\s+by"),
    "cared": r"\s+for\s+by",
    "name": r"(?:'s|\s+is|\s+was|(?:\s+\w+){0,3}\?(?:\s+\w+:)?)",
    "i": r"(?:'m|\s+am)",
    "this": r"\s+is",
    "known": r"\s+as",
    "spoke": r"\s+(?:with|to)",
    "discussed": r"\s+with",
    "met": r"(?:\s+with)?",
    "call": r"\s+me",
}
"""Words before a name, and what has to follow them."""
_TOLD = {word: re.compile(rf"{word}{rest}[,:]?\s+") for word, rest in _TELLING.items()}
_SURE_TELLING = re.compile(r"name|call me|goes by|dictated by|signed by")
_CREDENTIAL = re.compile(r"(?:M\.?D|D\.?O|R\.?N|Ph\.?D|N\.?P|PA(?:-C)?|DDS|LPN|FACS|LCSW|DVM|MBBS|APRN)\b")
_BEFORE_CREDENTIAL = re.compile(rf"(?<![^\W_])({CAPITAL}(?:{LINK}{CAPITAL}){{0,3}})\.?,?[ \t]+\Z")
_SIGNATURE = re.compile(
    rf"(?im:^[ \t]*(?:/s/|--|sincerely|(?:best|kind|warm)?[ ]?regards|best|thanks|thank you|yours(?: \w+)?|cheers"
    rf"|signed),?[ \t]*\n?[ \t]*)({CAPITAL}(?:{LINK}{CAPITAL}){{0,3}})[ \t]*$",
    re.MULTILINE,
)
_LOWER_TITLES = frozenset(("dr", "mr", "mrs", "ms", "prof", "mx"))
_CLOSINGS = frozenset("sincerely regards best thanks thank yours cheers signed".split())
_LABEL_ENDS = frozenset(
    "patient pt client member subscriber guarantor insured spouse husband wife mother father son daughter brother"
    " sister parent guardian caregiver kin nok contact physician provider"
    " attending resident surgeon anesthesiologist radiologist pathologist cardiologist consultant referred referring"
    " by pcp care nurse rn author signed witness interpreter employer"
    " recipient holder name surname attn sender employee assistant therapist counselor worker from cc doctor"
    " clinician".split()
)


def find_names(text: str, lower: str, words: Set[str]) -> Iterator[Finding]:
    """`lower`: the text in lower case, equally long; `words`: its words."""
    for title in TITLES & words:
        yield from _find_titled(text, lower, title)
    if not words.isdisjoint(_LABEL_ENDS) and (":" in text or "=" in text or " - " in text):
        yield from _find_labelled(text)
    for word in _TOLD.keys() & words:
        yield from _find_told(text, lower, _TOLD[word])
    if "/s/" in text or "--" in text or not words.isdisjoint(_CLOSINGS):
        yield from _build(_SIGNATURE, text, "name.signature", SHAPED)
    yield from _find_credentialled(text)
    yield from find_initialled(text)
    strong = get_strong() & words
    if strong or "Mc" in text or "O'" in text:
        yield from find_listed(text, lower, strong)


def _find_credentialled(text: str) -> Iterator[Finding]:
    for match in _CREDENTIAL.finditer(text):
        before = _BEFORE_CREDENTIAL.search(text, max(0, match.start() - 60), match.start())
        if before and (span := _trim(text, *before.span(1))):
            yield Finding(*span, "name", "name.credential", SHAPED)


def _build(pattern: re.Pattern[str], text: str, rule: str, rank: int) -> Iterator[Finding]:
    for match in pattern.finditer(text):
        if span := _trim(text, *match.span(1)):
            yield Finding(*span, "name", rule, rank)


def _find_titled(text: str, lower: str, title: str) -> Iterator[Finding]:
    for start, end in iter_places(lower, title):
        if title not in _LOWER_TITLES and not text[start].isupper():
            continue
        behind = _BEHIND_TITLE.match(lower, end)
        if behind is None:
            continue
        weak = title not in _LOWER_TITLES or "." not in behind[0]
        if (span := _take_value(text, behind.end(), weak=weak)) is not None:
            yield Finding(*span, "name", "name.title", LABELLED)


def _find_labelled(text: str) -> Iterator[Finding]:
    for start, end in _iter_marks(text):
        before = text[max(0, start - 20) : start].rsplit(None, 1)
        if not before or before[-1].lower().removesuffix("'s") not in _LABEL_ENDS:
            continue
        if _NAME_LABEL.search(text, max(0, start - 40), end):
            weak = text[max(0, start - 40) : start].rstrip().lower().endswith(_WEAK_LABELS)
            if (span := _take_value(text, end, weak=weak)) is not None:
                yield Finding(*span, "name", "name.label", LABELLED)


def _iter_marks(text: str) -> Iterator[tuple[int, int]]:
    """What may stand between a label and its name."""
    for mark in _MARKS:
        start = text.find(mark)
        while start >= 0:
            yield start, start + len(mark)
            start = text.find(mark, start + len(mark))


def _find_told(text: str, lower: str, told: re.Pattern[str]) -> Iterator[Finding]:
    for match in told.finditer(lower):
        if match.start() and lower[match.start() - 1].isalnum():
            continue
        sure = _SURE_TELLING.search(match[0]) is not None
        span = _take_value(text, match.end(), weak=True)
        value = text[slice(*span)] if span else ""
        if span and _is_told_name(text, value, span[1], sure=sure):
            yield Finding(*span, "name", "name.told", LABELLED if sure else SHAPED)


def _is_told_name(text: str, value: str, end: int, *, sure: bool) -> bool:
    if (value.isupper() and len(value) > 1 and not is_strong(value)) or names_a_disease(text, end):
        return False
    given, _, ordinary = load_names()
    first = PART.findall(value.lower())[0]
    return (sure and value[0].isupper()) or (first in given and first not in ordinary) or (sure and is_strong(value))


def _take_value(text: str, start: int, *, weak: bool) -> tuple[int, int] | None:
    """The name that begins here, capitalised or not: up to the first word that cannot be part of one."""
    first = _FIRST_WORD.match(text, start)
    if first is None or (weak and text[first.start(1)].islower() and not is_strong(first[1])):
        return None
    match = _VALUE.match(text, start)
    if match is None:
        return None
    words = list(WORD.finditer(text, *match.span(1)))
    taken: list[re.Match[str]] = []
    for index, word in enumerate(words[:5]):
        if _ends_name(text, word, taken, weak=weak, is_last=index == 4):
            break
        taken.append(word)
    return (taken[0].start(), taken[-1].end()) if taken else None


def _ends_name(text: str, word: re.Match[str], taken: list[re.Match[str]], *, weak: bool, is_last: bool) -> bool:
    lower = word[0].lower().removesuffix("'s")
    capital = word[0][0].isupper()
    _, _, ordinary = load_names()
    if (
        lower in TITLES
        or (lower in STOP and not (taken and capital and len(lower) == 1))
        or lower in CONTEXT_OF_EPONYMS
        or _MEDICAL.search(lower)
    ):
        return True
    if not taken:
        return not capital and (weak or lower in ordinary) and not is_strong(lower)
    if text[taken[-1].end() : word.start()].strip() == "." and len(taken[-1][0]) > 2:
        return True
    if capital or lower in PARTICLES.split("|"):
        return is_last or ("," in text[taken[-1].end() : word.start()] and len(taken) > 1)
    if not weak and len(taken) == 1 and lower in get_ordinary_surnames() and taken[0][0][0].islower():
        return False
    return taken[0][0][0].isupper() or lower in ordinary or not (is_strong(lower) or (not weak and len(taken) == 1))


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Without words before and after that no name has."""
    words = list(WORD.finditer(text, start, end))
    while words and not can_be_name(words[0][0]):
        words.pop(0)
    while words and not can_be_name(words[-1][0]):
        words.pop()
    return (words[0].start(), words[-1].end()) if words else None
