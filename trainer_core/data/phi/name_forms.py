"""How names look, and which words can be none: what all rules for names share."""

import re
from collections.abc import Iterator
from functools import cache

from trainer_core.data.phi.name_lists import CONTEXT_OF_EPONYMS, PARTICLES, STOP, TITLES, load_names

UPPER = "".join(filter(str.isupper, map(chr, [*range(0x41, 0x250), *range(0x386, 0x530), *range(0x1E00, 0x1F00)])))
CAPITAL = rf"[{UPPER}][^\W\d_]*(?:['-][^\W\d_]{{2,}})*"
LINK = rf"(?:[ \t]+|(?<=[{UPPER}])\.?[ \t]?\n|[ \t]?\n[ \t]?|[ \t]+(?:(?:{PARTICLES})[ \t]+){{1,2}}|\.[ \t]*)"
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]{2,})*")
PART = re.compile(r"[^\W\d_]+")
_ROMAN = frozenset("ii iii iv vi vii viii ix".split())
_MEDICAL = re.compile(
    r"(?:pathy|itis|osis|emia|oma|trophy|plasia|penia|algia|genesis|kinase|synthase|transferase|oxidase|reductase|ectomy)s?$"
)
_MORE_CONTEXT = frozenset("congenital sequence hereditary distal wort".split())
_CLAN = re.compile(r"(?:mc|o'|mac)[^\W\d_]{3,}")
_FOLLOWING = re.compile(r"(?:'s|s')?(?:[ -][\w']+){1,3}")
_AFTER_NAMES = CONTEXT_OF_EPONYMS | frozenset(
    "hospital university clinic center centre institute medical medicine foundation school college deaconess prize"
    " award website library".split()
)


def names_a_disease(text: str, end: int) -> bool:
    """Up to three words behind the end speak of a disease, a sign, an instrument or a house."""
    following = _FOLLOWING.match(text, end)
    if following is None:
        return False
    words = re.split(r"[^\w]+", following[0].lower())
    return not _AFTER_NAMES.isdisjoint(words) or any(map(_MEDICAL.search, words)) or not _MORE_CONTEXT.isdisjoint(words)


def iter_places(lower: str, word: str) -> Iterator[tuple[int, int]]:
    """Start and end of a word in a text, both in lower case, with neither letter nor digit beside it."""
    start = lower.find(word)
    while start >= 0:
        end = start + len(word)
        if not (_is_word(lower[start - 1 : start]) or _is_word(lower[end : end + 1])):
            yield start, end
        start = lower.find(word, end)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def can_be_name(word: str) -> bool:
    lower = word.lower().removesuffix("'s")
    if len(word) == 1:
        return word.isupper()
    return (
        lower not in STOP
        and lower not in CONTEXT_OF_EPONYMS
        and lower not in _ROMAN
        and lower not in TITLES
        and (not _MEDICAL.search(lower) or is_known(lower))
    )


def is_known(form: str) -> bool:
    given, surnames, _ = load_names()
    if _CLAN.match(form):
        return True
    return any(part in given or part in surnames for part in (form, *re.split(r"['-]", form)) if len(part) > 1)


def is_listed(text: str) -> bool:
    return any(is_known(form) for form in WORD.findall(text.lower()))


def is_strong(text: str) -> bool:
    strong = get_strong()
    return any(form in strong for form in PART.findall(text.lower()))


@cache
def get_strong() -> frozenset[str]:
    given, surnames, ordinary = load_names()
    return (given | surnames) - ordinary


@cache
def get_ordinary_surnames() -> frozenset[str]:
    _, surnames, ordinary = load_names()
    return surnames & ordinary - STOP
