"""What a person sees of a text: blanks of no width make no name, no reason, and no second person."""

import unicodedata

from trainer_core.data.phi.normal_form import LOOKALIKES, normalise

_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")
"""Letters, marks and signs to Unicode, of which nothing is seen."""

_TWINS = str.maketrans("i10", "llo")


def drop_unseen(text: str) -> str:
    """Without characters that are not shown, and without blanks at its ends."""
    return "".join(filter(_is_seen, text)).strip()


def fold_name(name: str) -> str:
    """Two names that look the same are the same, whatever their case, width, blanks and signs. Letters of other
    alphabets that look Latin are, wherever they stand; so are digits that look like letters, and `I` is `l`."""
    letters = normalise(drop_unseen(name)).text.translate(LOOKALIKES).casefold()
    return "".join(c for c in letters if unicodedata.category(c)[0] not in "CPSZ").translate(_TWINS)


def _is_seen(character: str) -> bool:
    """NUL counts: whoever stores texts refuses it."""
    is_control = unicodedata.category(character) in ("Cf", "Cc") and not character.isspace() and character != "\0"
    return not is_control and character not in _BLANK_LETTERS
