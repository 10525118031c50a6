"""RowText: what of a row is compared with other rows."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_core.data.formats import Message, is_trained

LONG_QUESTION, LONG_ANSWER = 40, 20
"""Words from which on a question may have some of its own, and still ask the same as another: a short answer, such as a
label, is shared by many questions that only begin alike."""

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_IDEOGRAMS = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_IDEOGRAMS}]|[^\\W{_IDEOGRAMS}]+")
_PUNCTUATION = str.maketrans({chr(code): " " for code in range(128) if not re.match(r"\w", chr(code))})
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, every run of white space one space, nothing invisible."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
        return " ".join(unicodedata.normalize("NFKC", text.casefold()).split())
    return " ".join(text.casefold().split())


def split_words(normalised: str) -> list[str]:
    """Without punctuation; each ideogram and each kana is a word."""
    if normalised.isascii():
        return normalised.translate(_PUNCTUATION).split()  # the same, in less than half of the time
    return _WORD.findall(normalised)


@dataclass(frozen=True, slots=True)
class RowText:
    """A conversation in normal form. Hashes have 64 bits."""

    digest: int
    """Over every role and text: equal for exact duplicates."""
    question: str
    """The words that the model reads, but for system messages: what all rows share makes none of them alike."""
    answer: str
    """What it learns to say."""
    asked: int
    """Over the question: equal where at most punctuation differs."""
    is_long: bool
    """Question and answer are."""
    numbers: int
    """Over the numbers on each side: another dose is another row."""
    turns: Sequence[tuple[bool, str]]
    """All texts, and whether the user says them."""


def read_row(messages: Sequence[Message]) -> RowText:
    texts = [normalise(message["content"]) for message in messages]
    sides: tuple[list[str], list[str]] = ([], [])
    content = []
    for message, text in zip(messages, texts, strict=True):
        content += [message["role"], str(is_trained(message)), text]
        if message["role"] != "system":
            sides[is_trained(message)].append(text)
    question, answer = "\n".join(sides[False]), "\n".join(sides[True])
    words = split_words(question)
    question = " ".join(words) or question
    return RowText(
        digest=_hash(content),
        question=question,
        answer=answer,
        asked=_hash([question]),
        is_long=len(words) >= LONG_QUESTION and answer.count(" ") >= LONG_ANSWER - 1,
        numbers=_hash([*sorted(_NUMBER.findall(question)), "|", *sorted(_NUMBER.findall(answer))]),
        turns=[(message["role"] == "user", text) for message, text in zip(messages, texts, strict=True)],
    )


def _hash(parts: list[str]) -> int:
    content = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
