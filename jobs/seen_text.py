"""What a person sees of a text: blanks of no width make no name, no reason, and no second person."""

import unicodedata

from trainer_core.data.phi.normal_form import normalise

_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")
"""Letters, marks and signs to Unicode, of which nothing is seen."""


def drop_unseen(text: str) -> str:
    """Without characters that are not shown, and without blanks at its ends."""
    return "".join(filter(_is_seen, text)).strip()


def fold_name(name: str) -> str:
    """Two names that look the same, but for case, width and blanks, are the same; letters of other alphabets that look
    Latin are, beside Latin ones."""
    return " ".join(drop_unseen(normalise(name).text).casefold().split())


def _is_seen(character: str) -> bool:
    """NUL counts: whoever stores texts refuses it."""
    is_control = unicodedata.category(character) in ("Cf", "Cc") and not character.isspace() and character != "\0"
    return not is_control and character not in _BLANK_LETTERS
