"""Which names of one scope are one person: `Smith` and `J. Smith` where just one John Smith is there."""

from collections.abc import Iterable


def link_names(names: Iterable[str]) -> dict[str, str]:
    """Each name with the fullest one that it is a part of; with itself where that is none, or more than one.

    Names are words in lower case. A single letter stands for a word that begins with it.
    """
    fullest: dict[str, list[str]] = {}
    links: dict[str, str] = {}
    for name in sorted(set(names), key=lambda n: (-_count_letters(n), n)):
        links[name] = name
        words = [word for word in name.split() if len(word) > 1]
        wholes = _find_wholes(name, min((fullest.get(word, []) for word in words), key=len, default=[]))
        if len(wholes) == 1:
            links[name] = wholes[0]
        elif not wholes:
            for word in words:
                fullest.setdefault(word, []).append(name)
    return links


def _find_wholes(name: str, candidates: list[str]) -> list[str]:
    """No more than two: whether it is one is all that counts."""
    wholes: list[str] = []
    for candidate in candidates:
        if _is_part(name.split(), candidate.split()) and _count_letters(candidate) > _count_letters(name):
            wholes.append(candidate)
            if len(wholes) > 1:
                break
    return wholes


def _is_part(part: list[str], whole: list[str]) -> bool:
    return all(word in whole or (len(word) == 1 and any(w.startswith(word) for w in whole)) for word in part)


def _count_letters(name: str) -> int:
    return len(name.replace(" ", ""))
